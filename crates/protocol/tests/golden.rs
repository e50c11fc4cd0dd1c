//! The codec vectors of the folder `golden`.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fmt::Debug;

use migration_ipc_protocol::messages::{
    Acknowledgment, AgentStarted, BackupCompleted, BackupProgress, BackupRequest, BackupStarted,
    ConfigurationUpdate, DelayRequest, ErrorReport, EscalationNotice, Heartbeat, ShutdownRequest,
    StatusUpdate, UserAction,
};
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, FrameDecoder, FrameError, IpcMessage, MessageId, MessagePayload,
    MessageSerializer, MessageType, RawValue, SchemaFingerprint, Timestamp, message_types,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The vectors of a file of `golden/codec`, which are compiled in: the tests may run elsewhere.
macro_rules! vectors {
    ($file:literal) => {
        parse(include_str!(concat!("../../../golden/codec/", $file)))
    };
}

fn parse<T: DeserializeOwned>(text: &str) -> Vec<T> {
    let vectors: Vec<T> = serde_json::from_str(text).expect("the vectors have the documented form");
    assert!(!vectors.is_empty());
    vectors
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|character| character.to_digit(16))
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits are a byte"))
        .collect()
}

/// Reads a payload as its type and writes it again.
fn rewrite<T: MessagePayload + Debug>(message: &IpcMessage, head: EnvelopeHead<'_>) -> Vec<u8> {
    let payload: T = message
        .payload()
        .unwrap_or_else(|error| panic!("{message:?}: {error}"));
    let mut frame = Vec::new();
    MessageSerializer::encode(&mut frame, head, &payload).expect("the message is small");
    frame
}

/// What the codec makes of a message: the body that it writes for the payload that it read.
fn rewrite_by_type(message: &IpcMessage) -> String {
    let head = EnvelopeHead::new(&message.id, &message.message_type, message.timestamp);
    let rewrite = match message.message_type.as_str() {
        message_types::BACKUP_REQUEST => rewrite::<BackupRequest>,
        message_types::STATUS_UPDATE => rewrite::<StatusUpdate>,
        message_types::ESCALATION_NOTICE => rewrite::<EscalationNotice>,
        message_types::CONFIGURATION_UPDATE => rewrite::<ConfigurationUpdate>,
        message_types::SHUTDOWN_REQUEST => rewrite::<ShutdownRequest>,
        message_types::AGENT_STARTED => rewrite::<AgentStarted>,
        message_types::BACKUP_STARTED => rewrite::<BackupStarted>,
        message_types::BACKUP_PROGRESS => rewrite::<BackupProgress>,
        message_types::BACKUP_COMPLETED => rewrite::<BackupCompleted>,
        message_types::DELAY_REQUEST => rewrite::<DelayRequest>,
        message_types::USER_ACTION => rewrite::<UserAction>,
        message_types::ERROR_REPORT => rewrite::<ErrorReport>,
        message_types::HEARTBEAT => rewrite::<Heartbeat>,
        message_types::ACKNOWLEDGMENT => rewrite::<Acknowledgment>,
        other => panic!("no payload type for {other}"),
    };
    let frame = rewrite(message, head);
    String::from_utf8(frame[4..].to_vec()).expect("JSON is UTF-8")
}

#[test]
fn messages_are_written_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        r#type: String,
        id: MessageId,
        time: Timestamp,
        payload: Box<RawValue>,
        body: Box<RawValue>,
    }

    let mut seen = BTreeSet::new();
    let vectors: Vec<Vector> = vectors!("encode.json");
    for vector in vectors {
        let message = IpcMessage {
            id: vector.id,
            message_type: MessageType::new(&vector.r#type),
            timestamp: vector.time,
            payload: Some(vector.payload),
            in_reply_to: None,
        };
        assert_eq!(
            rewrite_by_type(&message),
            vector.body.get(),
            "{}",
            vector.name
        );
        seen.insert(vector.r#type);
    }
    for known in message_types::PLAIN {
        assert!(seen.contains(known), "no vector writes {known}");
    }
}

/// Whoever changes a member of a built-in type changes the vectors, and then this fingerprint.
#[test]
fn the_fingerprint_of_the_schema_is_that_of_the_built_in_members() {
    #[derive(Deserialize)]
    struct Vector {
        r#type: String,
        payload: serde_json::Map<String, Value>,
    }

    let mut members = BTreeSet::new();
    let vectors: Vec<Vector> = vectors!("encode.json");
    for Vector { r#type, payload } in vectors {
        members.extend(payload.keys().map(|name| format!("{type}.{name};")));
    }
    let text: String = members.into_iter().collect();
    // The offset basis of FNV-1a.
    let digest = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(
        SchemaFingerprint::BUILT_IN.to_string(),
        format!("{digest:016x}")
    );
}

#[test]
fn messages_are_read_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        body: String,
        reads_as: Value,
    }

    let mut seen = BTreeSet::new();
    let vectors: Vec<Vector> = vectors!("decode.json");
    for vector in vectors {
        let message = MessageSerializer::decode(vector.body.as_bytes())
            .unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        let read = if message.payload.is_some() {
            rewrite_by_type(&message)
        } else {
            let mut frame = Vec::new();
            MessageSerializer::encode_message(&mut frame, &message).expect("the message is small");
            String::from_utf8(frame[4..].to_vec()).expect("JSON is UTF-8")
        };
        let read: Value = serde_json::from_str(&read).expect("what is written is JSON");
        assert_eq!(read, vector.reads_as, "{}", vector.name);
        seen.insert(message.message_type.to_string());
    }
    for known in message_types::PLAIN {
        assert!(seen.contains(known), "no vector reads {known}");
    }
}

#[test]
fn times_are_read_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        text: String,
        reads_as: Option<String>,
    }

    let vectors: Vec<Vector> = vectors!("times.json");
    for vector in vectors {
        let read = vector
            .text
            .parse::<Timestamp>()
            .ok()
            .map(|time| time.to_string());
        assert_eq!(read, vector.reads_as, "{:?}", vector.text);
    }
}

#[test]
fn bodies_are_refused_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        body: Option<String>,
        body_hex: Option<String>,
        id: Option<MessageId>,
    }

    let vectors: Vec<Vector> = vectors!("refused.json");
    for vector in vectors {
        let body = match (vector.body, vector.body_hex) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(hex)) => from_hex(&hex),
            _ => panic!("{}: one body, please", vector.name),
        };
        let error = Envelope::parse(&body).map(|_| ()).expect_err(&vector.name);
        assert_eq!(error.id, vector.id, "{}: {error}", vector.name);
    }
}

#[test]
fn frames_are_found_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        stream_hex: String,
        bodies_hex: Vec<String>,
        error: Option<String>,
        #[serde(default)]
        partial: bool,
    }

    let vectors: Vec<Vector> = vectors!("frames.json");
    for vector in vectors {
        let stream = from_hex(&vector.stream_hex);
        let mut input = stream.as_slice();
        let mut decoder = FrameDecoder::new();
        let mut bodies = Vec::new();
        let error = loop {
            match decoder.decode(&mut input) {
                Ok(Some(body)) => bodies.push(body.to_vec()),
                Ok(None) => break None,
                Err(FrameError::Empty) => break Some("empty"),
                Err(FrameError::Negative(_)) => break Some("negative"),
                Err(FrameError::TooLong { .. }) => break Some("too_long"),
            }
        };
        let expected: Vec<_> = vector.bodies_hex.iter().map(|hex| from_hex(hex)).collect();
        assert_eq!(bodies, expected, "{}", vector.name);
        assert_eq!(error, vector.error.as_deref(), "{}", vector.name);
        assert_eq!(decoder.has_partial(), vector.partial, "{}", vector.name);
    }
}
