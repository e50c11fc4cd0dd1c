//! Messages of which their sender does not want to be told that they were handled.

use std::time::Duration;

use migration_ipc::messages::UserAction;
use serde_json::{Value, json};

use crate::common::*;
use crate::stage::*;

/// Sends a message with this member `ack`; returns its id.
async fn send_with_ack(
    peer: &mut WirePeer,
    (message_type, payload): (&str, Value),
    ack: &str,
) -> String {
    let (id, _) = peer.frame(message_type, json!({}));
    let body = format!(
        r#"{{"id":"{id}","type":"{message_type}","timestamp":"2024-01-01T12:00:00Z","ack":{ack},"payload":{payload}}}"#
    );
    peer.write(&frame(&body)).await;
    id
}

#[tokio::test(start_paused = true)]
async fn a_success_is_not_told_and_a_failure_and_a_reply_are() {
    let (_server, _gate, mut peer) = serve_peer(&["noAck"]).await;
    send_with_ack(&mut peer, ok(), "false").await;
    let failed = send_with_ack(&mut peer, fail(), "false").await;
    let acknowledgment = peer.receive_acknowledgment().await;
    assert_eq!(acknowledgment["originalMessageId"], failed);
    assert_eq!(acknowledgment["success"], false);
    let asked = send_with_ack(&mut peer, report(), "false").await;
    assert_eq!(peer.receive().await["inReplyTo"], asked);
    let unknown = send_with_ack(&mut peer, ("NO_SUCH_TYPE", json!({})), "false").await;
    let acknowledgment = peer.receive_acknowledgment().await;
    assert_eq!(acknowledgment["originalMessageId"], unknown);
    send_with_ack(&mut peer, ok(), "false").await;
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn it_is_the_same_where_many_are_acknowledged_with_one() {
    let (_server, _gate, mut peer) = serve_peer(&["noAck", "ackRanges"]).await;
    send_with_ack(&mut peer, ok(), "false").await;
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    send_with_ack(&mut peer, fail(), "false").await;
    let told = peer.receive_type("ACKNOWLEDGMENTS").await;
    assert_eq!(told["payload"].get("handled"), None);
    assert_eq!(told["payload"]["failed"][0]["frame"], 3);
    peer.send("USER_ACTION", action("x")).await;
    let told = peer.receive_type("ACKNOWLEDGMENTS").await;
    assert_eq!(told["payload"], json!({"handled": [[4, 4]]}));
}

#[tokio::test(start_paused = true)]
async fn true_and_null_are_the_same_as_no_member() {
    let (_server, _gate, mut peer) = serve_peer(&["noAck"]).await;
    for ack in ["true", "null"] {
        let id = send_with_ack(&mut peer, ok(), ack).await;
        let acknowledgment = peer.receive_acknowledgment().await;
        assert_eq!(acknowledgment["originalMessageId"], id);
        assert_eq!(acknowledgment["success"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn another_value_is_malformed() {
    let (_server, _gate, mut peer) = serve_peer(&["noAck"]).await;
    for ack in ["0", "1", "\"false\"", "[]", "{}", "-1e9"] {
        let id = send_with_ack(&mut peer, ok(), ack).await;
        let acknowledgment = peer.receive_acknowledgment().await;
        assert_eq!(acknowledgment["originalMessageId"], id, "{ack}");
        assert_eq!(acknowledgment["code"], "malformed", "{ack}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_member_means_nothing_where_it_was_not_negotiated() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    for (frame, ack) in [(2, "false"), (3, "7")] {
        send_with_ack(&mut peer, ok(), ack).await;
        let told = peer.receive_type("ACKNOWLEDGMENTS").await;
        assert_eq!(told["payload"], json!({"handled": [[frame, frame]]}));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_declines_what_it_does_not_wait_for() {
    let (client, mut service) = client_of(&["noAck"], 100, None).await;
    let connection = client.connection().clone();
    connection.send(UserAction::new("", "a")).await.unwrap();
    connection.try_send(UserAction::new("", "b")).unwrap();
    for name in ["a", "b"] {
        let message = service.receive_type("USER_ACTION").await;
        assert_eq!(message["payload"]["action"], name);
        assert_eq!(message["ack"], false);
    }
    let asking = tokio::spawn(async move {
        let action = UserAction::new("", "c");
        connection.send_acknowledged(action).await
    });
    let message = service.receive_type("USER_ACTION").await;
    assert_eq!(message.get("ack"), None);
    service.acknowledge(&message).await;
    within(asking).await.unwrap().unwrap();
    // It says nothing of the kind of what is never acknowledged.
    let heartbeat = service.receive_type("HEARTBEAT").await;
    assert_eq!(heartbeat.get("ack"), None);
}

#[tokio::test(start_paused = true)]
async fn a_client_declines_nothing_where_it_was_not_negotiated() {
    let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
    let connection = client.connection();
    connection.send(UserAction::new("", "a")).await.unwrap();
    let message = service.receive_type("USER_ACTION").await;
    assert_eq!(message.get("ack"), None);
}
