//! Envelopes that hostile or careless peers write; `golden/codec/refused.json` has more of them.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::borrow::Cow;

use migration_ipc_protocol::limits::{
    MAX_BODY, MAX_ERROR_TEXT, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_MESSAGE_ID, MAX_MESSAGE_TYPE,
};
use migration_ipc_protocol::messages::{
    Acknowledgment, AgentStarted, BackupCompleted, ConfigurationUpdate, UserAction,
};
use migration_ipc_protocol::{
    EncodeError, Envelope, EnvelopeError, EnvelopeErrorKind, EnvelopeHead, IpcMessage, MessageId,
    MessagePayload, MessageSerializer, PayloadError, Timestamp,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// An envelope with these members behind the usual ones.
fn envelope_with(members: &str) -> String {
    format!(r#"{{"id":"m","type":"X","timestamp":"2024-06-14T09:30:12Z"{members}}}"#)
}

/// An envelope of a type with this payload.
fn message<T: MessagePayload>(payload: &str) -> IpcMessage {
    let mut body = envelope_with(&format!(r#","payload":{payload}"#));
    body = body.replace(r#""X""#, &format!(r#""{}""#, T::TYPE));
    MessageSerializer::decode(body.as_bytes()).expect("a good envelope")
}

fn refused(body: &str) -> EnvelopeError {
    Envelope::parse(body.as_bytes())
        .map(|_| ())
        .expect_err("the body is no envelope")
}

#[test]
fn nothing_is_copied_that_can_be_borrowed() {
    let body = envelope_with(r#","payload":{"a":1}"#);
    let envelope = Envelope::parse(body.as_bytes()).expect("a good envelope");
    assert!(matches!(envelope.message_type, Cow::Borrowed("X")));
    let payload = envelope.payload.expect("there is a payload").get();
    assert!(body.as_bytes().as_ptr_range().contains(&payload.as_ptr()));
    assert_eq!(envelope.in_reply_to, None);
}

#[test]
fn in_reply_to_is_read_and_may_be_null() {
    let read = |members| {
        let body = envelope_with(members);
        Envelope::parse(body.as_bytes())
            .expect("a good envelope")
            .in_reply_to
    };
    assert_eq!(read(r#","inReplyTo":"q""#).expect("it is there"), "q");
    assert_eq!(read(r#","inReplyTo":null"#), None);
    let twice = refused(&envelope_with(r#","inReplyTo":null,"inReplyTo":"q""#));
    assert_eq!(twice.kind, EnvelopeErrorKind::NotAnEnvelope);
    assert_eq!(twice.id.expect("the id is fine"), "m");
}

#[test]
fn nesting_counts_wherever_it_is() {
    // The envelope itself is the first level.
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let objects = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    for (place, value) in [
        ("payload", nested as fn(usize) -> String),
        ("payload", objects),
        ("ignored", nested),
        ("ignored", objects),
    ] {
        let at = |levels| envelope_with(&format!(r#","{place}":{}"#, value(levels)));
        let deepest = at(MAX_JSON_DEPTH - 1);
        assert!(
            Envelope::parse(deepest.as_bytes()).is_ok(),
            "{place} at the limit"
        );
        let error = refused(&at(MAX_JSON_DEPTH));
        assert_eq!(
            error.kind,
            EnvelopeErrorKind::TooDeep,
            "{place} over the limit"
        );
        assert_eq!(error.id.expect("the id is fine"), "m");
    }
}

#[test]
fn brackets_in_strings_and_side_by_side_are_not_nesting() {
    let brackets = "[".repeat(500);
    for value in [
        format!(r#""{brackets}""#),
        format!(r#""\"{brackets}\\""#),
        format!(r#"{{"{brackets}":1}}"#),
        format!("[{}[]]", "[],{},".repeat(200)),
    ] {
        let body = envelope_with(&format!(r#","ignored":{value},"payload":{{"x":{value}}}"#));
        assert!(Envelope::parse(body.as_bytes()).is_ok(), "{body}");
    }
    // A string that ends sooner than it seems to.
    let body = envelope_with(&format!(r#","ignored":["\\",{brackets}]"#));
    assert_eq!(refused(&body).kind, EnvelopeErrorKind::TooDeep);
}

#[test]
fn a_megabyte_of_brackets_is_refused_without_recursion() {
    for bracket in ["[", "{\"a\":"] {
        let body = bracket.repeat(MAX_BODY / bracket.len());
        assert_eq!(refused(&body).kind, EnvelopeErrorKind::TooDeep);
    }
}

#[test]
fn values_count_wherever_they_are() {
    // Three members of the envelope and the brackets of the array.
    let array = |values: usize| format!("[{}0]", "0,".repeat(values));
    let at = |place: &str, values| envelope_with(&format!(r#","{place}":{}"#, array(values)));
    for place in ["payload", "ignored"] {
        let most = at(place, MAX_JSON_VALUES - 5);
        assert!(
            Envelope::parse(most.as_bytes()).is_ok(),
            "{place} at the limit"
        );
        let error = refused(&at(place, MAX_JSON_VALUES - 4));
        assert_eq!(
            error.kind,
            EnvelopeErrorKind::TooManyValues,
            "{place} over the limit"
        );
        assert_eq!(error.id.expect("the id is fine"), "m");
    }
    let commas = ",".repeat(MAX_JSON_VALUES * 2);
    let body = envelope_with(&format!(r#","payload":{{"x":"{commas}"}}"#));
    assert!(
        Envelope::parse(body.as_bytes()).is_ok(),
        "commas in a string are no values"
    );

    let id = MessageId::new("m").expect("a short id");
    let error = MessageSerializer::encode(&mut Vec::new(), head(&id), &vec![0; MAX_JSON_VALUES]);
    assert!(matches!(error, Err(EncodeError::TooManyValues)));
}

#[test]
fn errors_are_told_apart() {
    let cases: [(&[u8], EnvelopeErrorKind); 5] = [
        (b"", EnvelopeErrorKind::NotJson),
        (b"{", EnvelopeErrorKind::NotJson),
        (b"{\"id\":1}", EnvelopeErrorKind::NotAnEnvelope),
        (b"[]", EnvelopeErrorKind::NotAnEnvelope),
        (b"\"\xc3\x28\"", EnvelopeErrorKind::NotUtf8),
    ];
    for (body, kind) in cases {
        let error = Envelope::parse(body)
            .map(|_| ())
            .expect_err("it is no envelope");
        assert_eq!(error.kind, kind, "{body:?}");
        assert_eq!(error.id, None);
    }
}

#[test]
fn ids_and_types_have_a_longest_form() {
    let with = |id: usize, message_type: usize| {
        format!(
            r#"{{"id":"{}","type":"{}","timestamp":"2024-06-14T09:30:12Z"}}"#,
            "i".repeat(id),
            "t".repeat(message_type)
        )
    };
    assert!(Envelope::parse(with(MAX_MESSAGE_ID, MAX_MESSAGE_TYPE).as_bytes()).is_ok());
    assert_eq!(refused(&with(MAX_MESSAGE_ID + 1, 1)).id, None);
    assert!(refused(&with(1, MAX_MESSAGE_TYPE + 1)).id.is_some());
}

#[test]
fn error_texts_quote_only_so_much() {
    let long = "é".repeat(MAX_BODY / 4);
    let quoting = refused(&envelope_with(&format!(r#","inReplyTo":["{long}"]"#)));
    assert!(quoting.to_string().len() <= MAX_ERROR_TEXT);

    let payload = format!(r#"{{"success":"{long}"}}"#);
    let error = message::<BackupCompleted>(&payload)
        .payload::<BackupCompleted>()
        .expect_err("a text is no boolean");
    assert!(error.to_string().len() <= MAX_ERROR_TEXT);
    assert!(
        error
            .to_string()
            .starts_with("Failed to deserialize payload: ")
    );

    let time = Timestamp::UNIX_EPOCH;
    let id = MessageId::new(&"\0".repeat(MAX_MESSAGE_ID)).expect("as long as it may be");
    let acknowledgment = Acknowledgment::failure(id.clone(), time, "\0".repeat(MAX_BODY));
    let message = IpcMessage::new(id, time, &acknowledgment).expect("it is JSON");
    MessageSerializer::encode_message(&mut Vec::new(), &message)
        .expect("an error acknowledgment always fits");
}

#[test]
fn payloads_have_to_be_objects_with_each_declared_member_once() {
    let read = |payload: &str| message::<AgentStarted>(payload).payload::<AgentStarted>();
    assert!(read("{}").is_ok());
    assert_eq!(read("null"), Err(PayloadError::Missing));
    for other in ["[]", r#"["alice","1","2"]"#, "1", "true", r#""text""#] {
        assert_eq!(read(other), Err(PayloadError::NotAnObject), "{other}");
    }
    for twice in [
        r#"{"userId":"a","userId":"a"}"#,
        r#"{"userId":null,"userId":"a"}"#,
        r#"{"sessionId":"1","session\u0049d":1}"#,
    ] {
        assert!(
            matches!(read(twice), Err(PayloadError::Invalid(_))),
            "{twice}"
        );
    }
    assert!(
        read(r#"{"extra":1,"extra":[2]}"#).is_ok(),
        "members that nobody declared are ignored"
    );
}

#[test]
fn free_form_json_may_have_a_member_twice() {
    let update = message::<ConfigurationUpdate>(r#"{"key":"k","value":{"a":1,"a":2}}"#)
        .payload::<ConfigurationUpdate>()
        .expect("free-form");
    assert_eq!(update.value, json!({"a": 2}));
    let action = message::<UserAction>(r#"{"action":"x","details":{"a":1,"a":{"b":1,"b":2}}}"#)
        .payload::<UserAction>()
        .expect("free-form");
    assert_eq!(Value::from(action.details), json!({"a": {"b": 2}}));
}

#[test]
fn half_a_surrogate_pair_is_refused_where_it_is_read() {
    for half in [r"\uD83D", r"\uDE00", r"\uD83D\uD83D", r"\uD83Dx"] {
        let started = message::<AgentStarted>(&format!(r#"{{"userId":"{half}"}}"#));
        assert!(started.payload::<AgentStarted>().is_err(), "{half}");
        let unread = message::<AgentStarted>(&format!(r#"{{"extra":"{half}"}}"#));
        assert!(unread.payload::<AgentStarted>().is_ok(), "{half}");
    }
}

#[test]
fn nul_is_a_character_when_it_is_escaped_and_an_error_when_not() {
    let started = message::<AgentStarted>(r#"{"userId":"a\u0000b"}"#)
        .payload::<AgentStarted>()
        .expect("an escape is fine");
    assert_eq!(started.user_id, "a\0b");
    assert_eq!(
        refused(&envelope_with(",\"x\":\"\0\"")).kind,
        EnvelopeErrorKind::NotJson
    );
}

fn head(id: &MessageId) -> EnvelopeHead<'_> {
    EnvelopeHead::new(id, "X", Timestamp::UNIX_EPOCH)
}

#[test]
fn what_peers_would_refuse_is_not_written() {
    let id = MessageId::new("m").expect("a short id");
    let mut out = b"before".to_vec();

    let deep = |levels| (0..levels).fold(json!({}), |inner, _| json!([inner]));
    MessageSerializer::encode(&mut out, head(&id), &deep(MAX_JSON_DEPTH - 2))
        .expect("as deep as it may be");
    out.truncate(6);
    let error = MessageSerializer::encode(&mut out, head(&id), &deep(MAX_JSON_DEPTH - 1));
    assert!(matches!(error, Err(EncodeError::TooDeep)));
    assert_eq!(out, b"before");

    let around = r#"{"id":"m","type":"X","timestamp":"1970-01-01T00:00:00Z","payload":""}"#.len();
    MessageSerializer::encode(&mut out, head(&id), &"x".repeat(MAX_BODY - around))
        .expect("as long as it may be");
    out.truncate(6);
    let error = MessageSerializer::encode(&mut out, head(&id), &"x".repeat(MAX_BODY - around + 1))
        .expect_err("one byte too long");
    assert!(
        matches!(error, EncodeError::TooLarge { size, limit: MAX_BODY } if size == MAX_BODY + 1)
    );
    assert_eq!(
        error.to_string(),
        "a message of 1048577 bytes is over the limit of 1048576"
    );
    assert_eq!(out, b"before");

    let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
    let error = MessageSerializer::encode(&mut out, head(&id), &unwritable);
    assert!(matches!(error, Err(EncodeError::Json(_))));
    assert_eq!(out, b"before");
}

#[test]
fn a_reply_names_what_it_answers_behind_the_payload() {
    let id = MessageId::new("m").expect("a short id");
    let question = MessageId::new("q").expect("a short id");
    let mut out = Vec::new();
    let head = EnvelopeHead {
        delivery: None,
        in_reply_to: Some(&question),
        ..head(&id)
    };
    MessageSerializer::encode(&mut out, head, &json!({})).expect("the message is small");
    assert_eq!(
        std::str::from_utf8(&out[4..]),
        Ok(
            r#"{"id":"m","type":"X","timestamp":"1970-01-01T00:00:00Z","payload":{},"inReplyTo":"q"}"#
        )
    );
    let message = MessageSerializer::decode(&out[4..]).expect("what is written can be read");
    let mut again = Vec::new();
    MessageSerializer::encode_message(&mut again, &message).expect("the message is small");
    assert_eq!(again, out);
}

/// JSON of any form, but not so deep that it would be refused.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        r#"[\[{"\\\]}]{0,20}"#.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(".{0,5}", inner, 0..6).prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    /// Whatever the payload and the ids, what is written is what is read.
    #[test]
    fn envelopes_round_trip(
        id in ".{0,60}",
        message_type in ".{0,40}",
        micros in any::<i64>(),
        reply in proptest::option::of(".{0,60}"),
        payload in any_json(),
    ) {
        let id = MessageId::new(&id)?;
        let in_reply_to = reply.as_deref().map(MessageId::new).transpose()?;
        let head = EnvelopeHead {
in_reply_to: in_reply_to.as_ref(),
..EnvelopeHead::new(&id, &message_type, Timestamp::from_unix_micros(micros))
};
        let mut frame = Vec::new();
        MessageSerializer::encode(&mut frame, head, &payload)?;
        let envelope = Envelope::parse(&frame[4..])?;
        prop_assert_eq!(&envelope.id, &id);
        prop_assert_eq!(&envelope.message_type, &message_type);
        prop_assert_eq!(envelope.timestamp, head.timestamp);
        prop_assert_eq!(&envelope.in_reply_to, &in_reply_to);
        let read = envelope.payload.map_or(Ok(Value::Null), |raw| serde_json::from_str(raw.get()))?;
        prop_assert_eq!(read, payload);
    }

    /// Bytes that are almost an envelope are read or refused, and an id that is found is the id.
    #[test]
    fn almost_envelopes_are_read_or_refused(
        at in 0..70_usize,
        byte in any::<u8>(),
        cut in 0..71_usize,
    ) {
        let mut body = envelope_with(r#","payload":{"a":"b"}"#).into_bytes();
        let at = at.min(body.len() - 1);
        body[at] = byte;
        body.truncate(cut.max(1));
        match Envelope::parse(&body) {
            Ok(envelope) => drop(envelope.to_message()),
            Err(error) => {
                prop_assert!(error.to_string().len() <= MAX_ERROR_TEXT);
                if let Some(id) = error.id {
                    prop_assert!(id.to_string().chars().count() <= 4, "{id}");
                }
            }
        }
    }
}
