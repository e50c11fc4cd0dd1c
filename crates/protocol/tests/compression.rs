//! Compressed bodies: what is written comes back, and what a peer makes up does no harm.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use migration_ipc_protocol::extensions::{
    BodyKind, CHUNK_TAG, COMPRESSED_TAG, CompressionError, Decompressor, compress_frame,
};
use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_BODY};
use migration_ipc_protocol::{FrameDecoder, encode_frame};
use proptest::collection::vec;
use proptest::prelude::*;

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// The compressed body of a frame with this body, if that is shorter.
fn compressed(body: &[u8]) -> Option<Vec<u8>> {
    let mut wire = Vec::new();
    compress_frame(&frame(body), &mut wire).then(|| wire.split_off(LENGTH_PREFIX))
}

/// A compressed body with a block made by hand.
fn body(length: usize, block: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_le_bytes();
    [&[COMPRESSED_TAG], &length[..], block].concat()
}

fn open(body: &[u8]) -> Result<Vec<u8>, CompressionError> {
    Decompressor::new().open(body).map(<[u8]>::to_vec)
}

/// How long the literals are that `run` ends with: the format demands that many.
const LAST_LITERALS: usize = 5;

/// A block that becomes `length` times the same byte, made by hand as the format says: one literal, a
/// match that copies it again and again, and the last literals.
fn run(byte: u8, length: usize) -> Vec<u8> {
    let mut left = length - 1 - LAST_LITERALS - 4 - 15;
    let mut block = vec![0x1f, byte, 1, 0];
    while left >= 255 {
        block.push(255);
        left -= 255;
    }
    block.push(u8::try_from(left).unwrap());
    block.push(u8::try_from(LAST_LITERALS << 4).unwrap());
    block.extend([byte; LAST_LITERALS]);
    block
}

fn manifest(files: usize) -> Vec<u8> {
    let lines = (0..files).map(|file| {
        let size = file * 7919 % 100_000;
        format!(r#"{{"path":"C:\\Users\\jdoe\\Documents\\{file}.docx","size":{size}}}"#)
    });
    format!("[{}]", lines.collect::<Vec<_>>().join(",")).into_bytes()
}

/// Bytes in which nothing comes twice, by a generator of Lehmer's.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(48_271) % 0x7fff_ffff;
        state.to_le_bytes()[1]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn what_is_compressed_comes_back() {
    for original in [manifest(800), vec![b' '; 100], vec![b' '; MAX_BODY]] {
        let compressed = compressed(&original).unwrap();
        assert_eq!(BodyKind::of(&compressed), BodyKind::Compressed);
        assert!(compressed.len() < original.len() / 2);
        assert_eq!(open(&compressed), Ok(original));
    }
}

#[test]
fn a_piece_of_a_chunked_body_can_be_compressed() {
    let mut chunk = vec![CHUNK_TAG];
    chunk.extend(manifest(100));
    assert_eq!(open(&compressed(&chunk).unwrap()), Ok(chunk));
}

#[test]
fn a_block_of_another_implementation_is_read() {
    for length in [25, 279, 280, 65_536, MAX_BODY] {
        let opened = open(&body(length, &run(b' ', length)));
        assert_eq!(opened, Ok(vec![b' '; length]));
    }
}

#[test]
fn the_example_of_the_document_is_what_it_says() {
    let document = include_str!("../../../docs/protocol.md");
    let example = document
        .lines()
        .find_map(|line| {
            line.strip_suffix("is a frame whose body is 100 spaces (which are no message).")
        })
        .unwrap();
    let wire: Vec<u8> = example
        .trim_matches(|c| c == '`' || c == ' ')
        .split(' ')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let mut decoder = FrameDecoder::new();
    let body = decoder.decode(&mut wire.as_slice()).unwrap().map(open);
    assert_eq!(body, Some(Ok(vec![b' '; 100])));
}

#[test]
fn what_does_not_become_shorter_is_left_alone() {
    let noise = noise(1000);
    for original in [&b"{}"[..], b"{\"id\":\"a\"}", &noise] {
        let mut wire = vec![1, 2, 3];
        assert!(!compress_frame(&frame(original), &mut wire));
        assert_eq!(wire, [1, 2, 3]);
    }
}

#[test]
fn what_is_no_frame_or_is_compressed_already_is_left_alone() {
    let twice = [COMPRESSED_TAG; 1000];
    for frame in [vec![], vec![1, 2], frame(b""), frame(&twice)] {
        let mut wire = vec![1, 2, 3];
        assert!(!compress_frame(&frame, &mut wire), "{frame:?}");
        assert_eq!(wire, [1, 2, 3]);
    }
}

#[test]
fn a_compressed_frame_is_appended_whole_as_any_other() {
    let mut wire = Vec::new();
    encode_frame::<migration_ipc_protocol::BodyTooLarge>(&mut wire, |body| {
        body.append(b"{}");
        Ok(())
    })
    .unwrap();
    let original = manifest(10);
    assert!(compress_frame(&frame(&original), &mut wire));
    let mut decoder = FrameDecoder::new();
    let mut input = wire.as_slice();
    assert_eq!(decoder.decode(&mut input).unwrap(), Some(&b"{}"[..]));
    let body = decoder.decode(&mut input).unwrap().unwrap();
    assert_eq!(open(body), Ok(original));
    assert!(input.is_empty());
}

// --- what a peer makes up ------------------------------------------------------------------------

#[test]
fn a_length_that_no_body_has_is_refused() {
    let block = run(b' ', 1000);
    for length in [0, MAX_BODY + 1, 0x7fff_ffff, 0xffff_ffff] {
        let expected = CompressionError::Length {
            length: u32::try_from(length).unwrap(),
        };
        assert_eq!(open(&body(length, &block)), Err(expected));
    }
}

#[test]
fn a_few_bytes_that_promise_a_mebibyte_are_refused() {
    let block = &run(b' ', 1000)[..];
    let expected = CompressionError::Promise {
        length: MAX_BODY,
        block: block.len(),
    };
    assert_eq!(open(&body(MAX_BODY, block)), Err(expected));
    let expected = CompressionError::Promise {
        length: 1,
        block: 0,
    };
    assert_eq!(open(&body(1, &[])), Err(expected));
}

/// The most that the format can do stays below the bound that makes it a lie.
#[test]
fn the_densest_block_there_is_is_no_lie() {
    let block = run(b' ', MAX_BODY);
    assert!(MAX_BODY / block.len() >= 253, "{}", block.len());
    assert!(open(&body(MAX_BODY, &block)).is_ok());
}

#[test]
fn a_block_that_becomes_more_than_it_names_is_refused() {
    let bomb = run(b' ', MAX_BODY);
    for length in [1, 1000, MAX_BODY - 1] {
        let expected = CompressionError::Block { length };
        assert_eq!(open(&body(length, &bomb)), Err(expected));
    }
}

#[test]
fn a_block_that_becomes_less_than_it_names_is_refused() {
    let block = run(b' ', 1000);
    let expected = CompressionError::Short {
        length: 1001,
        actual: 1000,
    };
    assert_eq!(open(&body(1001, &block)), Err(expected));
}

#[test]
fn a_body_that_was_cut_anywhere_is_refused() {
    for whole in [
        compressed(&manifest(20)).unwrap(),
        body(300, &run(b' ', 300)),
    ] {
        for end in 0..whole.len() {
            assert!(open(&whole[..end]).is_err(), "cut at {end}");
        }
    }
}

#[test]
fn garbage_behind_a_block_is_refused() {
    let whole = compressed(&manifest(20)).unwrap();
    for byte in 0..=255 {
        for garbage in [&[byte][..], &[byte, 0], &[byte, 1, 0], &[0, 0, 0, byte]] {
            let body = [&whole, garbage].concat();
            assert!(open(&body).is_err(), "{garbage:?}");
        }
    }
}

#[test]
fn a_match_before_the_beginning_is_refused() {
    // One literal, and a match two bytes back; then one that is no bytes back.
    for offset in [2, 0] {
        let block = [
            0x10, b' ', offset, 0, 0x50, b' ', b' ', b' ', b' ', b' ', b' ',
        ];
        let expected = CompressionError::Block { length: 10 };
        assert_eq!(open(&body(10, &block)), Err(expected));
    }
}

#[test]
fn what_is_compressed_twice_is_refused() {
    let inner = body(300, &run(b' ', 300));
    // A block of literals alone: 15 in the token, and the rest in the byte behind it.
    let more = u8::try_from(inner.len() - 15).unwrap();
    let block = [&[0xf0, more], &inner[..]].concat();
    let outer = body(inner.len(), &block);
    assert_eq!(open(&outer), Err(CompressionError::Nested));
}

#[test]
fn another_kind_of_body_is_not_decompressed() {
    for other in [&b""[..], b"{}", &[COMPRESSED_TAG], &[COMPRESSED_TAG; 4]] {
        let size = other.len();
        let expected = CompressionError::NotCompressed { size };
        assert_eq!(open(other), Err(expected));
    }
}

/// The buffer is used again, and what was in it before does not show.
#[test]
fn a_body_is_not_mixed_with_the_one_before() {
    let mut decompressor = Decompressor::new();
    let large = body(MAX_BODY, &run(b'x', MAX_BODY));
    decompressor.open(&large).unwrap();
    let small = body(1001, &run(b' ', 1000));
    assert!(decompressor.open(&small).is_err());
    let small = body(1000, &run(b' ', 1000));
    assert_eq!(decompressor.open(&small), Ok(&[b' '; 1000][..]));
    decompressor.trim();
    assert_eq!(decompressor.open(&small), Ok(&[b' '; 1000][..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_compressed_comes_back(words in vec(0..40_u8, 1..3000)) {
        // Bytes of few kinds, so that there is something to find, and no tag in front.
        let original: Vec<u8> = words.iter().map(|word| b' ' + word).collect();
        if let Some(compressed) = compressed(&original) {
            prop_assert!(compressed.len() < original.len());
            prop_assert_eq!(open(&compressed), Ok(original));
        }
    }

    #[test]
    fn random_bytes_are_refused_or_are_what_they_say(
        length in 1..5000_usize,
        block in vec(any::<u8>(), 0..200),
    ) {
        if let Ok(original) = open(&body(length, &block)) {
            prop_assert_eq!(original.len(), length);
        }
    }

    #[test]
    fn a_damaged_body_is_refused_or_has_its_length(
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let original = manifest(30);
        let mut damaged = compressed(&original).unwrap();
        let place = place.index(damaged.len());
        damaged[place] = byte;
        if let Ok(opened) = open(&damaged) {
            let length = u32::from_le_bytes(damaged[1..5].try_into().unwrap());
            prop_assert_eq!(u32::try_from(opened.len()).unwrap(), length);
        }
    }
}
