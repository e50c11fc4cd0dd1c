//! The two readers of envelopes agree, with each other and with what a simple reader says of members,
//! depth and values; and what was read can be written and read again.

use migration_ipc_protocol::extensions::RequestHead;
use migration_ipc_protocol::limits::{
    MAX_DEADLINE_MS, MAX_ERROR_TEXT, MAX_ITEM_GRANT, MAX_JSON_DEPTH, MAX_JSON_VALUES,
    MAX_MESSAGE_ID, MAX_MESSAGE_TYPE,
};
use migration_ipc_protocol::{
    DeliveryHead, Envelope, EnvelopeError, EnvelopeErrorKind, EnvelopeHead, IpcMessage, MessageId,
    MessagePayload, MessageSerializer, PresumedEnvelope, Sender, StreamName, Timestamp,
};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::input::unfolded;
use crate::{payloads, variants};

/// An envelope that owns its parts, what peers negotiate included.
#[derive(Debug)]
struct Read {
    message: IpcMessage,
    delivery: Option<(u64, Option<StreamName>)>,
    members: Members,
}

/// What `requests` and `noAck` add; a member that is not in its form counts as absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Members {
    wants_acknowledgment: bool,
    request: RequestHead,
    item: Option<u64>,
}

mod subject {
    use super::{
        Envelope, EnvelopeError, IpcMessage, Members, Read, RequestHead, StreamName, variants,
    };

    #[cfg(not(feature = "planted"))]
    pub(super) fn parse(body: &[u8]) -> Result<Read, EnvelopeError> {
        read(body)
    }

    /// Takes the last of members that are given twice.
    #[cfg(feature = "planted")]
    pub(super) fn parse(body: &[u8]) -> Result<Read, EnvelopeError> {
        read(body).or_else(|error| {
            match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body) {
                Ok(members) => read(&serde_json::to_vec(&members).expect("JSON")),
                Err(_) => Err(error),
            }
        })
    }

    fn read(body: &[u8]) -> Result<Read, EnvelopeError> {
        let envelope = Envelope::parse(body)?;
        let delivery = match envelope.delivery() {
            Ok(delivery) => delivery.map(|delivery| {
                let name = |name| StreamName::new(name).expect("it was checked");
                (delivery.seq, delivery.stream.map(name))
            }),
            Err(error) => {
                variants::note_delivery(error);
                None
            }
        };
        let members = Members {
            wants_acknowledgment: envelope
                .wants_acknowledgment()
                .inspect_err(|error| variants::note_ack(*error))
                .unwrap_or(true),
            request: envelope
                .request()
                .inspect_err(|error| variants::note_request(*error))
                .unwrap_or(RequestHead::NONE),
            item: envelope
                .item()
                .inspect_err(|error| variants::note_item(*error))
                .unwrap_or(None),
        };
        let message = IpcMessage::from(envelope);
        Ok(Read {
            message,
            delivery,
            members,
        })
    }
}

/// The longest bodies that are written again; longer ones would only cost time.
const MAX_WRITTEN: usize = 16 * 1024;

/// A payload of any members.
#[derive(Serialize, Deserialize)]
struct Anything(Map<String, Value>);

impl MessagePayload for Anything {
    const TYPE: &'static str = "ANYTHING";
    const SENDER: Sender = Sender::Any;
}

/// The names of an object's members, in order, given twice or not.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// The members that may be given once.
const DECLARED: [&str; 11] = [
    "id",
    "type",
    "timestamp",
    "payload",
    "inReplyTo",
    "seq",
    "stream",
    "ack",
    "deadline",
    "items",
    "item",
];

/// How deep and how wide a JSON text is, looked at byte by byte.
fn shape(json: &[u8]) -> (usize, usize) {
    let (mut depth, mut deepest, mut values) = (0_usize, 0, 0);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json {
        match (in_text, *byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'[' | b'{') => {
                depth += 1;
                values += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b',') => values += 1,
            (true | false, _) => {}
        }
    }
    (deepest, values)
}

/// The body of a frame, folded.
pub fn run(data: &[u8]) {
    let body = unfolded(data);
    let body = body.as_slice();
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    let (depth, values) = shape(body);
    let excess = depth > MAX_JSON_DEPTH || values > MAX_JSON_VALUES;

    let parsed = subject::parse(body);
    let presumed = PresumedEnvelope::read(body);
    match &parsed {
        Ok(read) => {
            assert!(is_json && !excess, "depth {depth}, {values} values");
            let Names(names) = serde_json::from_slice(body).expect("an envelope is an object");
            for declared in DECLARED {
                let given = names.iter().filter(|name| *name == declared).count();
                assert!(given <= 1, "`{declared}` is given {given} times");
            }
            check_members(read);
            if body.len() <= MAX_WRITTEN {
                write_again(read);
            }
        }
        Err(error) => check_error(error, body, is_json, excess),
    }
    if let Some(presumed) = presumed {
        check_presumed(&presumed, parsed.as_ref().ok());
    }
}

fn check_error(error: &EnvelopeError, body: &[u8], is_json: bool, excess: bool) {
    variants::note_envelope(error.kind);
    assert!(error.to_string().len() <= MAX_ERROR_TEXT);
    let is_utf8 = std::str::from_utf8(body).is_ok();
    match error.kind {
        EnvelopeErrorKind::NotUtf8 => assert!(!is_utf8),
        EnvelopeErrorKind::TooDeep | EnvelopeErrorKind::TooManyValues => {
            assert!(!is_json || excess);
        }
        // Skipping is laxer than reading: it does not look into escapes.
        EnvelopeErrorKind::NotJson => assert!(serde_json::from_slice::<Value>(body).is_err()),
        EnvelopeErrorKind::NotAnEnvelope => assert!(is_utf8),
    }
    if is_utf8 && is_json && excess {
        assert!(matches!(
            error.kind,
            EnvelopeErrorKind::TooDeep | EnvelopeErrorKind::TooManyValues
        ));
    }
    if let Some(id) = &error.id {
        assert!(id.to_string().len() <= MAX_MESSAGE_ID);
    }
}

fn check_members(read: &Read) {
    let message = &read.message;
    let id = message.id.to_string();
    assert!(id.len() <= MAX_MESSAGE_ID);
    assert_eq!(MessageId::new(&id).as_ref(), Ok(&message.id));
    assert!(message.message_type.len() <= MAX_MESSAGE_TYPE);
    let time = message.timestamp;
    assert_eq!(time.to_string().parse(), Ok(time));
    assert!((Timestamp::MIN..=Timestamp::MAX).contains(&time));
    if let Some((seq, _)) = read.delivery {
        assert!(seq > 0);
    }
    let Members { request, item, .. } = read.members;
    if let Some(deadline) = request.deadline_ms() {
        assert!((1..=MAX_DEADLINE_MS).contains(&deadline));
    }
    assert!(
        request
            .items
            .is_none_or(|items| (1..=MAX_ITEM_GRANT).contains(&items))
    );
    assert_ne!(item, Some(0));
    payloads::read_as_named(message);
}

fn same(a: &IpcMessage, b: &IpcMessage) {
    assert_eq!(a.id, b.id);
    assert_eq!(a.message_type, b.message_type);
    assert_eq!(a.timestamp, b.timestamp);
    assert_eq!(a.in_reply_to, b.in_reply_to);
    let text = |message: &IpcMessage| message.payload.as_ref().map(|json| json.get().to_owned());
    assert_eq!(text(a), text(b));
}

/// Writes a message, and reads it in both ways.
fn write_again(read: &Read) {
    let message = &read.message;
    let head = EnvelopeHead {
        delivery: read.delivery.as_ref().map(|(seq, stream)| DeliveryHead {
            seq: *seq,
            stream: stream.as_ref().map(StreamName::as_str),
        }),
        in_reply_to: message.in_reply_to.as_ref(),
        wants_acknowledgment: read.members.wants_acknowledgment,
        request: read.members.request,
        item: read.members.item,
        ..EnvelopeHead::new(&message.id, &message.message_type, message.timestamp)
    };
    let mut wire = Vec::new();
    let null = migration_ipc_protocol::RawValue::NULL;
    let payload = message.payload.as_deref().unwrap_or(null);
    MessageSerializer::encode(&mut wire, head, payload).expect("what was read can be written");
    let [body] = crate::frame::read(&wire).bodies[..] else {
        panic!("one frame");
    };
    let again = subject::parse(body).expect("what was written can be read");
    same(message, &again.message);
    assert_eq!(read.delivery, again.delivery);
    assert_eq!(read.members, again.members);

    let plain = |text: &str| text.chars().all(|c| c >= ' ' && c != '"' && c != '\\');
    let usual = plain(&message.id.to_string()) && plain(&message.message_type);
    if usual && message.in_reply_to.is_none() {
        let presumed = PresumedEnvelope::read(body).expect("it is in the usual form");
        assert_eq!(presumed.delivery, head.delivery);
        assert_eq!(members_of(&presumed), read.members);
        same(
            message,
            &presumed.to_message().expect("its payload is JSON"),
        );
    }
}

fn members_of(presumed: &PresumedEnvelope<'_>) -> Members {
    Members {
        wants_acknowledgment: presumed.wants_acknowledgment,
        request: presumed.request,
        item: presumed.item,
    }
}

/// Where the short way proves something, the long one says the same.
fn check_presumed(presumed: &PresumedEnvelope<'_>, parsed: Option<&Read>) {
    if let Some(message) = presumed.to_message() {
        let parsed = parsed.expect("a payload that is JSON proves the presumption");
        same(&message, &parsed.message);
        let delivery = parsed.delivery.as_ref();
        assert_eq!(
            presumed.delivery.map(|delivery| delivery.seq),
            delivery.map(|(seq, _)| *seq)
        );
    }
    if presumed.payload::<Anything>().is_some() {
        let parsed = parsed.expect("a payload that was read proves the presumption");
        assert_eq!(members_of(presumed), parsed.members);
        assert!(parsed.message.payload::<Anything>().is_ok());
    }
}
