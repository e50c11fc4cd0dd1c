//! What a receiver tells of many messages.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::*;
use crate::stage::*;

/// The payload of the next message, which is an acknowledgment of many.
async fn ranges(peer: &mut WirePeer) -> Value {
    let mut message = peer.receive().await;
    assert_eq!(message["type"], "ACKNOWLEDGMENTS", "{message}");
    message["payload"].take()
}

#[tokio::test(start_paused = true)]
async fn messages_that_arrive_together_are_acknowledged_together() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    send_together(&mut peer, (0..100).map(|_| ok())).await;
    assert_eq!(ranges(&mut peer).await, json!({"handled": [[2, 101]]}));
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_alone_is_acknowledged_at_once() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    let start = Instant::now();
    for frame in 2..10 {
        peer.send("USER_ACTION", action("x")).await;
        assert_eq!(
            ranges(&mut peer).await,
            json!({"handled": [[frame, frame]]})
        );
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_told_with_its_frame_and_no_range_has_it() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    let unknown = ("NO_SUCH_TYPE", json!({}));
    send_together(&mut peer, [ok(), ok(), fail(), ok(), unknown, ok()]).await;
    let expected = json!({
        "handled": [[2, 3], [5, 5], [7, 7]],
        "failed": [
            {"frame": 4, "error": "no such thing", "code": "busy"},
            {"frame": 6, "error": "No handler registered for message type: NO_SUCH_TYPE",
             "code": "no_handler"},
        ],
    });
    assert_eq!(ranges(&mut peer).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_reply_comes_behind_what_was_answered_before_it() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    let ids = send_together(&mut peer, [ok(), fail(), report(), ok(), ok()]).await;
    let before = ranges(&mut peer).await;
    assert_eq!(before["handled"], json!([[2, 2]]));
    assert_eq!(before["failed"][0]["frame"], 3);
    let reply = peer.receive().await;
    assert_eq!(reply["type"], "BACKUP_REQUEST");
    assert_eq!(reply["inReplyTo"], ids[2]);
    assert_eq!(ranges(&mut peer).await, json!({"handled": [[5, 6]]}));
}

#[tokio::test(start_paused = true)]
async fn no_range_covers_a_message_whose_handler_is_at_work() {
    let (_server, gate, mut peer) = serve_peer(&["ackRanges"]).await;
    send_together(&mut peer, [ok(), slow(), ok(), slow(), ok()]).await;
    let expected = json!({"handled": [[2, 2], [4, 4], [6, 6]]});
    assert_eq!(ranges(&mut peer).await, expected);
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    gate.admit(1);
    assert_eq!(ranges(&mut peer).await, json!({"handled": [[3, 3]]}));
    gate.admit(1);
    assert_eq!(ranges(&mut peer).await, json!({"handled": [[5, 5]]}));
}

#[tokio::test(start_paused = true)]
async fn a_range_goes_on_over_control_messages() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    let beat = || ("HEARTBEAT", heartbeat(1));
    send_together(&mut peer, [ok(), beat(), beat(), ok(), beat(), ok()]).await;
    assert_eq!(ranges(&mut peer).await, json!({"handled": [[2, 7]]}));
}

/// Whoever sent it may be waiting to hear that it was handled.
#[tokio::test(start_paused = true)]
async fn no_range_covers_what_could_not_be_read_or_is_answered_by_silence() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    let good = |peer: &mut WirePeer| peer.frame("USER_ACTION", action("x")).1;
    let mut bytes = good(&mut peer);
    bytes.extend(frame("no envelope"));
    bytes.extend(good(&mut peer));
    bytes.extend(peer.frame(silent().0, silent().1).1);
    bytes.extend(good(&mut peer));
    peer.write(&bytes).await;
    let expected = json!({"handled": [[2, 2], [4, 4], [6, 6]]});
    assert_eq!(ranges(&mut peer).await, expected);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_envelope_and_has_an_id_fails_by_its_frame() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    peer.write(&frame(r#"{"id":"m","type":5}"#)).await;
    let told = ranges(&mut peer).await;
    assert_eq!(told["failed"][0]["frame"], 2);
    assert_eq!(told["failed"][0]["code"], "malformed");
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_it_gets_one_acknowledgment_for_each_message() {
    let (_server, _gate, mut peer) = serve_peer(&["noAck"]).await;
    let ids = send_together(&mut peer, [ok(), ok(), fail(), ok()]).await;
    for (index, id) in ids.iter().enumerate() {
        let acknowledgment = peer.receive_acknowledgment().await;
        assert_eq!(acknowledgment["originalMessageId"], **id);
        assert_eq!(acknowledgment["success"], index != 2);
    }
}

/// More than one message may name, and more text than a message may have.
#[tokio::test(start_paused = true)]
async fn many_failures_are_told_in_as_many_messages_as_it_takes() {
    let (_server, _gate, mut peer) = serve_peer(&["ackRanges"]).await;
    let long = || ("x".repeat(256).leak() as &str, json!({}));
    send_together(&mut peer, (0..300).map(|_| long())).await;
    let mut failed = Vec::new();
    while failed.len() < 300 {
        let message = peer.receive().await;
        if message["type"] == "ACKNOWLEDGMENTS" {
            assert!(message.to_string().len() < 64 * 1024);
            let some = message["payload"]["failed"].as_array().unwrap();
            failed.extend(some.iter().map(|failed| failed["frame"].as_u64().unwrap()));
        }
    }
    assert_eq!(failed, (2..302).collect::<Vec<_>>());
}

/// What was received before a goodbye is answered before it.
#[tokio::test(start_paused = true)]
async fn a_stopping_server_acknowledges_what_it_handled_and_says_goodbye_last() {
    let (server, gate, mut peer) = serve_peer(&["ackRanges"]).await;
    send_together(&mut peer, [ok(), slow()]).await;
    assert_eq!(ranges(&mut peer).await, json!({"handled": [[2, 2]]}));
    let stopping = tokio::spawn(server.stop(Duration::from_secs(5)));
    settle().await;
    peer.send("USER_ACTION", action("x")).await;
    gate.open();
    let mut told = Vec::new();
    while let Some(message) = peer.receive_or_end().await {
        told.push(message);
        if told.last().unwrap()["type"] == "GOODBYE" {
            break;
        }
    }
    drop(peer);
    within(stopping).await.unwrap();
    let text = Value::from(told).to_string();
    assert!(text.contains(r#""handled":[[3,3]]"#), "{text}");
    assert!(text.contains(r#""code":"stopping""#), "{text}");
    assert!(text.contains("GOODBYE"), "{text}");
}
