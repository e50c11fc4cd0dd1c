//! The vectors of encryption in the folder `golden`: the same bytes as `golden/noise.py` makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use migration_ipc_crypto::provider::primitives::{
    Cipher, CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, Error, Hash, HashChoice,
    Random,
};
use migration_ipc_crypto::{
    Channel, HandshakeError, HandshakeMessage, Initiator, Key, Pattern, PrivateKey, Protocol,
    Provider, REKEY_AFTER, Responder, SharedKey, StaticKeys,
};
use serde::Deserialize;

const NOISE: &str = include_str!("../../../golden/extensions/noise.json");
const TRANSCRIPT: &str = include_str!("../../../golden/extensions/transcript.json");

#[derive(Deserialize)]
struct Vector {
    protocol: String,
    keys_hex: Keys,
    messages_hex: [String; 2],
    records: Vec<Record>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Keys {
    psk: Option<String>,
    client_static: Option<String>,
    service_static: Option<String>,
    client_ephemeral: String,
    service_ephemeral: String,
}

#[derive(Deserialize)]
struct Record {
    from: String,
    number: u64,
    plain_hex: String,
    record_hex: String,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    message_hex: String,
}

impl Keys {
    /// The client's key and the service's.
    fn keys(&self, pattern: Pattern) -> [Key; 2] {
        match pattern {
            Pattern::NnPsk0 => [(); 2].map(|()| {
                let psk: SharedKey = self.psk.as_ref().unwrap().parse().unwrap();
                Key::Shared(psk)
            }),
            Pattern::Kk => {
                let [client, service] = [&self.client_static, &self.service_static]
                    .map(|key| || key.as_ref().unwrap().parse::<PrivateKey>().unwrap());
                let keys = |private: PrivateKey, peer: PrivateKey| {
                    let peer = peer.public(&Provider::default()).unwrap();
                    Key::Static(StaticKeys { private, peer })
                };
                [keys(client(), service()), keys(service(), client())]
            }
        }
    }
}

/// A provider whose randomness is known: an ephemeral key is made of these bytes.
struct Known([u8; 32]);

impl Random for Known {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.copy_from_slice(&self.0);
        Ok(())
    }
}

impl CryptoResolver for Known {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Self(self.0)))
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

fn provider_with(ephemeral: &str) -> Provider {
    Provider::new(Known(from_hex(ephemeral).try_into().unwrap()))
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit");
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).expect("a byte"))
        .collect()
}

fn vectors() -> Vec<(Protocol, Vector)> {
    let vectors: Vec<Vector> = serde_json::from_str(NOISE).expect("the documented form");
    let with_protocol = |vector: Vector| (vector.protocol.parse().unwrap(), vector);
    let vectors: Vec<_> = vectors.into_iter().map(with_protocol).collect();
    for protocol in Protocol::ALL {
        assert!(vectors.iter().any(|(of, _)| *of == protocol), "{protocol}");
    }
    vectors
}

/// The client's end and the service's, whose messages are those of the vector.
fn session(protocol: Protocol, vector: &Vector) -> [Channel; 2] {
    let [client, service] = vector.keys_hex.keys(protocol.pattern);
    let provider = provider_with(&vector.keys_hex.client_ephemeral);
    let (message, initiator) = Initiator::begin(&client, protocol.suite, &provider).unwrap();
    assert_eq!(message.to_string(), vector.messages_hex[0], "{protocol}");

    let provider = provider_with(&vector.keys_hex.service_ephemeral);
    let (answer, theirs) =
        Responder::answer(&service, protocol.suite, &provider, &message).unwrap();
    assert_eq!(answer.to_string(), vector.messages_hex[1], "{protocol}");
    [initiator.finish(&answer).unwrap(), theirs]
}

/// Seals, at the one end, up to each record of the vector, and opens everything at the other.
fn hold_to(records: &[&Record], sends: &mut Channel, receives: &mut Channel) {
    let (mut wire, mut plain) = (Vec::new(), Vec::new());
    for record in records {
        while sends.sealer.records() < record.number {
            wire.clear();
            sends.sealer.seal(b"x", &mut wire).unwrap();
            receives.opener.open(&wire, &mut plain).unwrap();
        }
        let expected = from_hex(&record.record_hex);
        wire.clear();
        sends
            .sealer
            .seal(&from_hex(&record.plain_hex), &mut wire)
            .unwrap();
        assert_eq!(wire, expected, "{} {}", record.from, record.number);
        plain.clear();
        receives.opener.open(&expected, &mut plain).unwrap();
        assert_eq!(plain, from_hex(&record.plain_hex), "{}", record.number);
    }
}

#[test]
fn handshakes_and_records_are_those_of_the_vectors_before_and_after_the_rekey() {
    for (protocol, vector) in vectors() {
        let [mut client, mut service] = session(protocol, &vector);
        for from in ["client", "service"] {
            let mut records: Vec<_> = vector.records.iter().filter(|r| r.from == from).collect();
            records.sort_by_key(|record| record.number);
            for number in [0, REKEY_AFTER - 1, REKEY_AFTER] {
                assert!(records.iter().any(|record| record.number == number));
            }
            let (sends, receives) = match from {
                "client" => (&mut client, &mut service),
                _ => (&mut service, &mut client),
            };
            hold_to(&records, sends, receives);
        }
    }
}

#[test]
fn a_service_refuses_the_first_messages_that_the_vectors_refuse() {
    for (protocol, vector) in vectors() {
        let [_, service] = vector.keys_hex.keys(protocol.pattern);
        let provider = provider_with(&vector.keys_hex.service_ephemeral);
        let mut unreadable = 0;
        for refused in &vector.refused {
            let Ok(message) = refused.message_hex.parse::<HandshakeMessage>() else {
                // It is no message by its length alone.
                assert_ne!(refused.message_hex.len(), vector.messages_hex[0].len());
                continue;
            };
            unreadable += 1;
            let answered = Responder::answer(&service, protocol.suite, &provider, &message);
            let why = answered.map(|_| ()).unwrap_err();
            let name = &refused.name;
            assert_eq!(why, HandshakeError::Unreadable, "{protocol}: {name}");
        }
        assert!(unreadable > 4, "{protocol}");
    }
}

#[test]
fn the_digest_of_both_hellos_is_that_of_the_vectors() {
    #[derive(Deserialize)]
    struct Hellos {
        client_body: String,
        service_body: String,
        transcript: String,
    }

    let vectors: Vec<Hellos> = serde_json::from_str(TRANSCRIPT).expect("the documented form");
    assert!(!vectors.is_empty());
    for hellos in vectors {
        let frames = [&hellos.client_body, &hellos.service_body].map(|body| {
            let length = u32::try_from(body.len()).unwrap();
            [&length.to_le_bytes()[..], body.as_bytes()].concat()
        });
        let digest = Provider::default().sha256(&frames.each_ref().map(|frame| &frame[..]));
        assert_eq!(digest, Ok(from_hex(&hellos.transcript).try_into().unwrap()));
    }
}
