//! Durable messages of a peer that takes one acknowledgment for many, and that may decline them.

use serde_json::{Value, json};

use crate::common::*;
use crate::service::*;

/// A peer of the service that numbers its messages and can do this. Its frame 1 is the hello.
async fn peer_with(service: &Service, capability: &str) -> WirePeer {
    let mut peer = WirePeer::connect(&service.connector, user("1000")).await;
    let mut hello = numbering_hello(OUTBOX);
    let capabilities = hello["capabilities"].as_array_mut().unwrap();
    capabilities.push(capability.into());
    peer.send("HELLO", hello).await;
    peer.receive().await;
    peer
}

fn actions(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let messages = numbers.into_iter();
    let messages = messages.map(|seq| numbered(seq, None, "USER_ACTION", action("a")));
    messages.collect::<Vec<_>>().concat()
}

async fn told_together(peer: &mut WirePeer) -> Value {
    peer.receive_type("ACKNOWLEDGMENTS").await["payload"].take()
}

#[tokio::test(start_paused = true)]
async fn a_range_has_what_is_committed_and_nothing_else() {
    let service = Service::new().await;
    let mut peer = peer_with(&service, "ackRanges").await;
    peer.write(&actions(1..=100)).await;
    let (mut last, mut messages) = (1, 0);
    while last < 101 {
        let told = told_together(&mut peer).await;
        assert_eq!(told.get("failed"), None);
        for range in told["handled"].as_array().unwrap() {
            assert_eq!(range[0].as_u64().unwrap(), last + 1, "in order");
            last = range[1].as_u64().unwrap();
        }
        messages += 1;
        let stored = service.effects_of("a").await;
        assert!(
            u64::from(stored) + 1 >= last,
            "{stored} stored, {last} told"
        );
    }
    assert!(messages <= 10, "{messages} for 100");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_committed_is_told_to_come_again() {
    let service = Service::new().await;
    let mut peer = peer_with(&service, "ackRanges").await;
    peer.write(&actions([1])).await;
    assert_eq!(told_together(&mut peer).await, json!({"handled": [[2, 2]]}));
    service.disk.set_read_only(true);
    peer.write(&actions([2])).await;
    let told = told_together(&mut peer).await;
    assert_eq!(told.get("handled"), None);
    assert_eq!(told["failed"][0]["frame"], 3);
    assert_eq!(told["failed"][0]["code"], "busy");
    service.disk.set_read_only(false);
    peer.write(&actions([2])).await;
    assert_eq!(told_together(&mut peer).await, json!({"handled": [[4, 4]]}));
    assert_eq!(service.effects_of("a").await, 2);
}

/// Its sender keeps it until it is told.
#[tokio::test(start_paused = true)]
async fn a_numbered_message_cannot_decline_its_acknowledgment() {
    let service = Service::new().await;
    let mut peer = peer_with(&service, "noAck").await;
    // In the usual form, and in another.
    for body in [
        r#"{"id":"s1","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","seq":1,"ack":false,"payload":{"action":"a"}}"#,
        r#"{"ack":false,"id":"s1","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","seq":1,"payload":{"action":"a"}}"#,
    ] {
        peer.write(&frame(body)).await;
        assert_eq!(told(&peer.receive().await), "s1 malformed");
    }
    assert!(service.entered.take().is_empty());
    assert_eq!(act(&mut peer, 1, "a").await, "s1 handled");
}
