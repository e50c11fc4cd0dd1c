//! The frame decoder and encoder.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_BODY};
use migration_ipc_protocol::{BodyTooLarge, FrameDecoder, FrameError, encode_frame};
use proptest::collection::vec;
use proptest::prelude::*;

fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, body);
    out
}

fn append(out: &mut Vec<u8>, body: &[u8]) {
    encode_frame::<BodyTooLarge>(out, |writer| {
        writer.append(body);
        Ok(())
    })
    .expect("the body is within the limit");
}

/// Every body that the decoder finds in `input`.
fn decode_all(decoder: &mut FrameDecoder, mut input: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut bodies = Vec::new();
    while let Some(body) = decoder.decode(&mut input)? {
        bodies.push(body.to_vec());
    }
    assert!(input.is_empty(), "without a frame all input is taken over");
    Ok(bodies)
}

#[test]
fn a_whole_frame_is_handed_out_in_place() {
    let wire = frame(b"body");
    let mut input = wire.as_slice();
    let mut decoder = FrameDecoder::new();
    let body = decoder
        .decode(&mut input)
        .expect("a good frame")
        .expect("a whole frame");
    assert_eq!(body.as_ptr(), wire[LENGTH_PREFIX..].as_ptr());
    assert!(input.is_empty());
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn retained_input_comes_before_later_input() {
    let mut wire = frame(b"one");
    append(&mut wire, b"two");
    append(&mut wire, b"three");
    let (kept, later) = wire.split_at(wire.len() - 2);

    let mut decoder = FrameDecoder::new();
    decoder.retain(kept);
    assert_eq!(decoder.buffered(), kept.len());
    assert!(!decoder.has_partial(), "the next frame is kept whole");

    let mut none: &[u8] = &[];
    assert_eq!(decoder.decode(&mut none), Ok(Some(&b"one"[..])));
    decoder.retain(&later[..1]);
    assert_eq!(decoder.decode(&mut none), Ok(Some(&b"two"[..])));
    assert_eq!(decoder.decode(&mut none), Ok(None));
    assert!(decoder.has_partial());
    assert_eq!(
        decode_all(&mut decoder, &later[1..]),
        Ok(vec![b"three".to_vec()])
    );
    assert!(!decoder.has_partial());
}

#[test]
fn the_rest_is_what_was_kept_and_not_handed_out() {
    let mut decoder = FrameDecoder::new();
    let rest = b"\xff\xff\xff\xff is no frame";
    decoder.retain(&[&frame(b"last")[..], rest].concat());
    let mut none: &[u8] = &[];
    assert_eq!(decoder.decode(&mut none), Ok(Some(&b"last"[..])));
    assert_eq!(decoder.take_rest(), rest);
    assert_eq!((decoder.buffered(), decoder.take_rest()), (0, Vec::new()));
    // Of a frame that was handed out and is the last one kept, nothing is left.
    decoder.retain(&frame(b"next"));
    assert_eq!(decoder.decode(&mut none), Ok(Some(&b"next"[..])));
    assert_eq!(decoder.take_rest(), Vec::<u8>::new());
    assert_eq!(
        decode_all(&mut decoder, &frame(b"again")),
        Ok(vec![b"again".to_vec()])
    );
}

#[test]
fn a_decoder_that_failed_stays_failed() {
    let mut decoder = FrameDecoder::new();
    assert_eq!(decode_all(&mut decoder, &[0; 4]), Err(FrameError::Empty));
    decoder.retain(&frame(b"good"));
    assert_eq!(
        decode_all(&mut decoder, &frame(b"good")),
        Err(FrameError::Empty)
    );
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn a_bad_length_is_an_error_as_soon_as_it_is_there() {
    let mut decoder = FrameDecoder::new();
    for byte in [0xff, 0xff, 0xff] {
        assert_eq!(decode_all(&mut decoder, &[byte]), Ok(vec![]));
    }
    assert_eq!(
        decode_all(&mut decoder, &[0xff]),
        Err(FrameError::Negative(-1))
    );
}

#[test]
fn a_bad_length_that_was_kept_needs_no_more_input_to_be_found() {
    let mut decoder = FrameDecoder::new();
    decoder.retain(&[0; 4]);
    assert!(!decoder.has_partial());
    assert_eq!(decode_all(&mut decoder, &[]), Err(FrameError::Empty));
}

#[test]
fn the_longest_body_passes_and_one_byte_more_does_not() {
    let mut out = frame(b"before");
    let before = out.clone();
    append(&mut out, &vec![b'x'; MAX_BODY]);
    assert_eq!(out.len(), before.len() + LENGTH_PREFIX + MAX_BODY);
    assert_eq!(
        decode_all(&mut FrameDecoder::new(), &out).map(|bodies| bodies[1].len()),
        Ok(MAX_BODY)
    );

    out.truncate(before.len());
    let refused = encode_frame::<BodyTooLarge>(&mut out, |body| {
        body.append(&vec![b'x'; MAX_BODY]);
        body.append(b"x");
        body.append(&vec![b'x'; MAX_BODY]);
        Ok(())
    });
    assert_eq!(
        refused,
        Err(BodyTooLarge {
            size: 2 * MAX_BODY + 1,
            limit: MAX_BODY
        })
    );
    assert_eq!(out, before, "nothing is left of a refused body");
}

#[test]
fn a_body_that_fails_or_panics_leaves_nothing_behind() {
    #[derive(Debug, PartialEq)]
    enum Failure {
        Own,
        TooLarge,
    }

    impl From<BodyTooLarge> for Failure {
        fn from(_: BodyTooLarge) -> Self {
            Self::TooLarge
        }
    }

    let mut out = frame(b"before");
    let before = out.clone();
    let failed = encode_frame(&mut out, |body| {
        body.append(b"half of");
        Err(Failure::Own)
    });
    assert_eq!(failed, Err(Failure::Own));
    assert_eq!(out, before);

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        encode_frame::<BodyTooLarge>(&mut out, |body| {
            body.append(b"half of");
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(out, before);
}

#[test]
fn a_body_can_be_written_through_the_writer_trait() {
    let mut out = Vec::new();
    encode_frame::<BodyTooLarge>(&mut out, |body| {
        write!(body, "{}-{}", 1, 2).expect("writing to memory does not fail");
        assert_eq!(body.written(), b"1-2");
        Ok(())
    })
    .expect("the body is small");
    assert_eq!(out, b"\x03\0\0\x001-2");
}

/// What a receiver does with the next bytes of a stream.
#[derive(Clone, Copy, Debug)]
enum Take {
    /// Hands them to the decoder until it has no frame any more.
    Decode,
    /// Takes one frame at most and lets the decoder keep the rest.
    DecodeOne,
    /// Lets the decoder keep them all.
    Retain,
}

fn takes() -> impl Strategy<Value = (usize, Take)> {
    let sizes = prop_oneof![Just(1_usize), 1..8_usize, 1..400_usize];
    (
        sizes,
        prop_oneof![3 => Just(Take::Decode), 1 => Just(Take::DecodeOne), 1 => Just(Take::Retain)],
    )
}

proptest! {
    /// However a stream is cut, and whatever of it is kept, the same bodies come out.
    #[test]
    fn any_grouping_decodes_to_the_same_bodies(
        bodies in vec(vec(any::<u8>(), 1..300), 0..20),
        takes in vec(takes(), 1..60),
    ) {
        let mut wire = Vec::new();
        for body in &bodies {
            append(&mut wire, body);
        }
        let mut decoder = FrameDecoder::new();
        let mut found = Vec::new();
        let mut rest = wire.as_slice();
        for (size, take) in takes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (mut piece, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            match take {
                Take::Decode => {
                    while let Some(body) = decoder.decode(&mut piece)? {
                        found.push(body.to_vec());
                    }
                    prop_assert!(piece.is_empty());
                }
                Take::DecodeOne => {
                    if let Some(body) = decoder.decode(&mut piece)? {
                        found.push(body.to_vec());
                    }
                    decoder.retain(piece);
                }
                Take::Retain => decoder.retain(piece),
            }
        }
        found.extend(decode_all(&mut decoder, &[])?);
        prop_assert_eq!(found, bodies);
        prop_assert_eq!(decoder.buffered(), 0);
        prop_assert!(!decoder.has_partial());
    }

    /// Whatever arrives, the decoder neither panics nor makes up bytes.
    #[test]
    fn any_bytes_are_frames_or_an_error(
        pieces in vec(vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..40), 0..20),
    ) {
        let mut decoder = FrameDecoder::new();
        let mut seen = 0;
        for piece in &pieces {
            match decode_all(&mut decoder, piece) {
                Ok(bodies) => seen += bodies.iter().map(|body| LENGTH_PREFIX + body.len()).sum::<usize>(),
                Err(error) => {
                    prop_assert_eq!(decode_all(&mut decoder, &[]), Err(error));
                    return Ok(());
                }
            }
        }
        prop_assert_eq!(seen + decoder.buffered(), pieces.iter().map(Vec::len).sum::<usize>());
    }
}
