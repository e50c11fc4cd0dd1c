//! Sessions between two ends that know each other.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use migration_ipc_crypto::{
    Channel, Key, KeyPair, Keyring, Pattern, Protocol, Provider, SharedKey, StaticKeys,
};

pub(crate) const NAME: &str = "2026-11";

/// The same keys at both ends: the client's and the service's.
pub(crate) fn keyrings(protocol: Protocol) -> [Keyring; 2] {
    keys(protocol).map(|key| Keyring::new(NAME.parse().unwrap(), key))
}

fn keys(protocol: Protocol) -> [Key; 2] {
    match protocol.pattern {
        Pattern::NnPsk0 => [(); 2].map(|()| Key::Shared(SharedKey::new([7; 32]))),
        Pattern::Kk => {
            let provider = Provider::default();
            let [client, service] = [(); 2].map(|()| KeyPair::generate(&provider).unwrap());
            let publics = [service.public, client.public];
            let mut peers = publics.into_iter();
            [client, service].map(|pair| {
                Key::from(StaticKeys {
                    private: pair.private,
                    peer: peers.next().unwrap(),
                })
            })
        }
    }
}

/// A session: the client's end and the service's.
pub(crate) fn session(protocol: Protocol) -> [Channel; 2] {
    session_between(keyrings(protocol), protocol)
}

pub(crate) fn session_between([client, service]: [Keyring; 2], protocol: Protocol) -> [Channel; 2] {
    let (opening, initiator) = client.initiate(protocol.suite).unwrap();
    assert_eq!(opening.protocol, protocol);
    let (answer, theirs) = service
        .respond(opening.protocol, opening.key.as_str(), &opening.message)
        .unwrap();
    [initiator.finish(&answer).unwrap(), theirs]
}

pub(crate) fn sealed(channel: &mut Channel, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    channel.sealer.seal(plain, &mut out).unwrap();
    out
}
