//! Keys whose handshakes come out the same each time, so that a record of a connection can be opened
//! afterwards.

use migration_ipc::crypto::provider::primitives::{
    Cipher, CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, Error, Hash, HashChoice,
    Random,
};
use migration_ipc::crypto::{Key, Keyring, Opener, Provider, SharedKey, Suite};
use migration_ipc::{Demand, Encryption};
use serde_json::Value;

use crate::talk::End;

/// How an end encrypts.
pub(crate) fn encryption(end: End, demand: Demand) -> Encryption {
    let mut encryption = Encryption::offered(keyring(end));
    encryption.demand = demand;
    encryption
}

/// What is ephemeral is no secret here, and nothing else is random.
fn keyring(end: End) -> Keyring {
    let key = Key::Shared(SharedKey::new([7; 32]));
    Keyring::new("k".parse().unwrap(), key).with_provider(Provider::new(Repeats(end)))
}

/// What opens the records of the client, and those of the service, by what their hellos say.
pub(crate) fn openers(hello: &Value, answer: &Value) -> [Opener; 2] {
    let text = |message: &Value, member: &str| {
        let text = message["payload"]["encryption"][member].as_str();
        text.unwrap_or_else(|| panic!("no {member} in {message}"))
            .to_owned()
    };
    let (opening, initiator) = keyring(End::Client).initiate(Suite::default()).unwrap();
    assert_eq!(opening.message.to_string(), text(hello, "message"));
    let protocol = text(hello, "protocol").parse().unwrap();
    let (response, at_service) = keyring(End::Service)
        .respond(protocol, &text(hello, "key"), &opening.message)
        .unwrap();
    assert_eq!(response.to_string(), text(answer, "message"));
    let at_client = initiator.finish(&response).unwrap();
    [at_service.opener, at_client.opener]
}

/// The usual provider, but for its randomness.
struct Repeats(End);

struct Fixed(u8);

impl Random for Fixed {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.fill(self.0);
        Ok(())
    }
}

impl CryptoResolver for Repeats {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Fixed(match self.0 {
            End::Client => 0x42,
            End::Service => 0x43,
        })))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}
