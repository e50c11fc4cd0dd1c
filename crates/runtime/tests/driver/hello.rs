//! Who is a new peer and who a plain one.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::transport::memory;
use migration_ipc::{
    Capability, ConnectError, DisconnectReason, IpcClient, MessageDispatcher, SchemaFingerprint,
    ServiceKind,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::served_peer;

// --- the service's side --------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_hello_is_answered_with_what_both_can_do() {
    let (_server, mut peer) = served_peer().await;
    let id = peer.send("HELLO", hello("agent", 10)).await;
    let answer = peer.receive().await;
    assert_eq!(
        (&answer["type"], &answer["inReplyTo"]),
        (&json!("HELLO"), &json!(id))
    );
    assert_eq!(
        answer["payload"],
        json!({"protocol": {"min": 1, "max": 1}, "role": "agent", "credit": 1024,
               "capabilities": ["inReplyTo", "credit", "errorCodes", "goodbye"]})
    );
}

#[tokio::test(start_paused = true)]
async fn unknown_capabilities_and_members_of_a_hello_are_ignored() {
    let (_server, mut peer) = served_peer().await;
    let hello = json!({"protocol": {"min": 0, "max": 99}, "role": "agent", "credit": 1,
                       "capabilities": ["zstd", "errorCodes", "\u{1F600}"], "more": {"x": []}});
    peer.send("HELLO", hello).await;
    let answer = peer.receive().await;
    assert_eq!(answer["payload"]["capabilities"], json!(["errorCodes"]));
    assert_eq!(answer["payload"]["protocol"], json!({"min": 1, "max": 1}));
    peer.send("BACKUP_STARTED", json!({})).await;
    assert_eq!(peer.receive_acknowledgment().await["code"], "no_handler");
}

#[tokio::test(start_paused = true)]
async fn whoever_says_what_it_was_built_with_is_told_the_same_and_is_not_refused_for_it() {
    for theirs in ["something else", "\u{7}", ""] {
        let (_server, mut peer) = served_peer().await;
        let mut hello = hello("agent", 10);
        hello["schema"] = json!(theirs);
        peer.send("HELLO", hello).await;
        let answer = peer.receive().await;
        let ours = SchemaFingerprint::BUILT_IN.to_string();
        assert_eq!(answer["payload"]["schema"], json!(ours));
    }
}

/// Whatever was not negotiated is not on the wire.
#[tokio::test(start_paused = true)]
async fn a_peer_that_can_do_nothing_new_gets_the_plain_wire() {
    let (server, mut peer) = served_peer().await;
    let hello = json!({"protocol": {"min": 1, "max": 1}, "role": "agent"});
    peer.send("HELLO", hello).await;
    peer.receive().await;
    peer.send("BACKUP_STARTED", json!({})).await;
    let answer = peer.receive().await;
    let members = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(members(&answer), ["id", "payload", "timestamp", "type"]);
    let expected = ["error", "originalMessageId", "success", "timestamp"];
    assert_eq!(members(&answer["payload"]), expected);
    let stopping = tokio::spawn(server.stop(PATIENCE));
    assert_eq!(
        peer.receive_to_end().await,
        Vec::<Value>::new(),
        "no goodbye"
    );
    drop(peer);
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_is_not_the_first_message_is_refused_and_changes_nothing() {
    for first in ["USER_ACTION", "HELLO"] {
        let (_server, mut peer) = served_peer().await;
        let payload = match first {
            "HELLO" => hello("agent", 10),
            _ => action("x"),
        };
        peer.send(first, payload).await;
        peer.receive().await;
        peer.send("HELLO", hello("agent", 10)).await;
        assert_eq!(peer.receive_acknowledgment().await["success"], false);
        peer.send("USER_ACTION", action("x")).await;
        assert_eq!(
            peer.receive_acknowledgment().await["success"],
            true,
            "it lives on"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_over_4_kib_is_refused() {
    let (server, mut peer) = served_peer().await;
    let mut events = server.events();
    let mut big = hello("agent", 10);
    big["padding"] = json!("x".repeat(4096));
    peer.send("HELLO", big).await;
    let end = next_end(&mut events).await;
    assert!(
        matches!(&end.reason, DisconnectReason::Refused(text) if text.contains("4096")),
        "{end:?}"
    );

    let (_server, mut peer) = served_peer().await;
    let mut fits = hello("agent", 10);
    let (_, frame) = peer.frame("HELLO", fits.clone());
    // All but the length, the empty padding's `,"padding":""` and a byte to spare.
    fits["padding"] = json!("x".repeat(4096 - (frame.len() - 4) - 14));
    peer.send("HELLO", fits).await;
    assert_eq!(peer.receive().await["type"], "HELLO");
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_cannot_be_met_is_answered_with_the_reason() {
    let version = json!({"protocol": {"min": 7, "max": 9}, "role": "agent"});
    let role = json!({"protocol": {"min": 1, "max": 1}, "role": "emperor"});
    let operator = hello("operator", 1);
    for (hello, code) in [(version, "version"), (role, "role"), (operator, "role")] {
        let (server, mut peer) = served_peer().await;
        let mut events = server.events();
        peer.send("HELLO", hello).await;
        let messages = peer.receive_to_end().await;
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert_eq!(messages[0]["payload"]["refused"]["code"], code);
        drop(peer);
        let end = next_end(&mut events).await;
        assert!(
            matches!(end.reason, DisconnectReason::Refused(_)),
            "{end:?}"
        );
    }
}

// --- the client's side ---------------------------------------------------------------------------

type Connecting = JoinHandle<Result<IpcClient, ConnectError>>;

/// A client that connects, and its service with what the client said first.
async fn connecting() -> (Connecting, WirePeer, Value) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let setup = client().announce(&AgentStarted::new("jdoe", "1.0.0", "1"));
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    assert_eq!(hello["type"], "HELLO");
    // In the same flight: no peer needs more than one extra round trip.
    assert_eq!(service.receive().await["type"], "AGENT_STARTED");
    (connecting, service, hello)
}

async fn connected(connecting: Connecting) -> IpcClient {
    within(connecting).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_answer_settles_a_new_service() {
    let (connecting, mut service, hello) = connecting().await;
    let start = Instant::now();
    service.answer_hello(&hello, 10).await;
    let client = connected(connecting).await;
    assert!(start.elapsed() < Duration::from_millis(100));
    match client.service_kind() {
        ServiceKind::New(capabilities) => assert!(capabilities.contains(Capability::Credit)),
        ServiceKind::Plain => panic!("it said hello"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_acknowledgment_means_a_plain_service() {
    let (connecting, mut service, hello) = connecting().await;
    let start = Instant::now();
    let mut refusal = acknowledgment(&hello);
    refusal["success"] = json!(false);
    refusal["error"] = json!("No handler registered for message type: HELLO");
    service.send("ACKNOWLEDGMENT", refusal).await;
    let client = connected(connecting).await;
    assert_eq!(client.service_kind(), ServiceKind::Plain);
    assert!(start.elapsed() < Duration::from_millis(100));
    client.send(UserAction::new("", "x")).await.unwrap();
    assert_eq!(service.receive().await["type"], "USER_ACTION");
}

#[tokio::test(start_paused = true)]
async fn two_seconds_of_silence_mean_a_plain_service() {
    let (connecting, mut service, _) = connecting().await;
    let start = Instant::now();
    let client = connected(connecting).await;
    assert_eq!(client.service_kind(), ServiceKind::Plain);
    let waited = start.elapsed().as_millis();
    assert!((1_990..2_100).contains(&waited), "{waited} ms");
    client.send(UserAction::new("", "x")).await.unwrap();
    assert_eq!(service.receive().await["type"], "USER_ACTION");
    // A plain service gets no acknowledgment.
    service.send("STATUS_UPDATE", json!({})).await;
    assert_eq!(service.receive().await["type"], "HEARTBEAT");
}

/// What the client sent as to a plain service was sent on the credit that the late answer grants.
#[tokio::test(start_paused = true)]
async fn a_late_answer_still_makes_the_service_a_new_one() {
    let (connecting, mut service, hello) = connecting().await;
    let client = connected(connecting).await;
    assert_eq!(client.service_kind(), ServiceKind::Plain);
    for _ in 0..3 {
        client.send(UserAction::new("", "early")).await.unwrap();
        assert_eq!(service.receive().await["payload"]["action"], "early");
    }
    // The announcement and the three leave two of six.
    service.answer_hello(&hello, 6).await;
    settle().await;
    for _ in 0..3 {
        client.send(UserAction::new("", "late")).await.unwrap();
    }
    for _ in 0..2 {
        assert_eq!(service.receive().await["payload"]["action"], "late");
    }
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
    let closing = tokio::spawn(client.disconnect());
    service.send("CREDIT", json!({"messages": 1})).await;
    assert_eq!(service.receive().await["payload"]["action"], "late");
    assert_eq!(service.receive().await["type"], "GOODBYE");
    drop(service);
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_first_message_that_is_no_hello_means_a_plain_service() {
    let (connecting, mut service, _) = connecting().await;
    let start = Instant::now();
    service.send("STATUS_UPDATE", json!({})).await;
    assert_eq!(
        connected(connecting).await.service_kind(),
        ServiceKind::Plain
    );
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_somebody_elses_hello_settles_nothing() {
    let (connecting, mut service, hello) = connecting().await;
    service.answer_hello(&json!({"id": "another"}), 10).await;
    settle().await;
    assert!(!connecting.is_finished());
    service.answer_hello(&hello, 10).await;
    assert!(matches!(
        connected(connecting).await.service_kind(),
        ServiceKind::New(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_client_without_hello_is_a_plain_peer() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let client = IpcClient::builder(MessageDispatcher::empty())
        .without_hello()
        .announce(&AgentStarted::new("jdoe", "1.0.0", "1"))
        .connect_over(at_client)
        .await
        .unwrap();
    assert_eq!(service.receive().await["type"], "AGENT_STARTED");
    client.send(UserAction::new("", "x")).await.unwrap();
    assert_eq!(service.receive().await["type"], "USER_ACTION");
    let closing = tokio::spawn(client.disconnect());
    assert_eq!(
        service.receive_to_end().await,
        Vec::<Value>::new(),
        "no goodbye"
    );
    drop(service);
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_leaves_during_the_hello_is_an_error_with_the_reason() {
    let (connecting, service, _) = connecting().await;
    drop(service);
    match within(connecting).await.unwrap() {
        Err(ConnectError::Ended(DisconnectReason::ClosedByPeer)) => {}
        other => panic!("{other:?}"),
    }
}
