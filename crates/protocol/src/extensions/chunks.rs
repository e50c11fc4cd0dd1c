//! Bodies that are longer than a frame, in pieces.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::bodies::CHUNK_TAG;
use crate::limits::{LENGTH_PREFIX, MAX_CHUNK_FRAME};
use crate::message_type::message_types;
use crate::messages::open_enum;
use crate::payload::{MessagePayload, Sender};

/// A SHA-256 digest (FIPS 180-4): on the wire 64 hexadecimal digits in lower case. Digits in upper
/// case are read too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let invalid = || de::Error::custom("a digest has 64 hexadecimal digits");
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(invalid());
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            // `from_str_radix` would take a leading `+`.
            if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(digest))
    }
}

/// `CHUNKS_BEGIN`: a body follows in pieces. Only between peers that negotiated
/// [`Chunks`](crate::hello::Capability::Chunks), as everything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunksBegin {
    /// The number of the transfer, never used before in this direction of the connection.
    pub transfer: u32,
    /// The length of the body in bytes.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Sha256,
}

impl MessagePayload for ChunksBegin {
    const TYPE: &'static str = message_types::CHUNKS_BEGIN;
    const SENDER: Sender = Sender::Any;
}

/// `CHUNKS_TAKE`: how much of a body its receiver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunksTake {
    /// The transfer.
    pub transfer: u32,
    /// From where on.
    pub from: u64,
    /// Up to where, for now.
    pub to: u64,
}

impl MessagePayload for ChunksTake {
    const TYPE: &'static str = message_types::CHUNKS_TAKE;
    const SENDER: Sender = Sender::Any;
}

open_enum! {
    /// Why a transfer ended early, for programs.
    pub enum ChunksEndCode {
        /// The body is longer than its receiver takes.
        TooLarge = "too_large",
        /// The receiver holds too much already; later again.
        Busy = "busy",
        /// What arrived is not what was declared.
        Hash = "hash",
        /// The sender does not need it any more.
        Abandoned = "abandoned",
    }
}

/// `CHUNKS_END`: no more of a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunksEnd {
    /// The transfer.
    pub transfer: u32,
    /// Why, for programs.
    pub code: ChunksEndCode,
    /// Why, for people.
    #[serde(default)]
    pub error: String,
}

impl MessagePayload for ChunksEnd {
    const TYPE: &'static str = message_types::CHUNKS_END;
    const SENDER: Sender = Sender::Any;
}

/// A piece of a body: what a frame holds that is told by [`CHUNK_TAG`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The transfer.
    pub transfer: u32,
    /// Where in the body it begins.
    pub offset: u64,
    /// What it holds, at least one byte and at most [`MAX_DATA`](Self::MAX_DATA).
    pub data: &'a [u8],
}

/// A body is no [`Chunk`], though it begins like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a body of {size} bytes is no piece of a chunked one")]
pub struct ChunkError {
    /// Its length in bytes.
    pub size: usize,
}

/// Bytes in front of the data: tag, transfer and offset.
const HEAD: usize = 13;

impl<'a> Chunk<'a> {
    /// The most data of one.
    pub const MAX_DATA: usize = MAX_CHUNK_FRAME - LENGTH_PREFIX - HEAD;

    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// [`ChunkError`] when it has no data or too much, or another tag.
    pub fn read(body: &'a [u8]) -> Result<Self, ChunkError> {
        let wrong = ChunkError { size: body.len() };
        let (head, data) = body.split_first_chunk::<{ HEAD }>().ok_or(wrong)?;
        let [CHUNK_TAG, t0, t1, t2, t3, offset @ ..] = *head else {
            return Err(wrong);
        };
        if data.is_empty() || data.len() > Self::MAX_DATA {
            return Err(wrong);
        }
        Ok(Self {
            transfer: u32::from_le_bytes([t0, t1, t2, t3]),
            offset: u64::from_le_bytes(offset),
            data,
        })
    }

    /// The head of its body.
    #[must_use]
    pub fn head(&self) -> [u8; HEAD] {
        let mut head = [CHUNK_TAG; HEAD];
        head[1..5].copy_from_slice(&self.transfer.to_le_bytes());
        head[5..].copy_from_slice(&self.offset.to_le_bytes());
        head
    }
}

impl fmt::Debug for Chunk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("transfer", &self.transfer)
            .field("offset", &self.offset)
            .field("bytes", &self.data.len())
            .finish()
    }
}
