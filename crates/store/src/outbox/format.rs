//! Headers and records as bytes. Everything that is read is untrusted.

use std::ops::Range;

use migration_ipc_protocol::OutboxId;

use super::limits::{MAX_RANGES, MAX_RECORD_BODY, MAX_SEGMENT_BYTES, MAX_SEQ, RANGE_LEN};

const MAGIC: [u8; 8] = *b"mipc-obx";
pub(super) const VERSION: u32 = 1;
/// The part of a header that is the same in every version.
const PREAMBLE_LEN: usize = 16;
const HEADER_LEN: usize = 64;
/// Both copies of the header; where the records begin.
pub(super) const HEADERS_LEN: usize = 2 * HEADER_LEN;
pub(super) const RECORD_HEADER_LEN: usize = 24;

const KIND_MESSAGE: u8 = 1;
const KIND_SETTLED: u8 = 2;
const KIND_FILLER: u8 = 3;

/// A place in the log: a segment, and an offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u32,
}

impl Position {
    /// So many bytes on in the same segment.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self {
            segment: self.segment,
            offset: self.offset + length(bytes),
        }
    }
}

/// A length within a segment, as it is written.
#[expect(
    clippy::cast_possible_truncation,
    reason = "no more of a segment is read or written than its limit, which is far below 4 GiB"
)]
pub(super) fn length(bytes: usize) -> u32 {
    debug_assert!(bytes <= MAX_SEGMENT_BYTES);
    bytes as u32
}

/// What a record is of a group of messages that were appended together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Alone,
    First,
    Between,
    Last,
}

impl Part {
    /// Of the message at this place among so many.
    pub(super) fn of(place: usize, count: usize) -> Self {
        match place {
            _ if count == 1 => Self::Alone,
            0 => Self::First,
            _ if place + 1 == count => Self::Last,
            _ => Self::Between,
        }
    }

    fn encode(self) -> u8 {
        match self {
            Self::Alone => 0,
            Self::First => 1,
            Self::Between => 2,
            Self::Last => 3,
        }
    }

    fn decode(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Alone),
            1 => Some(Self::First),
            2 => Some(Self::Between),
            3 => Some(Self::Last),
            _ => None,
        }
    }
}

/// Where a record is put, and by which write of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) at: Position,
    pub(super) write: u16,
}

impl Slot {
    /// So many bytes on in the same write.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self {
            at: self.at.plus(bytes),
            ..self
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: OutboxId,
    pub(super) number: u64,
    pub(super) next: u64,
    /// Where the log stood; the default for the first segment of a log.
    pub(super) follows: Position,
}

impl Header {
    /// Both copies.
    pub(super) fn encode(&self) -> [u8; HEADERS_LEN] {
        let mut copy = Vec::with_capacity(HEADER_LEN);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&VERSION.to_le_bytes());
        copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
        copy.extend_from_slice(self.id.as_bytes());
        copy.extend_from_slice(&self.number.to_le_bytes());
        copy.extend_from_slice(&self.next.to_le_bytes());
        copy.extend_from_slice(&self.follows.segment.to_le_bytes());
        copy.extend_from_slice(&self.follows.offset.to_le_bytes());
        copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
        let mut both = [0; HEADERS_LEN];
        both[..HEADER_LEN].copy_from_slice(&copy);
        both[HEADER_LEN..].copy_from_slice(&copy);
        both
    }
}

/// One copy of a header, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderCopy {
    Good(Header),
    OtherVersion(u32),
    Damaged,
}

/// The header of a segment, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FoundHeader {
    /// One copy at least is right, and these bytes are not.
    Good(Header, Option<Range<usize>>),
    /// The segment is one of another version of the format.
    OtherVersion(u32),
    /// Neither copy is right.
    Lost,
}

impl FoundHeader {
    /// Looks at the beginning of a segment, which may be shorter than a header.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let copies = [0, HEADER_LEN].map(|at| read_copy(bytes.get(at..).unwrap_or_default()));
        match copies {
            [HeaderCopy::Good(first), HeaderCopy::Good(second)] if first == second => {
                Self::Good(first, None)
            }
            [HeaderCopy::Good(header), _] => Self::Good(header, Some(HEADER_LEN..HEADERS_LEN)),
            [_, HeaderCopy::Good(header)] => Self::Good(header, Some(0..HEADER_LEN)),
            [HeaderCopy::OtherVersion(version), _] | [_, HeaderCopy::OtherVersion(version)] => {
                Self::OtherVersion(version)
            }
            [HeaderCopy::Damaged, HeaderCopy::Damaged] => Self::Lost,
        }
    }

    pub(super) fn good(&self) -> Option<&Header> {
        match self {
            Self::Good(header, _) => Some(header),
            Self::OtherVersion(_) | Self::Lost => None,
        }
    }
}

fn read_copy(bytes: &[u8]) -> HeaderCopy {
    let Some(preamble) = bytes.first_chunk::<PREAMBLE_LEN>() else {
        return HeaderCopy::Damaged;
    };
    if preamble[..8] != MAGIC || number32(preamble, 12) != crc32fast::hash(&preamble[..12]) {
        return HeaderCopy::Damaged;
    }
    match number32(preamble, 8) {
        VERSION => {}
        version => return HeaderCopy::OtherVersion(version),
    }
    let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
        return HeaderCopy::Damaged;
    };
    if number32(bytes, 60) != crc32fast::hash(&bytes[..60]) {
        return HeaderCopy::Damaged;
    }
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[16..32]);
    let header = Header {
        id: OutboxId::from_bytes(id),
        number: number64(bytes, 32),
        next: number64(bytes, 40),
        follows: Position {
            segment: number64(bytes, 48),
            offset: number32(bytes, 56),
        },
    };
    let plausible = (1..=MAX_SEQ + 1).contains(&header.next)
        && header.follows.segment < header.number
        && header.follows.offset as usize <= MAX_SEGMENT_BYTES;
    if plausible {
        HeaderCopy::Good(header)
    } else {
        HeaderCopy::Damaged
    }
}

/// Appends a message as a record that will be at this place.
pub(super) fn put_message(out: &mut Vec<u8>, slot: Slot, part: Part, seq: u64, body: &[u8]) {
    put_record(out, slot, KIND_MESSAGE, part, seq, body);
}

/// Appends settled ranges, at most [`MAX_RANGES`].
pub(super) fn put_settled(out: &mut Vec<u8>, slot: Slot, ranges: &[(u64, u64)]) {
    debug_assert!(ranges.len() <= MAX_RANGES);
    let mut body = Vec::with_capacity(ranges.len() * RANGE_LEN);
    for (first, last) in ranges {
        body.extend_from_slice(&first.to_le_bytes());
        body.extend_from_slice(&last.to_le_bytes());
    }
    put_record(out, slot, KIND_SETTLED, Part::Alone, 0, &body);
}

/// A record of this length, header included, that means nothing; `None` when a record cannot be so
/// short.
pub(super) fn filler(at: Position, len: usize) -> Option<Vec<u8>> {
    let body = len.checked_sub(RECORD_HEADER_LEN)?;
    let mut out = Vec::with_capacity(len);
    let slot = Slot { at, write: 0 };
    put_record(&mut out, slot, KIND_FILLER, Part::Alone, 0, &vec![0; body]);
    Some(out)
}

fn put_record(out: &mut Vec<u8>, slot: Slot, kind: u8, part: Part, seq: u64, body: &[u8]) {
    let mut header = [0; RECORD_HEADER_LEN];
    header[4..8].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    header[8..12].copy_from_slice(&length(body.len()).to_le_bytes());
    header[12] = kind;
    header[13] = part.encode();
    header[14..16].copy_from_slice(&slot.write.to_le_bytes());
    header[16..24].copy_from_slice(&seq.to_le_bytes());
    let place = header_checksum(slot.at, &header);
    header[..4].copy_from_slice(&place.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
}

fn header_checksum(at: Position, header: &[u8; RECORD_HEADER_LEN]) -> u32 {
    let mut input = [0; 16 + RECORD_HEADER_LEN - 4];
    input[..8].copy_from_slice(&at.segment.to_le_bytes());
    input[8..16].copy_from_slice(&u64::from(at.offset).to_le_bytes());
    input[16..].copy_from_slice(&header[4..]);
    crc32fast::hash(&input)
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Message {
        seq: u64,
        part: Part,
        write: u16,
        body: &'a [u8],
    },
    Settled {
        ranges: Ranges<'a>,
        write: u16,
    },
    Filler,
}

/// What is at some place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A record of so many bytes.
    Record(Record<'a>, usize),
    /// The header of a record of so many bytes, whose body is damaged or not all there.
    DamagedBody(usize),
    /// No record begins here.
    Nothing,
}

/// Looks at the bytes that begin at this place. Constant work unless a record's header is there.
pub(super) fn read_record(bytes: &[u8], at: Position) -> Found<'_> {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_LEN>() else {
        return Found::Nothing;
    };
    let length = number32(header, 8) as usize;
    let write = u16::from_le_bytes([header[14], header[15]]);
    let seq = number64(header, 16);
    let Some(part) = Part::decode(header[13]) else {
        return Found::Nothing;
    };
    let plausible = match header[12] {
        KIND_MESSAGE => length <= MAX_RECORD_BODY && (1..=MAX_SEQ).contains(&seq),
        KIND_SETTLED => length <= MAX_RANGES * RANGE_LEN && seq == 0 && part == Part::Alone,
        KIND_FILLER => length <= MAX_SEGMENT_BYTES && (seq, part, write) == (0, Part::Alone, 0),
        _ => false,
    };
    if !plausible || number32(header, 0) != header_checksum(at, header) {
        return Found::Nothing;
    }
    let end = RECORD_HEADER_LEN + length;
    let Some(body) = bytes.get(RECORD_HEADER_LEN..end) else {
        return Found::DamagedBody(end);
    };
    if number32(header, 4) != crc32fast::hash(body) {
        return Found::DamagedBody(end);
    }
    let record = match header[12] {
        KIND_MESSAGE => Record::Message {
            seq,
            part,
            write,
            body,
        },
        KIND_SETTLED => match Ranges::read(body) {
            Some(ranges) => Record::Settled { ranges, write },
            None => return Found::DamagedBody(end),
        },
        _ => Record::Filler,
    };
    Found::Record(record, end)
}

/// The ranges of a settled record: each within the sequence numbers, and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranges<'a>(&'a [u8]);

impl<'a> Ranges<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let ranges = Self(body);
        let good = body.len().is_multiple_of(RANGE_LEN)
            && ranges
                .iter()
                .all(|(first, last)| 1 <= first && first <= last && last <= MAX_SEQ);
        good.then_some(ranges)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = (u64, u64)> + 'a {
        self.0
            .chunks_exact(RANGE_LEN)
            .map(|range| (number64(range, 0), number64(range, 8)))
    }
}

/// The number at this place of bytes that are long enough.
fn number32(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// As [`number32`].
fn number64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Position = Position {
        segment: 7,
        offset: 1000,
    };

    const SLOT: Slot = Slot {
        at: AT,
        write: 0x0102,
    };

    fn header() -> Header {
        Header {
            id: OutboxId::from_bytes([9; 16]),
            number: 7,
            next: 12,
            follows: Position {
                segment: 5,
                offset: 300,
            },
        }
    }

    /// The bytes of the documentation, and nothing that depends on this machine.
    #[test]
    fn the_format_is_what_is_written_down() {
        let bytes = header().encode();
        assert_eq!(&bytes[..12], b"mipc-obx\x01\0\0\0");
        assert_eq!(bytes[12..16], crc32fast::hash(&bytes[..12]).to_le_bytes());
        assert_eq!(bytes[32], 7);
        assert_eq!(bytes[40], 12);
        assert_eq!(bytes[48], 5);
        assert_eq!(bytes[56..58], [44, 1]);
        assert_eq!(bytes[60..64], crc32fast::hash(&bytes[..60]).to_le_bytes());
        assert_eq!(bytes[..64], bytes[64..]);

        let mut record = Vec::new();
        put_message(&mut record, SLOT, Part::Between, 3, b"hello");
        let mut place = vec![7, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0];
        let rest = [5, 0, 0, 0, 1, 2, 2, 1, 3, 0, 0, 0, 0, 0, 0, 0];
        place.extend_from_slice(&crc32fast::hash(b"hello").to_le_bytes());
        place.extend_from_slice(&rest);
        let mut expected = crc32fast::hash(&place).to_le_bytes().to_vec();
        expected.extend_from_slice(&place[16..]);
        expected.extend_from_slice(b"hello");
        assert_eq!(record, expected);
    }

    #[test]
    fn one_copy_of_the_header_is_enough() {
        let good = header().encode();
        assert_eq!(FoundHeader::read(&good), FoundHeader::Good(header(), None));
        for place in 0..HEADERS_LEN {
            let mut bytes = good;
            bytes[place] ^= 0x10;
            let copy = if place < HEADER_LEN { 0 } else { HEADER_LEN };
            let damaged = Some(copy..copy + HEADER_LEN);
            assert_eq!(
                FoundHeader::read(&bytes),
                FoundHeader::Good(header(), damaged)
            );
        }
        assert_eq!(FoundHeader::read(&good[..63]), FoundHeader::Lost);
        assert_eq!(FoundHeader::read(&[]), FoundHeader::Lost);
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut bytes = header().encode();
        bytes[8] = 2;
        bytes[HEADER_LEN + 8] = 2;
        assert_eq!(FoundHeader::read(&bytes), FoundHeader::Lost);
        for copy in [0, HEADER_LEN] {
            let checksum = crc32fast::hash(&bytes[copy..copy + 12]);
            bytes[copy + 12..copy + 16].copy_from_slice(&checksum.to_le_bytes());
        }
        assert_eq!(FoundHeader::read(&bytes), FoundHeader::OtherVersion(2));
        assert_eq!(
            FoundHeader::read(&bytes[..20]),
            FoundHeader::OtherVersion(2)
        );
    }

    #[test]
    fn a_record_is_right_only_at_its_place() {
        let mut bytes = Vec::new();
        put_settled(&mut bytes, SLOT, &[(1, 4), (9, 9)]);
        match read_record(&bytes, AT) {
            Found::Record(Record::Settled { ranges, write }, len) => {
                assert_eq!(ranges.iter().collect::<Vec<_>>(), [(1, 4), (9, 9)]);
                assert_eq!(write, SLOT.write);
                assert_eq!(len, bytes.len());
            }
            other => panic!("{other:?}"),
        }
        let elsewhere = Position {
            offset: AT.offset + 1,
            ..AT
        };
        assert_eq!(read_record(&bytes, elsewhere), Found::Nothing);
        let other_segment = Position { segment: 8, ..AT };
        assert_eq!(read_record(&bytes, other_segment), Found::Nothing);
    }

    #[test]
    fn lengths_and_numbers_are_not_trusted() {
        let mut long = Vec::new();
        put_record(
            &mut long,
            SLOT,
            KIND_MESSAGE,
            Part::Alone,
            1,
            &vec![0; MAX_RECORD_BODY + 1],
        );
        assert_eq!(read_record(&long, AT), Found::Nothing);
        for seq in [0, MAX_SEQ + 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_record(&mut bytes, SLOT, KIND_MESSAGE, Part::Alone, seq, b"x");
            assert_eq!(read_record(&bytes, AT), Found::Nothing);
        }
        for kind in [KIND_SETTLED, KIND_FILLER] {
            let mut bytes = Vec::new();
            put_record(&mut bytes, SLOT, kind, Part::First, 0, &[]);
            assert_eq!(read_record(&bytes, AT), Found::Nothing, "kind {kind}");
        }
        for range in [(0, 1), (3, 2), (1, MAX_SEQ + 1)] {
            let mut bytes = Vec::new();
            put_settled(&mut bytes, SLOT, &[range]);
            assert_eq!(read_record(&bytes, AT), Found::DamagedBody(40));
        }
        let mut odd = Vec::new();
        put_record(&mut odd, SLOT, KIND_SETTLED, Part::Alone, 0, &[1; 17]);
        assert_eq!(read_record(&odd, AT), Found::DamagedBody(41));
    }
}
