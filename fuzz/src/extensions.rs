//! What the extensions read besides envelopes: each reader agrees with a simple one by the rules of
//! the documentation, what was read is written as it came, and nothing is more than its limit.

use migration_ipc_protocol::extensions::{Acknowledgments, Batch, BodyKind, Chunk, ChunkError};
use serde_json::Value;

use crate::{compression, records};

mod subject {
    use super::{Chunk, ChunkError};

    #[cfg(not(feature = "planted"))]
    pub(super) fn piece(body: &[u8]) -> Result<Chunk<'_>, ChunkError> {
        Chunk::read(body)
    }

    /// Takes the offset as the number of a 32-bit machine.
    #[cfg(feature = "planted")]
    pub(super) fn piece(body: &[u8]) -> Result<Chunk<'_>, ChunkError> {
        let read = Chunk::read(body)?;
        Ok(Chunk {
            offset: read.offset & u64::from(u32::MAX),
            ..read
        })
    }
}

/// The first byte of an input says which reader gets the rest.
pub const PIECE: u8 = 0;
pub const ACKNOWLEDGMENTS: u8 = 1;
pub const BATCH: u8 = 2;

pub const COMPRESSED: u8 = 3;
pub const TO_COMPRESS: u8 = 4;
pub const RECORDS: u8 = 5;
pub const HANDSHAKE: u8 = 6;
pub const HANDSHAKE_TEXTS: u8 = 7;
pub const KEY_FILE: u8 = 8;

/// Every reader, at the place of its number.
const LAYERS: [fn(&[u8]); 9] = [
    piece,
    acknowledgments,
    batch,
    compression::read,
    compression::written,
    records::records,
    records::handshake,
    records::texts,
    records::key_file,
];

/// Which layer, and what it reads.
pub fn run(data: &[u8]) {
    if let Some((which, input)) = data.split_first() {
        LAYERS[usize::from(*which) % LAYERS.len()](input);
    }
}

fn piece(body: &[u8]) {
    let good = body.len() > 13 && body.len() <= 65_532 && body[0] == 2;
    match subject::piece(body) {
        Ok(piece) => {
            assert!(good);
            assert_eq!(BodyKind::of(body), BodyKind::Chunk);
            assert_eq!([&piece.head()[..], piece.data].concat(), body);
        }
        Err(ChunkError { size }) => {
            assert!(!good);
            assert_eq!(size, body.len());
        }
    }
}

/// A frame's number, or another number from 0 on, as JSON has it.
fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

/// Whether the lists are what the documentation says, read without types.
fn are_acknowledgments(json: &Value) -> bool {
    let is_range = |range: &Value| {
        let ends: Option<Vec<_>> = range
            .as_array()
            .and_then(|ends| ends.iter().map(number).collect());
        matches!(ends.as_deref(), Some([first, last]) if 1 <= *first && first <= last)
    };
    let is_failure = |failure: &Value| {
        failure.get("frame").and_then(number).is_some()
            && failure.get("error").is_none_or(Value::is_string)
            && failure
                .get("code")
                .is_none_or(|code| code.is_string() || code.is_null())
    };
    let holds = |name: &str, is_good: &dyn Fn(&Value) -> bool| match json.get(name) {
        None => true,
        Some(Value::Array(list)) => list.len() <= 256 && list.iter().all(is_good),
        Some(_) => false,
    };
    holds("handled", &is_range) && holds("failed", &is_failure)
}

fn acknowledgments(payload: &[u8]) {
    let read = serde_json::from_slice::<Acknowledgments>(payload);
    // Members that are given twice make it malformed, and a `Value` does not tell.
    let json = serde_json::from_slice::<Value>(payload);
    let Ok(read) = read else {
        return;
    };
    for range in &read.handled {
        assert!(1 <= range.first() && range.first() <= range.last());
    }
    assert!(read.handled.len() <= 256 && read.failed.len() <= 256);
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    assert_eq!(
        serde_json::from_slice::<Acknowledgments>(&written).ok(),
        Some(read)
    );
    if let Ok(json) = json
        && json.is_object()
    {
        assert!(are_acknowledgments(&json), "{json}");
    }
}

fn batch(payload: &[u8]) {
    let Ok(batch) = serde_json::from_slice::<Batch>(payload) else {
        return;
    };
    let text = std::str::from_utf8(payload).expect("JSON is UTF-8");
    for message in &batch.messages {
        assert!(text.contains(message.get()), "it is kept as it came");
    }
    let written = serde_json::to_vec(&batch).expect("what was read can be written");
    let again: Batch = serde_json::from_slice(&written).expect("what was written can be read");
    let texts = |batch: &Batch| -> Vec<_> {
        let all = batch.messages.iter().map(|json| json.get());
        all.map(str::to_owned).collect()
    };
    assert_eq!(texts(&batch), texts(&again));
}
