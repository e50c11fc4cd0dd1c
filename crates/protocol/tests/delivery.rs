//! The members of an envelope that number durable messages.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_STREAM_NAME};
use migration_ipc_protocol::messages::UserAction;
use migration_ipc_protocol::{
    DeliveryHead, DeliveryHeadError, Envelope, EnvelopeHead, InvalidStreamName, MessageId,
    MessagePayload, MessageSerializer, PresumedEnvelope, StreamName, Timestamp,
};

fn body(members: &str) -> String {
    format!(
        r#"{{"id":"a","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z"{members},"payload":{{"action":"x"}}}}"#
    )
}

fn read(body: &str) -> Result<Option<DeliveryHead<'_>>, DeliveryHeadError> {
    Envelope::parse(body.as_bytes()).unwrap().delivery()
}

fn written(delivery: DeliveryHead<'_>) -> String {
    let mut frame = Vec::new();
    let id = MessageId::new("a").unwrap();
    let head = EnvelopeHead {
        delivery: Some(delivery),
        ..EnvelopeHead::new(&id, UserAction::TYPE, Timestamp::UNIX_EPOCH)
    };
    MessageSerializer::encode(&mut frame, head, &UserAction::new("u", "x")).unwrap();
    String::from_utf8(frame[LENGTH_PREFIX..].to_vec()).unwrap()
}

#[test]
fn what_is_written_is_read_by_both_ways() {
    for (seq, stream) in [(1, None), (u64::MAX, Some("progress.v1_A-9"))] {
        let delivery = DeliveryHead { seq, stream };
        let body = written(delivery);
        assert_eq!(read(&body), Ok(Some(delivery)), "{body}");
        let presumed = PresumedEnvelope::read(body.as_bytes()).unwrap();
        assert_eq!(presumed.delivery, Some(delivery));
        assert_eq!(presumed.payload(), Some(UserAction::new("u", "x")));
    }
}

#[test]
fn they_stand_between_time_and_payload() {
    let delivery = DeliveryHead {
        seq: 12,
        stream: Some("s"),
    };
    let body = written(delivery);
    assert!(
        body.contains(r#"Z","seq":12,"stream":"s","payload":{"#),
        "{body}"
    );
}

#[test]
fn a_number_that_is_none_is_an_error_only_for_who_asks() {
    for seq in [
        "0",
        "-1",
        "1.5",
        "1e3",
        "\"1\"",
        "[1]",
        "true",
        "18446744073709551616",
    ] {
        let body = body(&format!(r#","seq":{seq}"#));
        assert_eq!(read(&body), Err(DeliveryHeadError::Seq), "{seq}");
        let presumed = PresumedEnvelope::read(body.as_bytes());
        assert!(presumed.is_none(), "{seq} is left to the long way");
    }
    assert_eq!(read(&body(r#","seq":null,"stream":null"#)), Ok(None));
    assert_eq!(read(&body("")), Ok(None));
}

#[test]
fn a_stream_has_a_plain_name_and_a_number_beside_it() {
    let long = "x".repeat(MAX_STREAM_NAME + 1);
    for name in ["", "a b", "a/b", "\u{e9}", r"\u0061", long.as_str()] {
        let body = body(&format!(r#","seq":1,"stream":"{name}""#));
        let expected = Err(DeliveryHeadError::Stream(InvalidStreamName));
        assert_eq!(read(&body), expected, "{name}");
        assert!(PresumedEnvelope::read(body.as_bytes()).is_none(), "{name}");
        assert!(StreamName::new(name).is_err(), "{name}");
    }
    assert_eq!(
        read(&body(r#","seq":1,"stream":7"#)),
        Err(DeliveryHeadError::Stream(InvalidStreamName))
    );
    assert_eq!(
        read(&body(r#","stream":"s""#)),
        Err(DeliveryHeadError::StreamAlone)
    );
}

#[test]
fn either_member_twice_is_no_envelope() {
    for members in [r#","seq":1,"seq":1"#, r#","stream":"s","stream":"s""#] {
        let body = body(members);
        assert!(Envelope::parse(body.as_bytes()).is_err());
        assert!(PresumedEnvelope::read(body.as_bytes()).is_none());
    }
}

#[test]
fn the_latest_progress_is_told_apart_by_user_and_category() {
    use migration_ipc_protocol::messages::{BackupProgress, Category, Percent};
    let key = |user: &str, category: &str| {
        BackupProgress::new(user, Category::from(category), Percent::of(1, 2), 1, 2).latest_key()
    };
    assert_eq!(key("u", "files"), key("u", "files"));
    assert_ne!(key("u", "files"), key("u", "email"));
    assert_ne!(key("u1", "1files"), key("u11", "files"));
}
