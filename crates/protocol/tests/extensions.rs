//! The vectors of the extensions in the folder `golden`, as far as they are about this crate.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use migration_ipc_protocol::extensions::{
    Acknowledgments, Batch, BatchOutcomes, BodyKind, Cancel, Chunk, ChunksBegin, ChunksEnd,
    ChunksTake, Decompressor, Encrypted, EncryptionConfirm, ItemGrant, compress_frame,
};
use migration_ipc_protocol::hello::{Capability, CapabilitySet, Hello, HelloAnswer};
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, IpcMessage, MessageId, MessagePayload, MessageSerializer, MessageType,
    PresumedEnvelope, RawValue, Timestamp, message_types,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The vectors of a file of `golden/extensions`, which are compiled in: the tests may run elsewhere.
macro_rules! vectors {
    ($file:literal) => {
        parse(include_str!(concat!("../../../golden/extensions/", $file)))
    };
}

fn parse<T: DeserializeOwned>(text: &str) -> Vec<T> {
    let vectors: Vec<T> = serde_json::from_str(text).expect("the vectors have the documented form");
    assert!(!vectors.is_empty());
    vectors
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit");
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).expect("a byte"))
        .collect()
}

/// Reads a payload, and writes it again; `None` when it is refused.
fn rewrite<T: MessagePayload>(payload: &str) -> Option<Value> {
    let message = IpcMessage {
        id: MessageId::new("m-1").expect("a short id"),
        message_type: MessageType::of::<T>(),
        timestamp: Timestamp::UNIX_EPOCH,
        payload: Some(RawValue::from_string(payload.to_owned()).expect("the vectors are JSON")),
        in_reply_to: None,
    };
    let read = message.payload::<T>().ok()?;
    Some(serde_json::to_value(read).expect("what was read can be written"))
}

#[test]
fn hellos_are_read_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        of: String,
        payload: String,
        reads_as: Option<Value>,
    }

    let vectors: Vec<Vector> = vectors!("hello.json");
    for vector in vectors {
        let read = match &*vector.of {
            "client" => rewrite::<Hello>(&vector.payload),
            "service" => rewrite::<HelloAnswer>(&vector.payload),
            other => panic!("{}: a hello of {other}", vector.name),
        };
        assert_eq!(read, vector.reads_as, "{}", vector.name);
    }
}

#[test]
fn capabilities_are_agreed_on_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        client: CapabilitySet,
        service: CapabilitySet,
        agreed: Value,
    }

    let mut seen = CapabilitySet::EMPTY;
    let vectors: Vec<Vector> = vectors!("capabilities.json");
    for vector in vectors {
        let agreed = vector.client.intersection(vector.service).complete();
        let written = serde_json::to_value(agreed).expect("a list of names");
        assert_eq!(written, vector.agreed, "{}", vector.name);
        seen = agreed.iter().fold(seen, CapabilitySet::with);
    }
    for capability in Capability::ALL {
        assert!(
            seen.contains(capability),
            "no vector agrees on {capability:?}"
        );
    }
}

#[derive(Deserialize)]
struct MembersVector {
    name: String,
    body: String,
    reads_as: Option<Value>,
    written: bool,
}

/// What the four members are, as the vectors say it.
fn members_of(envelope: &Envelope<'_>) -> Value {
    let malformed = || json!("malformed");
    let (mut deadline, mut items) = (Value::Null, Value::Null);
    match envelope.request() {
        Ok(request) => {
            deadline = json!(request.deadline_ms());
            items = json!(request.items);
        }
        Err(error) if error.to_string().contains("`deadline`") => deadline = malformed(),
        Err(_) => items = malformed(),
    }
    json!({
        "ack": envelope.wants_acknowledgment().map_or_else(|_| malformed(), |wanted| json!(wanted)),
        "deadline": deadline,
        "items": items,
        "item": envelope.item().map_or_else(|_| malformed(), |item| json!(item)),
    })
}

#[test]
fn members_of_envelopes_are_read_as_the_vectors_say() {
    let vectors: Vec<MembersVector> = vectors!("members.json");
    for vector in vectors {
        let read = Envelope::parse(vector.body.as_bytes())
            .ok()
            .map(|envelope| members_of(&envelope));
        assert_eq!(read, vector.reads_as, "{}", vector.name);
    }
}

#[test]
fn the_short_way_reads_the_members_as_the_long_one_or_not_at_all() {
    let vectors: Vec<MembersVector> = vectors!("members.json");
    for vector in vectors {
        let presumed = PresumedEnvelope::read(vector.body.as_bytes());
        assert!(presumed.is_some() || !vector.written, "{}", vector.name);
        let Some(presumed) = presumed.filter(|presumed| presumed.payload::<Encrypted>().is_some())
        else {
            continue;
        };
        let read = json!({
            "ack": presumed.wants_acknowledgment,
            "deadline": presumed.request.deadline_ms(),
            "items": presumed.request.items,
            "item": presumed.item,
        });
        assert_eq!(Some(read), vector.reads_as, "{}", vector.name);
    }
}

#[test]
fn members_of_envelopes_are_written_as_the_vectors_say() {
    let vectors: Vec<MembersVector> = vectors!("members.json");
    let mut written = 0;
    for vector in vectors.iter().filter(|vector| vector.written) {
        let envelope = Envelope::parse(vector.body.as_bytes()).expect(&vector.name);
        let head = EnvelopeHead {
            delivery: envelope.delivery().expect(&vector.name),
            wants_acknowledgment: envelope.wants_acknowledgment().expect(&vector.name),
            request: envelope.request().expect(&vector.name),
            item: envelope.item().expect(&vector.name),
            in_reply_to: envelope.in_reply_to.as_ref(),
            ..EnvelopeHead::new(&envelope.id, &envelope.message_type, envelope.timestamp)
        };
        let mut frame = Vec::new();
        MessageSerializer::encode(&mut frame, head, &json!({})).expect("it is small");
        assert_eq!(
            std::str::from_utf8(&frame[4..]).expect("JSON is UTF-8"),
            vector.body,
            "{}",
            vector.name
        );
        written += 1;
    }
    assert!(written >= 10);
}

#[test]
fn payloads_are_read_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        r#type: String,
        payload: String,
        reads_as: Option<Value>,
    }

    let (mut read_ones, mut refused_ones) = (BTreeSet::new(), BTreeSet::new());
    let vectors: Vec<Vector> = vectors!("payloads.json");
    for vector in vectors {
        let rewrite = match &*vector.r#type {
            message_types::CANCEL => rewrite::<Cancel>,
            message_types::ITEMS => rewrite::<ItemGrant>,
            message_types::ACKNOWLEDGMENTS => rewrite::<Acknowledgments>,
            message_types::BATCH => rewrite::<Batch>,
            message_types::BATCH_OUTCOMES => rewrite::<BatchOutcomes>,
            message_types::CHUNKS_BEGIN => rewrite::<ChunksBegin>,
            message_types::CHUNKS_TAKE => rewrite::<ChunksTake>,
            message_types::CHUNKS_END => rewrite::<ChunksEnd>,
            message_types::ENCRYPTED => rewrite::<Encrypted>,
            message_types::ENCRYPTION_CONFIRM => rewrite::<EncryptionConfirm>,
            other => panic!("{}: no payload type for {other}", vector.name),
        };
        let read = rewrite(&vector.payload);
        assert_eq!(read, vector.reads_as, "{}", vector.name);
        let seen = if read.is_some() {
            &mut read_ones
        } else {
            &mut refused_ones
        };
        seen.insert(vector.r#type);
    }
    let of_the_hello = [
        message_types::HELLO,
        message_types::CREDIT,
        message_types::GOODBYE,
    ];
    for known in message_types::NEGOTIATED {
        let has_both = read_ones.contains(known) && refused_ones.contains(known);
        assert!(has_both || of_the_hello.contains(&known), "{known}");
    }
}

#[test]
fn kinds_of_bodies_are_told_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        body_hex: String,
        kind: String,
    }

    let vectors: Vec<Vector> = vectors!("bodies.json");
    for vector in vectors {
        let kind = match BodyKind::of(&from_hex(&vector.body_hex)) {
            BodyKind::Json => "json",
            BodyKind::Compressed => "compressed",
            BodyKind::Chunk => "chunk",
        };
        assert_eq!(kind, vector.kind, "{}", vector.name);
    }
}

#[test]
fn pieces_are_read_and_written_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Fields {
        transfer: u32,
        offset: u64,
        data_hex: String,
        #[serde(default)]
        zeros: usize,
    }

    #[derive(Deserialize)]
    struct Vector {
        name: String,
        body_hex: String,
        #[serde(default)]
        zeros: usize,
        reads_as: Option<Fields>,
    }

    fn with_zeros(hex: &str, zeros: usize) -> Vec<u8> {
        let mut bytes = from_hex(hex);
        bytes.resize(bytes.len() + zeros, 0);
        bytes
    }

    let vectors: Vec<Vector> = vectors!("chunks.json");
    for vector in vectors {
        let body = with_zeros(&vector.body_hex, vector.zeros);
        let read = Chunk::read(&body);
        match vector.reads_as {
            Some(fields) => {
                let data = with_zeros(&fields.data_hex, fields.zeros);
                let expected = Chunk {
                    transfer: fields.transfer,
                    offset: fields.offset,
                    data: &data,
                };
                assert_eq!(read, Ok(expected), "{}", vector.name);
                let written = [&expected.head()[..], &data].concat();
                assert_eq!(written, body, "{}", vector.name);
            }
            None => assert!(read.is_err(), "{}", vector.name),
        }
    }
}

#[test]
fn compressed_bodies_are_read_as_the_vectors_say_and_what_we_make_of_them_too() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        body_hex: String,
        original: Option<String>,
        #[serde(default = "once")]
        times: usize,
    }

    fn once() -> usize {
        1
    }

    let vectors: Vec<Vector> = vectors!("lz4.json");
    let (mut shortened, mut refused) = (0, 0);
    // One for all, as a connection has it: what an earlier body left must not show.
    let mut decompressor = Decompressor::new();
    for vector in vectors {
        let opened = decompressor.open(&from_hex(&vector.body_hex));
        let Some(original) = vector.original.map(|text| text.repeat(vector.times)) else {
            assert!(opened.is_err(), "{}", vector.name);
            refused += 1;
            continue;
        };
        assert_eq!(opened, Ok(original.as_bytes()), "{}", vector.name);

        let length = u32::try_from(original.len()).expect("a frame's length");
        let frame = [&length.to_le_bytes()[..], original.as_bytes()].concat();
        let mut wire = Vec::new();
        if compress_frame(&frame, &mut wire) {
            assert!(wire.len() < frame.len(), "{}", vector.name);
            let ours = decompressor.open(&wire[4..]);
            assert_eq!(ours, Ok(original.as_bytes()), "{}", vector.name);
            shortened += 1;
        }
    }
    assert!(shortened > 2 && refused > 10);
}

/// What closes a connection by its form alone; the rest takes a connection.
#[test]
fn acknowledgments_of_many_are_refused_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        frames: Vec<Value>,
        payload: Box<RawValue>,
        closes: bool,
    }

    let vectors: Vec<Vector> = vectors!("acknowledgments.json");
    let mut refused = 0;
    for vector in vectors {
        let sent = u64::try_from(vector.frames.len()).expect("a few");
        let good =
            serde_json::from_str::<Acknowledgments>(vector.payload.get()).is_ok_and(|read| {
                let last_ones = read.handled.iter().map(|range| range.last());
                let failed = read.failed.iter().map(|failed| failed.frame);
                last_ones
                    .chain(failed)
                    .all(|frame| (1..=sent).contains(&frame))
            });
        assert_eq!(good, !vector.closes, "{}", vector.name);
        refused += usize::from(!good);
    }
    assert!(refused > 0);
}
