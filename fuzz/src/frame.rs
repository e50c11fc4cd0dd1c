//! The decoder of frames, fed in pieces: the same frames however the bytes are grouped, a bad length
//! noticed as soon as it is there, and no more memory than what has arrived needs.

use migration_ipc_protocol::limits::{DECODER_SLACK, LENGTH_PREFIX, MAX_BODY};
use migration_ipc_protocol::{BodyTooLarge, FrameDecoder, FrameError, encode_frame};
use migration_ipc_testkit::memory::{CountingAllocator, measured};

use crate::input::Input;
use crate::variants;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

mod subject {
    use super::{FrameDecoder, FrameError};

    #[cfg(not(feature = "planted"))]
    pub(super) fn decode<'a, 'input: 'a>(
        decoder: &'a mut FrameDecoder,
        input: &mut &'input [u8],
    ) -> Result<Option<&'a [u8]>, FrameError> {
        decoder.decode(input)
    }

    /// Takes a length of one over the limit for a good one, and waits for its body.
    #[cfg(feature = "planted")]
    pub(super) fn decode<'a, 'input: 'a>(
        decoder: &'a mut FrameDecoder,
        input: &mut &'input [u8],
    ) -> Result<Option<&'a [u8]>, FrameError> {
        match decoder.decode(input) {
            Err(FrameError::TooLong { length, limit }) if length == limit + 1 => Ok(None),
            result => result,
        }
    }
}

/// What a stream is, read at once by the rules of the documentation.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    pub bodies: Vec<&'a [u8]>,
    pub error: Option<FrameError>,
    /// Whether it ends within a frame.
    pub partial: bool,
}

/// Reads a stream without the decoder.
#[must_use]
pub fn read(mut stream: &[u8]) -> Reading<'_> {
    let mut reading = Reading {
        bodies: Vec::new(),
        error: None,
        partial: false,
    };
    while let Some((prefix, rest)) = stream.split_first_chunk::<LENGTH_PREFIX>() {
        let length = i64::from(i32::from_le_bytes(*prefix));
        reading.error = match length {
            i64::MIN..0 => Some(FrameError::Negative(i32::from_le_bytes(*prefix))),
            0 => Some(FrameError::Empty),
            1..=1_048_576 => None,
            1_048_577.. => Some(FrameError::TooLong {
                length: usize::try_from(length).expect("it is positive"),
                limit: MAX_BODY,
            }),
        };
        if reading.error.is_some() {
            return reading;
        }
        let length = usize::try_from(length).expect("it is positive");
        let Some((body, rest)) = rest.split_at_checked(length) else {
            reading.partial = true;
            return reading;
        };
        reading.bodies.push(body);
        stream = rest;
    }
    reading.partial = !stream.is_empty();
    reading
}

/// How bytes come to the decoder.
#[derive(Clone, Copy)]
enum Way {
    /// As the input of the call.
    Handed,
    /// Kept before, all frames that are whole included.
    Retained,
}

/// Feeds the stream in pieces of these sizes, again and again, and gives what comes out.
fn feed(
    stream: &[u8],
    pieces: &[u8],
    mut take: impl FnMut(&[u8]),
) -> (FrameDecoder, Option<FrameError>) {
    let mut decoder = FrameDecoder::new();
    let mut rest = stream;
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let (way, size) = match sizes.next() {
            None => (Way::Handed, rest.len()),
            Some(size) if *size < 0x80 => (Way::Handed, usize::from(*size) + 1),
            Some(size) => (Way::Retained, usize::from(*size & 0x7f) + 1),
        };
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        rest = behind;
        let mut input = match way {
            Way::Handed => piece,
            Way::Retained => {
                decoder.retain(piece);
                &[]
            }
        };
        loop {
            match subject::decode(&mut decoder, &mut input) {
                Ok(Some(body)) => take(body),
                Ok(None) => break,
                Err(error) => return (decoder, Some(error)),
            }
        }
        assert!(input.is_empty(), "a decoder that waits has taken all input");
    }
    (decoder, None)
}

/// How many sizes of pieces, the sizes, and the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let count = usize::from(input.byte() % 16);
    let pieces = input.bytes(count);
    let stream = input.rest();
    let expected = read(stream);

    let mut bodies = Vec::new();
    let (mut decoder, error) = feed(stream, pieces, |body| bodies.push(body.to_vec()));
    assert_eq!(bodies, expected.bodies);
    assert_eq!(error, expected.error);
    assert_eq!(decoder.has_partial(), expected.partial);
    if let Some(error) = error {
        variants::note_frame(error);
        assert_eq!(decoder.buffered(), 0);
        let good = &b"\x01\0\0\0x"[..];
        decoder.retain(good);
        assert_eq!(decoder.decode(&mut &*good), Err(error), "it stays failed");
    }

    // The same again, for the memory that it takes.
    let ((decoder, _), usage) = measured(|| feed(stream, pieces, |_| {}));
    let arrived = stream.len();
    assert!(
        usage.peak <= 2 * arrived + DECODER_SLACK,
        "{usage:?} for {arrived} bytes"
    );
    assert!(
        usage.held <= arrived + DECODER_SLACK,
        "{usage:?} for {arrived} bytes"
    );
    drop(decoder);

    for body in &bodies {
        let mut wire = b"before".to_vec();
        let encoded = encode_frame::<BodyTooLarge>(&mut wire, |writer| {
            writer.append(body);
            Ok(())
        });
        assert_eq!(encoded, Ok(()));
        assert_eq!(read(&wire[b"before".len()..]).bodies, [body]);
    }
}
