//! Numbers that no honest outbox gives.

use std::collections::HashSet;

use migration_ipc::limits::DELIVERY_WINDOW;
use serde_json::json;

use crate::common::*;
use crate::service::*;

#[tokio::test(start_paused = true)]
async fn what_is_no_number_or_no_name_is_malformed() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    let too_long = "x".repeat(65);
    for (seq, stream) in [
        (json!(0), None),
        (json!(-1), None),
        (json!(1.5), None),
        (json!("1"), None),
        (json!(1), Some(&*too_long)),
        (json!(1), Some("")),
        (json!(1), Some("a b")),
        (json!(null), Some("a")),
    ] {
        peer.write(&numbered(seq, stream, "USER_ACTION", action("a")))
            .await;
        let answer = peer.receive_acknowledgment().await;
        assert_eq!(answer["code"], "malformed");
    }
    let huge = r#"{"id":"h","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","seq":18446744073709551616,"payload":{"action":"a"}}"#;
    peer.write(&frame(huge)).await;
    assert_eq!(told(&peer.receive().await), "h malformed");
    assert!(service.entered.take().is_empty());
    peer.write(&numbered(
        1,
        Some(&too_long[1..]),
        "USER_ACTION",
        action("a"),
    ))
    .await;
    assert_eq!(told(&peer.receive().await), "s1 handled");
}

#[tokio::test(start_paused = true)]
async fn a_leap_is_taken_and_what_is_far_below_is_settled() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    act(&mut peer, 1, "a").await;
    let far = 1 << 60;
    assert_eq!(act(&mut peer, far, "b").await, format!("s{far} handled"));
    assert_eq!(
        act(&mut peer, u64::MAX, "c").await,
        format!("s{} handled", u64::MAX)
    );
    assert_eq!(service.entered.take(), ["a", "b", "c"]);
    // Settled long ago: answered, and not handled.
    for seq in [2, far + 1, u64::MAX - DELIVERY_WINDOW] {
        assert_eq!(act(&mut peer, seq, "d").await, format!("s{seq} handled"));
    }
    assert!(service.entered.take().is_empty());
    let last = u64::MAX - DELIVERY_WINDOW + 1;
    act(&mut peer, last, "e").await;
    assert_eq!(service.entered.take(), ["e"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_uses_up_the_numbers_of_another_account() {
    let service = Service::new().await;
    let mut mallory = service.numbering("666", OUTBOX).await.0;
    act(&mut mallory, 1 << 60, "a").await;
    act(&mut mallory, 1, "a").await;
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "b").await, "s1 handled");
    assert_eq!(service.entered.take(), ["a", "b"]);
}

/// The second one waits its turn: what is at work on the first is not begun again.
#[tokio::test(start_paused = true)]
async fn an_outbox_on_two_connections_is_handled_once() {
    let service = Service::new().await;
    let mut first = service.peer().await;
    let mut second = service.peer().await;
    let messages: Vec<_> = (1..=20)
        .map(|seq| numbered(seq, None, "USER_ACTION", action("a")))
        .collect();
    first.write(&messages.concat()).await;
    second.write(&messages.concat()).await;
    let mut handled = HashSet::new();
    for peer in [&mut first, &mut second] {
        for seq in 1..=20 {
            let answer = told(&peer.receive().await);
            if answer == format!("s{seq} handled") {
                handled.insert(seq);
            } else {
                assert_eq!(answer, format!("s{seq} busy"));
            }
        }
    }
    // What was told to come again does.
    for seq in (1..=20).filter(|seq| !handled.contains(seq)) {
        let answer = act(&mut second, seq, "a").await;
        assert_eq!(answer, format!("s{seq} handled"));
    }
    assert_eq!(service.effects_of("a").await, 20);
}

/// In the usual form, in which the body is read once, and in any other.
#[tokio::test(start_paused = true)]
async fn the_form_of_the_envelope_makes_no_difference() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    let usual = r#"{"id":"s1","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","seq":1,"payload":{"userId":"","action":"a","details":{}}}"#;
    let other = r#" {"seq": 1, "payload": {"action": "a"}, "type": "USER_ACTION", "timestamp": "2024-01-01T12:00:00Z", "id": "s1"}"#;
    for body in [usual, other, usual] {
        peer.write(&frame(body)).await;
        assert_eq!(told(&peer.receive().await), "s1 handled");
    }
    assert_eq!(service.entered.take(), ["a"]);
}
