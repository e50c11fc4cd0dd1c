//! Peers that know the key, or do not, and break the rules of encryption. Each ends its own connection
//! and hurts nobody else's.

use std::time::Duration;

use migration_ipc::DisconnectReason;
use migration_ipc::transport::memory::{self, MemoryConnector};
use migration_ipc::{ConnectError, IpcServer};
use serde_json::{Value, json};

use crate::common::*;
use crate::noise::NoisePeer;
use crate::stage::*;

async fn session(connector: &MemoryConnector) -> NoisePeer {
    let stream = connector.connect(user("1000")).await.unwrap();
    NoisePeer::as_client(stream, &keyring()).await
}

async fn agreed(connector: &MemoryConnector) -> (NoisePeer, crate::noise::Hellos) {
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::over(stream);
    let hellos = peer.agree_as_client(&keyring(), SUITES[0]).await;
    (peer, hellos)
}

/// What the next connection of the server to end ends with.
async fn violation(server: &IpcServer, act: impl AsyncFnOnce()) -> String {
    let mut events = server.events();
    act().await;
    match next_end(&mut events).await.reason {
        DisconnectReason::Violation(text) => text,
        other => panic!("no violation: {other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn records_that_are_changed_repeated_or_made_up_end_the_connection() {
    let (server, connector, heard) = service(|server| server.encryption(required())).await;
    let bystander = connect(&connector, |client| client.encryption(required()))
        .await
        .unwrap();
    type Attack = fn(Vec<u8>, Vec<u8>) -> Vec<u8>;
    let attacks: [(&str, Attack, &str); 6] = [
        (
            "a flipped bit",
            |mut one, _| {
                one[9] ^= 1;
                one
            },
            "not made by the peer",
        ),
        (
            "a shorter tag",
            |mut one, _| {
                one.pop();
                one[0] -= 1;
                one
            },
            "not made by the peer",
        ),
        (
            "repeated",
            |one, _| [one.clone(), one].concat(),
            "not made by the peer",
        ),
        (
            "the wrong order",
            |one, two| [two, one].concat(),
            "not made by the peer",
        ),
        ("garbage", |_, _| vec![0x55; 30_000], "not made by the peer"),
        ("a length of 16", |_, _| vec![16, 0], "16 bytes"),
    ];
    for (what, attack, expected) in attacks {
        let before = heard.all().len();
        let mut peer = session(&connector).await;
        let one = peer.message("USER_ACTION", action("one"));
        let two = peer.message("USER_ACTION", action("two"));
        let text = violation(&server, async || peer.write(&attack(one, two)).await).await;
        assert!(text.contains(expected), "{what}: {text}");
        // Of one write, nothing before the wrong record is handled either.
        assert_eq!(heard.all().len(), before, "{what}");
        peer.ends().await;
    }
    bystander
        .send_acknowledged(unlock("bystander"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_frame_in_the_clear_behind_the_marker_ends_the_connection() {
    let (server, connector, heard) = service(|server| server.encryption(offered())).await;
    // Before the confirmation, and behind it.
    let (mut peer, _) = agreed(&connector).await;
    violation(&server, async || {
        peer.send("ENCRYPTED", json!({})).await;
        peer.send("USER_ACTION", action("clear")).await;
    })
    .await;
    let mut peer = session(&connector).await;
    let clear = frame(&envelope("c", "USER_ACTION", action("clear")).to_string());
    let padded = [clear, vec![0; 70_000]].concat();
    violation(&server, async || peer.write(&padded).await).await;
    assert_eq!(heard.all(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_demands_encryption_takes_nothing_but_the_marker_behind_the_hello() {
    let (server, connector, heard) = service(|server| server.encryption(required())).await;
    for message_type in ["USER_ACTION", "AGENT_STARTED", "HEARTBEAT", "HELLO"] {
        let (mut peer, _) = agreed(&connector).await;
        let text = violation(&server, async || {
            peer.send(message_type, action("clear")).await;
        })
        .await;
        assert!(text.contains("in the clear"), "{text}");
    }
    assert_eq!(heard.all(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_is_encrypted_begins_with_the_right_confirmation() {
    let (server, connector, heard) = service(|server| server.encryption(offered())).await;
    let firsts: [(&str, Value); 5] = [
        ("USER_ACTION", action("first")),
        ("ENCRYPTION_CONFIRM", json!({"transcript": "0".repeat(64)})),
        ("ENCRYPTION_CONFIRM", json!({"transcript": "0"})),
        ("ENCRYPTION_CONFIRM", json!({})),
        ("ENCRYPTED", json!({})),
    ];
    for (message_type, payload) in firsts {
        let (mut peer, _) = agreed(&connector).await;
        let text = violation(&server, async || {
            peer.send("ENCRYPTED", json!({})).await;
            peer.seal_from_here();
            peer.send(message_type, payload).await;
        })
        .await;
        assert!(text.contains("confirm"), "{text}");
    }
    assert_eq!(heard.all(), Vec::<String>::new());
}

/// The same at the client's end.
#[tokio::test(start_paused = true)]
async fn a_service_has_to_confirm_before_it_says_anything_else() {
    let firsts: [(&str, Value); 2] = [
        ("CONFIGURATION_UPDATE", json!({"key": "x", "value": 1})),
        ("ENCRYPTION_CONFIRM", json!({"transcript": "0".repeat(64)})),
    ];
    for (message_type, payload) in firsts {
        let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
        let heard = Heard::default();
        let connecting = tokio::spawn(agent(&heard).encryption(offered()).connect_over(at_client));
        let mut peer = NoisePeer::over(at_service);
        peer.agree_as_service(&keyring(), |_| {}).await;
        peer.send(message_type, payload).await;
        match within(connecting).await.unwrap() {
            Err(ConnectError::Ended(DisconnectReason::Violation(text))) => {
                assert!(text.contains("confirm"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(heard.all(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_answers_and_does_not_confirm_is_not_waited_for_for_ever() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let client = agent(&Heard::default())
        .encryption(offered())
        .connect_timeout(LONG_PATIENCE);
    let connecting = tokio::spawn(client.connect_over(at_client));
    let mut peer = NoisePeer::over(at_service);
    peer.agree_as_service(&keyring(), |_| {}).await;
    match tokio::time::timeout(LONG_PATIENCE, connecting)
        .await
        .unwrap()
        .unwrap()
    {
        Err(ConnectError::Ended(DisconnectReason::HandshakeTimeout)) => {}
        other => panic!("{other:?}"),
    }
}

/// Neither the marker nor the confirmation may be put off while other messages are sent.
#[tokio::test(start_paused = true)]
async fn a_client_that_agreed_and_goes_on_in_the_clear_has_a_time_limit() {
    let (server, connector, _) = service(|server| server.encryption(offered())).await;
    let mut events = server.events();
    let (mut peer, _) = agreed(&connector).await;
    for number in 0..40 {
        peer.send("HEARTBEAT", heartbeat(number)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::HandshakeTimeout);
}

#[tokio::test(start_paused = true)]
async fn ciphertext_means_nothing_to_a_peer_that_did_not_negotiate_it() {
    let (server, connector, heard) = service(|server| server.encryption(offered())).await;
    let mut sealing = session(&connector).await;
    let record = sealing.message("USER_ACTION", action("sealed"));
    for negotiates in [false, true] {
        let mut events = server.events();
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        if negotiates {
            peer.hello("agent", 10).await;
        } else {
            peer.send("USER_ACTION", action("plain")).await;
            peer.receive_acknowledgment().await;
        }
        // Its length and its first bytes make a frame's length, of which the rest is not there.
        let mut bytes = record.clone();
        bytes[3] = 0x7f;
        peer.write(&bytes).await;
        let end = next_end(&mut events).await;
        assert_eq!(end.reason.label(), "framing");
    }
    assert_eq!(heard.all(), ["plain"]);
}

/// The messages of the handshake are types without a handler, to whoever did not negotiate.
#[tokio::test(start_paused = true)]
async fn the_marker_and_the_confirmation_mean_nothing_without_the_capability() {
    let (_server, connector, _) = service(|server| server.encryption(offered())).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 10).await;
    for (message_type, payload) in [
        ("ENCRYPTED", json!({})),
        ("ENCRYPTION_CONFIRM", json!({"transcript": "0".repeat(64)})),
    ] {
        peer.send(message_type, payload).await;
        assert_eq!(peer.receive_acknowledgment().await["code"], "no_handler");
    }
}

/// Everything that an honest client once sent, sent again: the service answers the hello with keys of
/// its own, and the rest cannot be opened.
#[tokio::test(start_paused = true)]
async fn a_recorded_connection_cannot_be_replayed() {
    let (server, connector, heard) = service(|server| server.encryption(required())).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let tape = Tape::default();
    let client = agent(&Heard::default())
        .encryption(required())
        .connect_over(tape.tap(stream))
        .await
        .unwrap();
    client.send_acknowledged(unlock("once")).await.unwrap();
    assert_eq!(heard.all(), ["once"]);
    client.disconnect().await;
    eventually("the service is alone", || {
        server.connections().all().is_empty()
    })
    .await;

    let stream = connector.connect(user("1000")).await.unwrap();
    let mut replay = NoisePeer::over(stream);
    let text = violation(&server, async || replay.write(&tape.sent()).await).await;
    assert!(text.contains("not made by the peer"), "{text}");
    assert_eq!(heard.all(), ["once"]);
}

/// A service that agrees without having been asked, or without its part.
#[tokio::test(start_paused = true)]
async fn an_answer_with_encryption_that_does_not_fit_is_refused_or_ignored() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let connecting = tokio::spawn(agent(&Heard::default()).connect_over(at_client));
    let mut peer = WirePeer::over(at_service);
    let original = peer.receive().await;
    let mut answer = hello("agent", 100);
    answer["capabilities"]
        .as_array_mut()
        .unwrap()
        .push(json!("encryption"));
    answer["encryption"] = json!({"message": "00"});
    peer.reply(&original, "HELLO", answer).await;
    let client = within(connecting).await.unwrap().unwrap();
    assert!(!client.connection().is_encrypted(), "it was not asked");

    for part in [
        Value::Null,
        json!({"message": ""}),
        json!({"message": "zz"}),
    ] {
        let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
        let client = agent(&Heard::default()).encryption(offered());
        let connecting = tokio::spawn(client.connect_over(at_client));
        let mut peer = WirePeer::over(at_service);
        let original = peer.receive().await;
        let mut answer = hello("agent", 100);
        answer["capabilities"]
            .as_array_mut()
            .unwrap()
            .push(json!("encryption"));
        answer["encryption"] = part;
        peer.reply(&original, "HELLO", answer).await;
        match within(connecting).await.unwrap() {
            Err(ConnectError::Ended(DisconnectReason::Violation(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}
