//! The shorter way to read an envelope says the same as the long one, or nothing.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use migration_ipc_protocol::messages::{BackupProgress, Category, Percent, UserAction};
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, MessageId, MessagePayload, MessageSerializer, PresumedEnvelope,
    Timestamp, limits,
};
use proptest::prelude::*;

const USUAL: &str = r#"{"id":"a-1","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":{"userId":"u","action":"x"}}"#;

/// What the shorter way says of a body, checked against the long one.
fn presume(body: &str) -> Option<UserAction> {
    let presumed = PresumedEnvelope::read(body.as_bytes())?;
    let payload = presumed.payload::<UserAction>()?;
    let envelope = Envelope::parse(body.as_bytes()).expect("the presumption was proved");
    assert_eq!(presumed.id, envelope.id);
    assert_eq!(presumed.message_type, envelope.message_type);
    assert_eq!(presumed.timestamp, envelope.timestamp);
    assert_eq!(envelope.in_reply_to, None);
    assert_eq!(envelope.payload::<UserAction>().as_ref(), Ok(&payload));
    Some(payload)
}

#[test]
fn the_usual_form_is_read() {
    assert_eq!(presume(USUAL), Some(UserAction::new("u", "x")));
}

#[test]
fn what_this_crate_writes_is_in_the_usual_form() {
    let progress = BackupProgress::new("u", Category::Files, Percent::of(1, 4), 1024, 4096);
    let mut frame = Vec::new();
    let id = MessageId::new("a-1").unwrap();
    let head = EnvelopeHead::new(&id, BackupProgress::TYPE, Timestamp::UNIX_EPOCH);
    MessageSerializer::encode(&mut frame, head, &progress).unwrap();
    let presumed = PresumedEnvelope::read(&frame[limits::LENGTH_PREFIX..]).unwrap();
    assert_eq!(presumed.payload(), Some(progress));
}

#[test]
fn a_presumption_that_does_not_hold_is_never_proved() {
    let head = r#"{"id":"a-1","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","#;
    for rest in [
        r#""payload":{"userId":"u","action":"x"},"more":{}}"#,
        r#""payload":{"userId":"u","action":"x"},"inReplyTo":"b","more":{}}"#,
        r#""payload":{"userId":"u","action":"x"},"inReplyTo":null}"#,
        r#""payload":{"userId":"u","action":"x"},"inReplyTo":"a","inReplyTo":"b"}"#,
        r#""payload":{"userId":"u","action":"x","inReplyTo":"b"}"#,
        r#""payload":{"userId":"u","action":"x"},"payload":{"action":"y"}}"#,
        r#""payload":{"userId":"u","action":"x"},"id":"b","x":{}}"#,
        r#""payload":{"userId":"u","action":"x"}}}"#,
        r#""payload":{"userId":"u","action":"x"}} }"#,
        r#""payload":{"userId":"u","action":"x""#,
        r#""payload":["u","x"]}"#,
        r#""payload":null}"#,
        r#""payload":{"action":"x","action":"y"}}"#,
        r#""more":1,"payload":{"action":"x"}}"#,
    ] {
        assert_eq!(presume(&format!("{head}{rest}")), None, "{rest}");
    }
}

#[test]
fn what_peers_negotiate_is_read_around_the_payload() {
    let body = r#"{"id":"a-1","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","seq":7,"stream":"s","ack":false,"deadline":250,"items":3,"item":4,"payload":{"userId":"u","action":"x"},"inReplyTo":"b"}"#;
    let presumed = PresumedEnvelope::read(body.as_bytes()).unwrap();
    assert_eq!(presumed.delivery.unwrap().seq, 7);
    assert!(!presumed.wants_acknowledgment);
    assert_eq!(presumed.request.deadline, Some(Duration::from_millis(250)));
    assert_eq!(presumed.request.items, Some(3));
    assert_eq!(presumed.item, Some(4));
    assert_eq!(*presumed.in_reply_to.as_ref().unwrap(), "b");
    assert_eq!(presumed.payload(), Some(UserAction::new("u", "x")));
    for (from, to) in [
        ("250", "0"),
        ("250", "-1"),
        ("250", "1e3"),
        (":3,", ":0,"),
        (":3,", ":1025,"),
        (":4,", ":04,"),
        ("false", "true"),
        ("\"b\"}", "\"b\\u0020\"}"),
    ] {
        let body = body.replacen(from, to, 1);
        assert!(PresumedEnvelope::read(body.as_bytes()).is_none(), "{body}");
    }
}

#[test]
fn a_head_in_another_form_is_left_to_the_long_way() {
    for (from, to) in [
        ("a-1", r"a\u002d1"),
        ("a-1", "a\n1"),
        ("USER_ACTION", r"USER\u005fACTION"),
        ("2024-01-01T12:00:00Z", "yesterday"),
        ("{\"id\"", "{ \"id\""),
        ("\"type\"", "\"Type\""),
        ("a-1", "a\u{0}1"),
    ] {
        let body = USUAL.replacen(from, to, 1);
        assert!(PresumedEnvelope::read(body.as_bytes()).is_none(), "{body}");
    }
    let long = "x".repeat(limits::MAX_MESSAGE_ID + 1);
    let body = USUAL.replacen("a-1", &long, 1);
    assert!(PresumedEnvelope::read(body.as_bytes()).is_none());
    assert!(PresumedEnvelope::read(b"\xff").is_none());
}

proptest! {
    /// Whatever is done to a body: if the shorter way proves it, the long way agrees.
    #[test]
    fn a_proved_presumption_is_what_the_long_way_says(
        at in 0..USUAL.len(),
        length in 0..12usize,
        insert in r#"[{}\[\]",:a-z0-9 \\]{0,12}"#,
    ) {
        let end = (at + length).min(USUAL.len());
        presume(&[&USUAL[..at], &insert, &USUAL[end..]].concat());
    }
}
