//! Encryption that is the same in every run: keys that are fixed, in place of chance always the same
//! bytes, and in place of X25519 a group that costs next to nothing. Ciphers and hash are the real
//! ones. And a peer's half of it.

use migration_ipc::crypto::provider::primitives::{
    Cipher, CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, Error, Hash, HashChoice,
    Random,
};
use migration_ipc::crypto::{
    HandshakeMessage, Initiator, Key, Keyring, Opener, PrivateKey, Provider, PublicKey, Sealer,
    SharedKey, StaticKeys, Suite,
};

/// The names of the keys; the first one is what clients use unless they choose.
pub const KEYS: [&str; 2] = ["shared", "static"];

pub const SUITES: [Suite; 2] = [Suite::ChaChaPoly, Suite::AesGcm];

struct Fixed;

impl CryptoResolver for Fixed {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Always))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(Cheap([0; 32])))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Always;

impl Random for Always {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.fill(0x5a);
        Ok(())
    }
}

/// Both halves of a key are the same, and what two keys have in common is their sum without carry.
struct Cheap([u8; 32]);

impl Dh for Cheap {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, key: &[u8]) {
        self.0.copy_from_slice(key);
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        random.try_fill_bytes(&mut self.0)
    }

    fn pubkey(&self) -> &[u8] {
        &self.0
    }

    fn privkey(&self) -> &[u8] {
        &self.0
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        for (out, (ours, theirs)) in out.iter_mut().zip(self.0.iter().zip(public)) {
            *out = ours ^ theirs;
        }
        Ok(())
    }
}

fn provider() -> Provider {
    Provider::new(Fixed)
}

/// A keyring with both kinds of keys, of one end: what is `own` for it is the other's `peer`.
fn keyring(own: u8, peer: u8) -> Keyring {
    let name = |name: &str| name.parse().expect("a name");
    let keys = StaticKeys {
        private: PrivateKey::new([own; 32]),
        peer: PublicKey::new([peer; 32]),
    };
    Keyring::new(name(KEYS[0]), Key::Shared(SharedKey::new([7; 32])))
        .with(name(KEYS[1]), Key::Static(keys))
        .expect("another name")
        .with_provider(provider())
}

/// A service's keys.
#[must_use]
pub fn of_service() -> Keyring {
    keyring(1, 2)
}

/// A client's keys, of which it uses this one.
#[must_use]
pub fn of_client(key: &str) -> Keyring {
    let keyring = keyring(2, 1);
    let chosen = key.parse().expect("a name");
    keyring.with_default(chosen).expect("it has it")
}

/// A client that has begun a handshake.
pub struct Offer {
    initiator: Initiator,
    hello: Vec<u8>,
}

impl Offer {
    /// Begins one. The hello is the frame that `with` makes around a member of the payload, with a
    /// comma before it.
    #[must_use]
    pub fn new(key: &str, suite: Suite, with: impl FnOnce(&str) -> Vec<u8>) -> Self {
        let begun = of_client(key).initiate(suite);
        let (opening, initiator) = begun.expect("nothing is missing");
        let member = format!(
            r#","encryption":{{"protocol":"{}","key":"{key}","message":"{}"}}"#,
            opening.protocol, opening.message
        );
        Self {
            initiator,
            hello: with(&member),
        }
    }

    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Ends it with the service's answer, of which `frame` is all; `None` if that was for another
    /// handshake.
    #[must_use]
    pub fn finish(self, message: &HandshakeMessage, frame: &[u8]) -> Option<Session> {
        let channel = self.initiator.finish(message).ok()?;
        let digest = provider().sha256(&[&self.hello, frame]);
        let digest = digest.expect("nothing is missing");
        Some(Session {
            sealer: channel.sealer,
            opener: channel.opener,
            transcript: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            sends: false,
        })
    }
}

/// A client that shares keys with the service.
pub struct Session {
    pub sealer: Sealer,
    pub opener: Opener,
    /// What the client confirms.
    pub transcript: String,
    /// Whether what it sends is encrypted already.
    pub sends: bool,
}
