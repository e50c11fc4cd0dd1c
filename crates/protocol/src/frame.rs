//! Frames: a little-endian `i32` length, then that many bytes.

use std::io;

use crate::limits::{DECODER_SLACK, LENGTH_PREFIX, MAX_BODY};

/// Why a peer's bytes are not frames. The peer is at fault, and nothing after the bad length can be
/// understood: the connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is 0.
    #[error("the peer announced an empty frame")]
    Empty,
    /// The length is below 0.
    #[error("the peer announced a frame of negative length {0}")]
    Negative(i32),
    /// The length is over the limit.
    #[error("the peer announced a frame of {length} bytes, over the limit of {limit}")]
    TooLong {
        /// The announced length in bytes.
        length: usize,
        /// The limit that it broke, in bytes.
        limit: usize,
    },
}

/// Finds the frames in a stream of bytes, however these are grouped.
///
/// A frame that lies whole in the input is handed out in place; only the rest of an input is
/// copied. The buffer grows with what has arrived and never with what a length promises, by at most
/// [`DECODER_SLACK`] more than is needed, and a decoder that waits for a new frame owns no heap
/// memory.
///
/// ```
/// # use migration_ipc_protocol::FrameDecoder;
/// let mut decoder = FrameDecoder::new();
/// for piece in [&b"\x02\0"[..], &b"\0\0{"[..], &b"}\x01\0\0\0[\x01"[..]] {
///     let mut input = piece;
///     while let Some(body) = decoder.decode(&mut input)? {
///         println!("{}", String::from_utf8_lossy(body)); // {} and then [
///     }
/// }
/// assert!(decoder.has_partial());
/// # Ok::<(), migration_ipc_protocol::FrameError>(())
/// ```
#[derive(Debug)]
pub struct FrameDecoder {
    /// Bytes not yet handed out begin at `consumed`; those before it belong to the frame handed out
    /// last. Invariant: `consumed <= buffer.len()`.
    buffer: Vec<u8>,
    consumed: usize,
    failed: Option<FrameError>,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder at the beginning of a stream, with the limit [`MAX_BODY`].
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            failed: None,
        }
    }

    /// Takes the next frame and returns its body, or `None` when there is none yet, in which case
    /// all input has been taken over. Kept bytes come before those of `input`, which is advanced
    /// past what was taken.
    ///
    /// # Errors
    ///
    /// [`FrameError`] for a length that no frame has. From then on every call fails in the same
    /// way.
    pub fn decode<'a, 'input: 'a>(
        &'a mut self,
        input: &mut &'input [u8],
    ) -> Result<Option<&'a [u8]>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.release_consumed();
        let found = if self.buffer.is_empty() {
            self.take_whole(input)
        } else {
            self.complete(input)
        };
        match found {
            Ok(Some(Found::InInput(body))) => Ok(Some(body)),
            Ok(Some(Found::InBuffer { start, end })) => Ok(Some(&self.buffer[start..end])),
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = Some(error);
                self.buffer = Vec::new();
                self.consumed = 0;
                Err(error)
            }
        }
    }

    /// Keeps input that was not decoded, whole frames included, for later calls with an empty
    /// input.
    pub fn retain(&mut self, rest: &[u8]) {
        if rest.is_empty() || self.failed.is_some() {
            return;
        }
        self.release_consumed();
        self.compact();
        self.append(rest, rest.len());
    }

    /// Takes out everything that is kept and not handed out: what comes behind the last frame is
    /// something else.
    #[must_use]
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.compact();
        std::mem::take(&mut self.buffer)
    }

    /// Whether a frame has begun to arrive and is not complete yet. False while the next call of
    /// [`decode`](Self::decode) needs no input: the next frame is kept whole, or has a bad length.
    #[must_use]
    pub fn has_partial(&self) -> bool {
        let unread = self.unread();
        match unread.first_chunk() {
            None => !unread.is_empty(),
            Some(prefix) => match body_length(*prefix) {
                Ok(length) => unread.len() < LENGTH_PREFIX + length,
                Err(_) => false,
            },
        }
    }

    /// The first bytes of the next frame, its length included, once so many have arrived: those that are
    /// kept come before `input`. Nothing is taken.
    #[must_use]
    pub fn peek<const N: usize>(&self, input: &[u8]) -> Option<[u8; N]> {
        let mut start = [0; N];
        let mut next = self.unread().iter().chain(input);
        for byte in &mut start {
            *byte = *next.next()?;
        }
        Some(start)
    }

    /// How many bytes are kept and not handed out yet.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.unread().len()
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.consumed..]
    }

    /// Gives the memory back once everything kept has been handed out.
    fn release_consumed(&mut self) {
        if self.consumed == self.buffer.len() && self.consumed > 0 {
            self.buffer = Vec::new();
            self.consumed = 0;
        }
    }

    /// The buffer is empty: looks at the input alone, and keeps it only if it ends within a frame.
    fn take_whole<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Found<'a>>, FrameError> {
        let available = *input;
        let Some((prefix, rest)) = available.split_first_chunk() else {
            self.append(available, available.len());
            *input = &[];
            return Ok(None);
        };
        let length = body_length(*prefix)?;
        if let Some((body, rest)) = rest.split_at_checked(length) {
            *input = rest;
            return Ok(Some(Found::InInput(body)));
        }
        self.append(available, LENGTH_PREFIX + length);
        *input = &[];
        Ok(None)
    }

    /// The buffer holds at least one byte: completes its first frame from the input.
    fn complete<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Found<'a>>, FrameError> {
        if !self.fill(input, LENGTH_PREFIX) {
            return Ok(None);
        }
        let Some(prefix) = self.unread().first_chunk() else {
            return Ok(None);
        };
        let frame = LENGTH_PREFIX + body_length(*prefix)?;
        if !self.fill(input, frame) {
            return Ok(None);
        }
        let start = self.consumed + LENGTH_PREFIX;
        let end = self.consumed + frame;
        self.consumed = end;
        Ok(Some(Found::InBuffer { start, end }))
    }

    /// Moves input into the buffer until `wanted` unread bytes are there; says whether they are.
    fn fill(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.buffered());
        if missing == 0 {
            return true;
        }
        let (taken, rest) = input.split_at(missing.min(input.len()));
        if !taken.is_empty() {
            self.compact();
            self.append(taken, missing);
        }
        *input = rest;
        taken.len() == missing
    }

    /// Forgets what was handed out, so that the buffer holds unread bytes only.
    fn compact(&mut self) {
        if self.consumed > 0 {
            self.buffer = self.buffer[self.consumed..].to_vec();
            self.consumed = 0;
        }
    }

    /// Appends `bytes`, of which at most `wanted` can be needed before the buffer is handed out:
    /// room for the difference is taken ahead only up to the slack.
    fn append(&mut self, bytes: &[u8], wanted: usize) {
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            let ahead = wanted.saturating_sub(bytes.len()).min(DECODER_SLACK);
            self.buffer.reserve_exact(bytes.len() + ahead);
        }
        self.buffer.extend_from_slice(bytes);
    }
}

enum Found<'a> {
    InInput(&'a [u8]),
    InBuffer { start: usize, end: usize },
}

/// Reads a length, before anything is reserved for it.
fn body_length(prefix: [u8; LENGTH_PREFIX]) -> Result<usize, FrameError> {
    let length = i32::from_le_bytes(prefix);
    match usize::try_from(length) {
        Err(_) => Err(FrameError::Negative(length)),
        Ok(0) => Err(FrameError::Empty),
        Ok(length) if length > MAX_BODY => Err(FrameError::TooLong {
            length,
            limit: MAX_BODY,
        }),
        Ok(length) => Ok(length),
    }
}

/// A body is longer than a peer accepts. Its sender is at fault, and nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {size} bytes is over the limit of {limit}")]
pub struct BodyTooLarge {
    /// The size of the body in bytes.
    pub size: usize,
    /// The limit in bytes.
    pub limit: usize,
}

/// Appends one frame to `out`, its body written by `body`. One vector can so take many frames
/// without an allocation for each. On an error, and if `body` panics, `out` is as it was.
///
/// # Errors
///
/// What `body` returns, and [`BodyTooLarge`] over [`MAX_BODY`], with the size that the body would
/// have had: what is over the limit is counted and not stored.
///
/// # Panics
///
/// If `body` writes nothing: there are no empty frames.
pub fn encode_frame<E: From<BodyTooLarge>>(
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut BodyWriter<'_>) -> Result<(), E>,
) -> Result<(), E> {
    encode_frame_within(out, MAX_BODY, body)
}

/// As [`encode_frame`], with a body of at most `limit` bytes. One over [`MAX_BODY`] is sent in pieces.
pub(crate) fn encode_frame_within<E: From<BodyTooLarge>>(
    out: &mut Vec<u8>,
    limit: usize,
    body: impl FnOnce(&mut BodyWriter<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut writer = BodyWriter::begin(out, limit);
    body(&mut writer)?;
    Ok(writer.finish()?)
}

/// Where the body of one frame is written; see [`encode_frame`].
#[derive(Debug)]
pub struct BodyWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Where the frame begins in `out`. Dropping the writer cuts `out` back to here unless the
    /// frame was finished.
    start: usize,
    limit: usize,
    /// How long `out` may become.
    end: usize,
    /// Bytes that were not stored because the body is over the limit already.
    dropped: usize,
    finished: bool,
}

impl<'a> BodyWriter<'a> {
    fn begin(out: &'a mut Vec<u8>, limit: usize) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; LENGTH_PREFIX]);
        Self {
            end: out.len().saturating_add(limit),
            out,
            start,
            limit,
            dropped: 0,
            finished: false,
        }
    }

    /// What was written of the body so far.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.out[self.start + LENGTH_PREFIX..]
    }

    /// Appends to the body; never fails, because what is over the limit is only counted.
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) {
        let room = self.end - self.out.len();
        if self.dropped == 0 && bytes.len() <= room {
            self.out.extend_from_slice(bytes);
        } else {
            self.dropped = self.dropped.saturating_add(bytes.len());
        }
    }

    fn finish(mut self) -> Result<(), BodyTooLarge> {
        let size = self.written().len() + self.dropped;
        assert!(size > 0, "a frame needs a body");
        let limit = self.limit;
        let prefix = i32::try_from(size)
            .ok()
            .filter(|_| size <= limit)
            .ok_or(BodyTooLarge { size, limit })?;
        self.out[self.start..][..LENGTH_PREFIX].copy_from_slice(&prefix.to_le_bytes());
        self.finished = true;
        Ok(())
    }
}

impl Drop for BodyWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.out.truncate(self.start);
        }
    }
}

impl io::Write for BodyWriter<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
