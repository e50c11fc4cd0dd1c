//! A secret in a payload shows in nothing that prints, whatever is wrong around it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use migration_ipc_protocol::{
    Envelope, EnvelopeHead, FrameDecoder, IpcMessage, MessageId, MessagePayload, MessageSerializer,
    PayloadError, PresumedEnvelope, Sender, Sensitive, Timestamp,
};
use serde::{Deserialize, Serialize};

const SECRET: &str = "hunter2-correct-horse";

/// Every kind of value that a member can have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unlock {
    archive: String,
    password: Sensitive<String>,
    #[serde(default)]
    pin: Option<Sensitive<u32>>,
    #[serde(default)]
    keys: Sensitive<BTreeMap<String, Vec<String>>>,
}

impl MessagePayload for Unlock {
    const TYPE: &'static str = "UNLOCK";
    const SENDER: Sender = Sender::Service;
}

/// The same members, of a type that says that it is sensitive as a whole.
#[derive(Debug, Serialize, Deserialize)]
struct Marked {
    archive: String,
    password: Sensitive<String>,
    tokens: Vec<Sensitive<String>>,
}

impl MessagePayload for Marked {
    const TYPE: &'static str = "MARKED";
    const SENDER: Sender = Sender::Service;
    const SENSITIVE: bool = true;
}

fn unlock() -> Unlock {
    Unlock {
        archive: "mail.pst".to_owned(),
        password: Sensitive::new(SECRET.to_owned()),
        pin: Some(Sensitive::new(918_273)),
        keys: Sensitive::new(BTreeMap::from([(
            SECRET.to_owned(),
            vec![SECRET.to_owned()],
        )])),
    }
}

fn id() -> MessageId {
    MessageId::new("m-1").unwrap()
}

fn body(payload: &str) -> String {
    format!(
        r#"{{"id":"m-1","type":"UNLOCK","timestamp":"2024-01-01T12:00:00Z","payload":{payload}}}"#
    )
}

#[track_caller]
fn assert_hidden(what: &str, text: &str) {
    assert!(!text.contains("hunter2"), "{what}: {text}");
    assert!(!text.contains("918273"), "{what}: {text}");
}

#[test]
fn the_wire_has_the_value_itself() {
    let mut wire = Vec::new();
    let id = id();
    let head = EnvelopeHead::new(&id, Unlock::TYPE, Timestamp::UNIX_EPOCH);
    MessageSerializer::encode(&mut wire, head, &unlock()).unwrap();
    let mut decoder = FrameDecoder::new();
    let body = decoder
        .decode(&mut wire.as_slice())
        .unwrap()
        .unwrap()
        .to_vec();
    let text = std::str::from_utf8(&body).unwrap();
    assert!(
        text.contains(&format!(r#""password":"{SECRET}","pin":918273"#)),
        "{text}"
    );
    let read: Unlock = Envelope::parse(&body).unwrap().payload().unwrap();
    assert_eq!(read, unlock());
    assert_eq!(read.password.expose(), SECRET);
    assert_eq!(read.password.into_inner(), SECRET);
}

#[test]
fn the_debug_text_of_a_sensitive_member_is_the_same_for_every_value() {
    let debug = format!("{:?} {:#?}", unlock(), unlock());
    assert_hidden("payload", &debug);
    assert!(debug.contains("mail.pst"), "{debug}");
    assert_eq!(
        format!("{:?}", Sensitive::new(1)),
        format!("{:?}", Sensitive::new("a longer one"))
    );
}

#[test]
fn the_debug_text_of_a_message_has_the_size_of_its_payload_and_nothing_of_its_text() {
    let payload = serde_json::to_string(&unlock()).unwrap();
    let size = format!("{} bytes", payload.len());
    let body = body(&payload);
    let envelope = Envelope::parse(body.as_bytes()).unwrap();
    let presumed = PresumedEnvelope::read(body.as_bytes()).unwrap();
    let message = IpcMessage::new(id(), Timestamp::UNIX_EPOCH, &unlock()).unwrap();
    for debug in [
        format!("{envelope:?}"),
        format!("{presumed:?}"),
        format!("{message:?}"),
        format!("{:#?}", envelope.to_message()),
    ] {
        assert_hidden("message", &debug);
        for shown in ["m-1", "UNLOCK", size.as_str()] {
            assert!(debug.contains(shown), "{shown} is not in {debug}");
        }
    }
}

/// Every payload here is wrong in or beside the sensitive members.
fn wrong_payloads() -> Vec<String> {
    let mut wrong: Vec<String> = [
        // The sensitive member has another type: serde quotes what it found.
        r#"{"archive":"a","password":{"text":"hunter2"}}"#,
        r#"{"archive":"a","password":["hunter2"]}"#,
        r#"{"archive":"a","password":918273}"#,
        r#"{"archive":"a","password":-918273.5}"#,
        r#"{"archive":"a","password":"x","pin":"hunter2"}"#,
        r#"{"archive":"a","password":"x","pin":-918273}"#,
        r#"{"archive":"a","password":"x","pin":9182739182730000}"#,
        r#"{"archive":"a","password":"x","keys":"hunter2"}"#,
        r#"{"archive":"a","password":"x","keys":{"a":"hunter2"}}"#,
        r#"{"archive":"a","password":"x","keys":{"a":[918273]}}"#,
        // Another member is wrong.
        r#"{"password":"hunter2"}"#,
        r#"{"archive":7,"password":"hunter2","pin":918273}"#,
        r#"{"archive":"a","password":"hunter2","password":"hunter2"}"#,
        r#"{"archive":"a","password":"hunter2","archive":"b"}"#,
        // No JSON.
        r#"{"archive":"a","password":"hunter2","pin":918273x}"#,
        r#"{"archive":"a","password":"hunter2\q"}"#,
        "{\"archive\":\"a\",\"password\":\"hunter2\u{1}\"}",
        r#"{"archive":"a","password":"hunter2\ud800"}"#,
        // Not even an object.
        r#""hunter2""#,
        "918273",
        r#"["a","hunter2",918273]"#,
    ]
    .map(str::to_owned)
    .into();
    let whole = serde_json::to_string(&unlock()).unwrap();
    wrong.extend((0..whole.len()).map(|end| whole[..end].to_owned()));
    wrong
}

#[test]
fn no_error_about_a_payload_quotes_a_sensitive_member() {
    for payload in wrong_payloads() {
        let body = body(&payload);
        let text = match Envelope::parse(body.as_bytes()) {
            Ok(envelope) => {
                let error = envelope.payload::<Unlock>().unwrap_err();
                assert!(matches!(
                    error,
                    PayloadError::Invalid(_) | PayloadError::NotAnObject
                ));
                format!("{error} {error:?}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        assert_hidden(&payload, &text);
    }
}

#[test]
fn a_payload_that_stands_in_the_place_of_an_envelope_is_not_quoted() {
    for payload in wrong_payloads() {
        if let Err(error) = Envelope::parse(payload.as_bytes()) {
            assert_hidden(&payload, &format!("{error} {error:?}"));
        }
    }
}

/// Of a sensitive type nothing is quoted, whichever member the sender put the secret into.
#[test]
fn no_error_about_a_sensitive_type_quotes_any_of_its_members() {
    for payload in [
        r#"{"archive":918273,"password":"x","tokens":[]}"#,
        r#"{"archive":"a","password":"x","tokens":"hunter2"}"#,
        r#"{"archive":"a","password":"x","tokens":918273}"#,
        r#"{"archive":{"hunter2":1},"password":"x","tokens":[]}"#,
    ] {
        let error = Envelope::parse(body(payload).as_bytes())
            .unwrap()
            .payload::<Marked>()
            .unwrap_err();
        assert_hidden(payload, &format!("{error} {error:?}"));
        let text = error.to_string();
        assert!(text.contains("line 1 column"), "it says where: {text}");
    }
}

/// A value whose own writer quotes it.
#[derive(Debug)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom(SECRET))
    }
}

#[test]
fn no_error_about_writing_quotes_a_sensitive_member() {
    let error = serde_json::to_string(&Sensitive::new(Unwritable)).unwrap_err();
    assert_hidden("writing", &format!("{error} {error:?}"));
}
