//! Reads a segment from end to end, across whatever is damaged.

use std::ops::Range;

use super::format::{Found, HEADERS_LEN, Position, Record, length, read_record};

/// A stretch of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A record that is right, and where it is.
    Record(Record<'a>, u32),
    /// Bytes in which no record can be read.
    Damaged(Range<usize>),
}

/// Gives the records of a segment, and the stretches between them that are none, in their order.
/// The work is linear: nothing is checked twice but the headers of records, which are short.
///
/// `bytes` is the segment from its beginning, headers included.
pub(super) fn scan<'a>(segment: u64, bytes: &'a [u8], mut found: impl FnMut(Piece<'a>)) {
    let mut at = HEADERS_LEN;
    let mut damaged_from = None;
    while at < bytes.len() {
        let place = Position {
            segment,
            offset: length(at),
        };
        match read_record(&bytes[at..], place) {
            Found::Record(record, len) => {
                if let Some(start) = damaged_from.take() {
                    found(Piece::Damaged(start..at));
                }
                found(Piece::Record(record, place.offset));
                at += len;
            }
            Found::DamagedBody(len) => {
                damaged_from.get_or_insert(at);
                at += len;
            }
            Found::Nothing => {
                damaged_from.get_or_insert(at);
                at += 1;
            }
        }
    }
    if let Some(start) = damaged_from {
        found(Piece::Damaged(start..bytes.len()));
    }
}
