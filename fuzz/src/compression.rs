//! Compressed bodies: what is read is what a simple reader of LZ4 reads by its documentation, no
//! memory is taken that a body's bytes cannot fill, and what is written is shorter and can be read.

use migration_ipc_protocol::extensions::{
    BodyKind, COMPRESSED_START, CompressionError, Decompressor, compress_frame, promised_length,
};
use migration_ipc_protocol::limits::MAX_BODY;
use migration_ipc_testkit::memory::measured;

use crate::{input, rig};

/// What opening a body may take beside the original.
const MAX_MEMORY: usize = 1024;

/// A length: what is in its half of the token, and bytes of which each but the last one is 255.
fn length(half: u8, block: &mut &[u8]) -> Option<usize> {
    let mut length = usize::from(half);
    let mut last = half == 15;
    while last {
        let (byte, rest) = block.split_first()?;
        *block = rest;
        length += usize::from(*byte);
        last = *byte == 255;
    }
    Some(length)
}

/// Reads a block one byte after the other; `None` for one that becomes more than `limit`, too.
fn simple(mut block: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let (token, rest) = block.split_first()?;
        block = rest;
        let count = length(token >> 4, &mut block)?;
        let (literals, rest) = block.split_at_checked(count)?;
        out.extend_from_slice(literals);
        block = rest;
        if block.is_empty() {
            return (out.len() <= limit).then_some(out);
        }
        let (offset, rest) = block.split_first_chunk::<2>()?;
        block = rest;
        let offset = usize::from(u16::from_le_bytes(*offset));
        let count = length(token & 15, &mut block)? + 4;
        if out.len() + count > limit {
            return None;
        }
        let from = out.len().checked_sub(offset).filter(|_| offset > 0)?;
        for at in from..from + count {
            out.push(out[at]);
        }
    }
}

/// A body by the documentation. The bound that is checked first changes nothing: no block can become
/// as much.
fn original(body: &[u8]) -> Option<Vec<u8>> {
    let (&[1, l0, l1, l2, l3], block) = body.split_first_chunk::<5>()? else {
        return None;
    };
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let good = (1..=MAX_BODY).contains(&length);
    let out = good.then(|| simple(block, length)).flatten()?;
    (out.len() == length && out[0] != 1).then_some(out)
}

/// A body that somebody wrote.
pub fn read(body: &[u8]) {
    let promised = frame_start(body).and_then(|start| promised_length(&start));
    let named = match body {
        [1, l0, l1, l2, l3, ..] => Some(u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize),
        _ => None,
    };
    assert_eq!(promised, named);
    let mut decompressor = Decompressor::new();
    let (opened, usage) = measured(|| decompressor.open(body).map(<[u8]>::len));
    let may_take = match opened {
        Err(
            CompressionError::NotCompressed { .. }
            | CompressionError::Length { .. }
            | CompressionError::Promise { .. },
        ) => 0,
        Ok(_)
        | Err(
            CompressionError::Block { .. }
            | CompressionError::Short { .. }
            | CompressionError::Nested,
        ) => named.unwrap_or(0).min(body.len() * 255),
    };
    assert!(usage.peak <= may_take + MAX_MEMORY, "{usage:?}, {opened:?}");
    let expected = original(body);
    // Once more, with what the first time has left in the buffer.
    let again = decompressor.open(body).ok();
    assert_eq!(again, expected.as_deref(), "{opened:?}");
    decompressor.trim();
    // Another body, after a longer one.
    let space = [1, 1, 0, 0, 0, 0x10, b' '];
    assert_eq!(decompressor.open(&space), Ok(&b" "[..]));
}

fn frame_start(body: &[u8]) -> Option<[u8; COMPRESSED_START]> {
    let body = body.first_chunk::<5>()?;
    [&[9, 0, 0, 0][..], body].concat().try_into().ok()
}

/// A body that is compressed, if it gains by that.
pub fn written(folded: &[u8]) {
    let body = input::unfolded(folded);
    if body.is_empty() {
        return;
    }
    let frame = rig::frame(&body);
    let mut out = b"before".to_vec();
    let gains = compress_frame(&frame, &mut out);
    let wire = out.strip_prefix(b"before").expect("what was there stays");
    if !gains {
        assert!(wire.is_empty());
        return;
    }
    assert!(wire.len() < frame.len() && BodyKind::of(&body) != BodyKind::Compressed);
    let (prefix, compressed) = wire.split_first_chunk::<4>().expect("a frame");
    assert_eq!(i32::from_le_bytes(*prefix) as usize, compressed.len());
    assert_eq!(Decompressor::new().open(compressed), Ok(&*body));
    assert_eq!(original(compressed).as_ref(), Some(&body));
}
