//! Who gets a session, and who does not.

mod common;

use common::{NAME, keyrings, sealed, session};
use migration_ipc_crypto::{
    HandshakeError, HandshakeMessage, Key, KeyPair, Keyring, Pattern, Protocol, Provider,
    RespondError, SharedKey, StaticKeys, Suite,
};

const UNREADABLE: RespondError = RespondError::Handshake(HandshakeError::Unreadable);

#[test]
fn both_ends_read_each_other_with_every_protocol() {
    for protocol in Protocol::ALL {
        let [mut client, mut service] = session(protocol);
        for text in [b"to the service".as_slice(), &[0; 200_000]] {
            let mut plain = Vec::new();
            let wire = sealed(&mut client, text);
            service.opener.open(&wire, &mut plain).unwrap();
            assert_eq!(plain, text, "{protocol}");
        }
        let mut plain = Vec::new();
        let wire = sealed(&mut service, b"to the client");
        client.opener.open(&wire, &mut plain).unwrap();
        assert_eq!(plain, b"to the client", "{protocol}");
    }
}

#[test]
fn a_record_shows_nothing_of_what_it_holds() {
    for protocol in Protocol::ALL {
        let [mut client, _] = session(protocol);
        let wire = sealed(&mut client, b"hunter2 hunter2 hunter2");
        assert!(!wire.windows(7).any(|bytes| bytes == b"hunter2"));
        assert_ne!(wire, sealed(&mut client, b"hunter2 hunter2 hunter2"));
    }
}

#[test]
fn another_key_under_the_same_name_is_no_key() {
    for suite in [Suite::ChaChaPoly, Suite::AesGcm] {
        let [client, _] = keyrings(Protocol::new(Pattern::NnPsk0, suite));
        let other = Keyring::new(NAME.parse().unwrap(), Key::Shared(SharedKey::new([8; 32])));
        let (opening, _) = client.initiate(suite).unwrap();
        let answered = other.respond(opening.protocol, NAME, &opening.message);
        assert_eq!(answered.unwrap_err(), UNREADABLE);
    }
}

#[test]
fn a_stranger_is_not_answered_with_static_keys() {
    let provider = Provider::default();
    let protocol = Protocol::new(Pattern::Kk, Suite::ChaChaPoly);
    let [_, service] = keyrings(protocol);
    let stranger = KeyPair::generate(&provider).unwrap();
    // The stranger knows the service's public key, which is no secret.
    let peer = match &**service.get(NAME).unwrap() {
        Key::Static(keys) => keys.private.public(&provider).unwrap(),
        Key::Shared(_) => unreachable!("the keys are static"),
    };
    let stranger = Keyring::new(
        NAME.parse().unwrap(),
        StaticKeys {
            private: stranger.private,
            peer,
        }
        .into(),
    );
    let (opening, _) = stranger.initiate(protocol.suite).unwrap();
    let answered = service.respond(protocol, NAME, &opening.message);
    assert_eq!(answered.unwrap_err(), UNREADABLE);
}

#[test]
fn a_client_takes_no_answer_of_a_service_without_the_key() {
    for protocol in Protocol::ALL {
        let [client, _] = keyrings(protocol);
        let (_, initiator) = client.initiate(protocol.suite).unwrap();
        let made_up = HandshakeMessage::new([9; 48]);
        assert_eq!(
            initiator.finish(&made_up).unwrap_err(),
            HandshakeError::Unreadable
        );
    }
}

#[test]
fn every_bit_of_both_messages_counts() {
    for protocol in Protocol::ALL {
        let [client, service] = keyrings(protocol);
        for bit in (0..48 * 8).step_by(7) {
            let (opening, initiator) = client.initiate(protocol.suite).unwrap();
            let mut bytes = *opening.message.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let answered = service.respond(protocol, NAME, &HandshakeMessage::new(bytes));
            // The top bit of an X25519 key is not part of its value (RFC 7748, section 5), but of
            // the transcript that the tag is over.
            assert_eq!(answered.unwrap_err(), UNREADABLE, "{protocol}, bit {bit}");

            let (answer, _) = service.respond(protocol, NAME, &opening.message).unwrap();
            let mut bytes = *answer.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let finished = initiator.finish(&HandshakeMessage::new(bytes));
            assert_eq!(finished.unwrap_err(), HandshakeError::Unreadable);
        }
    }
}

#[test]
fn a_message_for_one_protocol_is_not_read_as_one_for_another() {
    for pattern in [Pattern::NnPsk0, Pattern::Kk] {
        let [client, service] = keyrings(Protocol::new(pattern, Suite::ChaChaPoly));
        let (opening, _) = client.initiate(Suite::ChaChaPoly).unwrap();
        let other = Protocol::new(pattern, Suite::AesGcm);
        let answered = service.respond(other, NAME, &opening.message);
        assert_eq!(answered.unwrap_err(), UNREADABLE);
    }
}

#[test]
fn a_name_without_a_key_and_a_key_of_another_kind_are_said_to_be_so() {
    let [client, service] = keyrings(Protocol::new(Pattern::NnPsk0, Suite::ChaChaPoly));
    let (opening, _) = client.initiate(Suite::ChaChaPoly).unwrap();
    for name in ["2026-12", "", "a b", &"k".repeat(4000)] {
        let answered = service.respond(opening.protocol, name, &opening.message);
        assert_eq!(answered.unwrap_err(), RespondError::UnknownKey);
    }
    let kk = Protocol::new(Pattern::Kk, Suite::ChaChaPoly);
    let answered = service.respond(kk, NAME, &opening.message);
    assert_eq!(answered.unwrap_err(), RespondError::OtherKind);
}

#[test]
fn a_replayed_first_message_gets_a_session_that_its_sender_cannot_use() {
    for protocol in Protocol::ALL {
        let [client, service] = keyrings(protocol);
        let (opening, initiator) = client.initiate(protocol.suite).unwrap();
        let (answer, mut first) = service.respond(protocol, NAME, &opening.message).unwrap();
        let mut ours = initiator.finish(&answer).unwrap();
        let recorded = sealed(&mut ours, b"pay twice");
        let mut plain = Vec::new();
        first.opener.open(&recorded, &mut plain).unwrap();

        // Whoever recorded all of it says it again.
        let (_, mut second) = service.respond(protocol, NAME, &opening.message).unwrap();
        plain.clear();
        assert!(second.opener.open(&recorded, &mut plain).is_err());
        assert!(plain.is_empty());
    }
}

#[test]
fn a_replayed_answer_is_not_taken() {
    for protocol in Protocol::ALL {
        let [client, service] = keyrings(protocol);
        let (opening, _) = client.initiate(protocol.suite).unwrap();
        let (answer, _) = service.respond(protocol, NAME, &opening.message).unwrap();
        let (_, second) = client.initiate(protocol.suite).unwrap();
        assert_eq!(
            second.finish(&answer).unwrap_err(),
            HandshakeError::Unreadable
        );
    }
}

#[test]
fn an_ephemeral_key_of_small_order_is_of_no_use_to_a_stranger() {
    // A stranger may make its ephemeral part of the secret a known one: the rest remains.
    for protocol in Protocol::ALL {
        let [_, service] = keyrings(protocol);
        for bytes in [[0; 48], {
            let mut bytes = [0; 48];
            bytes[0] = 1;
            bytes
        }] {
            let answered = service.respond(protocol, NAME, &HandshakeMessage::new(bytes));
            assert_eq!(answered.unwrap_err(), UNREADABLE);
        }
    }
}

#[test]
fn a_message_is_text_of_exactly_its_length() {
    let message = HandshakeMessage::new([0xa5; 48]);
    assert_eq!(message.to_string().parse(), Ok(message));
    assert_eq!(message.to_string().to_uppercase().parse(), Ok(message));
    for text in [
        "",
        "a5",
        &"a5".repeat(47),
        &"a5".repeat(49),
        &"+5".repeat(48),
    ] {
        assert!(text.parse::<HandshakeMessage>().is_err(), "{text}");
    }
}

#[test]
fn keys_are_replaced_by_names_without_a_break() {
    let key = |byte| Key::Shared(SharedKey::new([byte; 32]));
    let [old, new] = ["2026-11", "2026-12"].map(|name| name.parse().unwrap());
    let before = Keyring::new(old, key(1));
    let both = before.clone().with(new, key(2)).unwrap();
    let client = both
        .clone()
        .with_default("2026-12".parse().unwrap())
        .unwrap();
    let after = Keyring::new("2026-12".parse().unwrap(), key(2));
    let meets = |client: &Keyring, service: &Keyring| {
        let (opening, _) = client.initiate(Suite::ChaChaPoly).unwrap();
        service
            .respond(opening.protocol, opening.key.as_str(), &opening.message)
            .is_ok()
    };
    assert!(meets(&before, &both), "the service has both");
    assert!(meets(&client, &both), "the client uses the new one");
    assert!(meets(&client, &after), "the old one is gone");
    assert!(!meets(&before, &after), "and is of no use any more");
    assert!(
        both.clone()
            .with("2026-11".parse().unwrap(), key(3))
            .is_err()
    );
    assert!(both.with_default("2027-01".parse().unwrap()).is_err());
}
