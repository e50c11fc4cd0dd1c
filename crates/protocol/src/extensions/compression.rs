//! Compressed bodies: a tag, the length of the original, and one LZ4 block.
//!
//! Each body is compressed by itself, so a frame that is lost with its connection takes no other one
//! with it, and nothing is kept between two frames.

use std::fmt;

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use super::bodies::{BodyKind, COMPRESSED_TAG};
use crate::limits::{LENGTH_PREFIX, MAX_BODY, MAX_LZ4_GAIN};

/// Bytes in front of the block: the tag, and the length of the original.
const HEAD: usize = 5;

/// What a [`Decompressor`] keeps between two bodies, in bytes: enough for those of 64 KiB, give or take.
const KEPT: usize = 80 * 1024;

/// Appends `frame`, a whole one with its length, to `out` in its compressed form, if that is shorter.
/// Otherwise, and for what is no frame or is compressed already, it returns `false`, and `out` is as it
/// was.
///
/// ```
/// use migration_ipc_protocol::extensions::{BodyKind, Decompressor, compress_frame};
///
/// let frame = [&[100, 0, 0, 0][..], &[b' '; 98], b"{}"].concat();
/// let mut wire = Vec::new();
/// assert!(compress_frame(&frame, &mut wire));
/// let body = &wire[4..];
/// assert_eq!(BodyKind::of(body), BodyKind::Compressed);
/// assert_eq!(Decompressor::new().open(body)?, &frame[4..]);
/// # Ok::<(), migration_ipc_protocol::extensions::CompressionError>(())
/// ```
pub fn compress_frame(frame: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let gained = try_compress(frame, out).is_some();
    if !gained {
        out.truncate(start);
    }
    gained
}

fn try_compress(frame: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (_, body) = frame.split_at_checked(LENGTH_PREFIX)?;
    if body.is_empty() || body.len() > MAX_BODY || BodyKind::of(body) == BodyKind::Compressed {
        return None;
    }
    let length = u32::try_from(body.len()).ok()?;
    let start = out.len();
    out.extend_from_slice(&[COMPRESSED_TAG; LENGTH_PREFIX + HEAD]);
    let block = out.len();
    out.resize(block + get_maximum_output_size(body.len()), 0);
    let size = compress_into(body, out.get_mut(block..)?).ok()?;
    if HEAD + size >= body.len() {
        return None;
    }
    let prefix = i32::try_from(HEAD + size).ok()?;
    out.truncate(block + size);
    let (head, length_at) = out
        .get_mut(start..block)?
        .split_at_mut_checked(LENGTH_PREFIX)?;
    head.copy_from_slice(&prefix.to_le_bytes());
    length_at
        .get_mut(1..)?
        .copy_from_slice(&length.to_le_bytes());
    Some(())
}

/// How many bytes of a frame [`promised_length`] looks at.
pub const COMPRESSED_START: usize = LENGTH_PREFIX + HEAD;

/// How long the original is, by its own words, of a frame that begins so. `None` for one that is not
/// compressed.
#[must_use]
pub fn promised_length(start: &[u8; COMPRESSED_START]) -> Option<usize> {
    let [_, _, _, _, COMPRESSED_TAG, length @ ..] = *start else {
        return None;
    };
    Some(usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX))
}

/// Why a compressed body cannot be read. The peer is at fault, and the connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// It is too short, or begins in another way.
    #[error("a body of {size} bytes is no compressed one")]
    NotCompressed {
        /// Its length in bytes.
        size: usize,
    },
    /// The length of its original is none that a body has.
    #[error("a compressed body promises {length} bytes, and a body has from 1 to {MAX_BODY}")]
    Length {
        /// What it names, in bytes.
        length: u32,
    },
    /// The length of its original is more than its block can become: no memory is reserved for it.
    #[error("a compressed body promises {length} bytes, which no block of {block} can become")]
    Promise {
        /// What it names, in bytes.
        length: usize,
        /// The length of its block in bytes.
        block: usize,
    },
    /// Its block is damaged, or becomes more than it names.
    #[error("a compressed body of {length} bytes does not decompress")]
    Block {
        /// What it names, in bytes.
        length: usize,
    },
    /// Its block becomes less than it names.
    #[error("a compressed body of {length} bytes decompresses to {actual}")]
    Short {
        /// What it names, in bytes.
        length: usize,
        /// What it is, in bytes.
        actual: usize,
    },
    /// What is compressed is a compressed body.
    #[error("a compressed body is compressed again")]
    Nested,
}

/// Reads compressed bodies, one after the other, in one buffer.
///
/// It never writes more than the length that a body names, nor reserves memory for a length that is
/// over [`MAX_BODY`], or that is out of reach of the bytes that have arrived.
#[derive(Default)]
pub struct Decompressor {
    buffer: Vec<u8>,
}

impl Decompressor {
    /// One that has no buffer yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// Reads a body of the kind [`BodyKind::Compressed`]. What it was before is JSON or a chunk.
    ///
    /// # Errors
    ///
    /// [`CompressionError`] when it is not exactly what it says that it is.
    pub fn open(&mut self, body: &[u8]) -> Result<&[u8], CompressionError> {
        let (length, block) = read_head(body)?;
        if self.buffer.len() < length {
            self.buffer.reserve_exact(length - self.buffer.len());
            self.buffer.resize(length, 0);
        }
        // What an earlier body left there is no part of the result: all of `length` is written anew, or
        // it is an error.
        let damaged = CompressionError::Block { length };
        let original = self.buffer.get_mut(..length).ok_or(damaged)?;
        let actual = decompress_into(block, original).map_err(|_| damaged)?;
        if actual != length {
            return Err(CompressionError::Short { length, actual });
        }
        match BodyKind::of(original) {
            BodyKind::Json | BodyKind::Chunk => Ok(original),
            BodyKind::Compressed => Err(CompressionError::Nested),
        }
    }

    /// Gives back what a large body made it take. What is left is bounded, and of use for the next one.
    pub fn trim(&mut self) {
        self.buffer.truncate(KEPT);
        self.buffer.shrink_to(KEPT);
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("buffer", &self.buffer.len())
            .finish()
    }
}

/// The length of the original, and the block.
fn read_head(body: &[u8]) -> Result<(usize, &[u8]), CompressionError> {
    let size = body.len();
    let Some((&[COMPRESSED_TAG, l0, l1, l2, l3], block)) = body.split_first_chunk::<HEAD>() else {
        return Err(CompressionError::NotCompressed { size });
    };
    let named = u32::from_le_bytes([l0, l1, l2, l3]);
    let length = usize::try_from(named)
        .ok()
        .filter(|length| (1..=MAX_BODY).contains(length))
        .ok_or(CompressionError::Length { length: named })?;
    if length > block.len().saturating_mul(MAX_LZ4_GAIN) {
        let block = block.len();
        return Err(CompressionError::Promise { length, block });
    }
    Ok((length, block))
}
