//! Reads what is intact in the segments, and mends the rest.

use std::collections::BTreeSet;
use std::ops::Range;

use migration_ipc_protocol::OutboxId;
use tracing::warn;

use crate::disk::Disk;
use crate::planted::{PlantedBug, is_planted};

use super::chain::{Candidate, Link, read_from_start};
use super::damage;
use super::error::OutboxError;
use super::files::segment_name;
use super::format::{FoundHeader, HEADERS_LEN, Header, Position, Record, filler, length};
use super::groups::{Groups, Member};
use super::index::{FIRST_WRITE, Index, Place, Segment};
use super::limits::MAX_SEGMENT_BYTES;
use super::report::Damage;
use super::scan::{Piece, scan};
use super::sync::Tail;

/// What is read from the segments, one after the other.
pub(super) struct Salvage<'a> {
    disk: &'a dyn Disk,
    id: OutboxId,
    pub(super) index: Index,
    pub(super) next: u64,
    /// The bytes in which there may have been messages whose numbers nothing else tells: a later
    /// header would.
    pub(super) lost_bytes: u64,
    pub(super) damaged: Vec<Damage>,
    /// What is left of groups that do not count.
    pub(super) void: BTreeSet<u64>,
    pub(super) tail: Tail,
    /// The mended content of the newest segment, and of those before it as long as none of them has a
    /// header: to be written once there is a segment with one.
    pub(super) unfinished: Vec<(u64, Vec<u8>)>,
}

impl<'a> Salvage<'a> {
    pub(super) fn new(disk: &'a dyn Disk, id: OutboxId, missing: Vec<Damage>) -> Self {
        Self {
            disk,
            id,
            index: Index::default(),
            next: 1,
            lost_bytes: 0,
            damaged: missing,
            void: BTreeSet::new(),
            tail: Tail::Sound,
            unfinished: Vec::new(),
        }
    }

    /// Takes the next segment of the log.
    pub(super) fn take(&mut self, link: Link, is_newest: bool) -> Result<(), OutboxError> {
        let Link {
            candidate,
            known_end,
            is_followed,
        } = link;
        let number = candidate.number;
        let limit = known_end.unwrap_or(MAX_SEGMENT_BYTES);
        let mut bytes = read_from_start(&*candidate.file, candidate.len, limit)
            .map_err(OutboxError::disk("read", &segment_name(number)))?;
        let (header, damaged) = self.header(&candidate, bytes.len());
        if candidate.header.good().is_some() {
            self.lost_bytes = 0;
        }
        self.next = self.next.max(header.next);
        // Bytes that no program of ours has written.
        let excess = match known_end {
            None => candidate.len.saturating_sub(MAX_SEGMENT_BYTES as u64),
            Some(_) => 0,
        };
        let segment = Segment::new(candidate.file, 0);
        self.index.add_segment(number, segment);
        let mut ranges: Vec<_> = damaged.into_iter().collect();
        let mut groups = Groups::default();
        scan(number, &bytes, |piece| match piece {
            Piece::Record(record, offset) => self.apply(number, offset, record, &mut groups),
            Piece::Damaged(range) => {
                groups.break_off();
                ranges.push(range);
            }
        });
        let broken = groups.take_broken();
        let is_void = !broken.is_empty() && !is_followed && !is_planted(PlantedBug::GroupsTorn);
        match is_void {
            true => self.leave_out(broken, &mut ranges),
            false => self.insert(broken),
        }
        let last_write = groups.last_write().unwrap_or(FIRST_WRITE);
        let there = bytes.len().max(HEADERS_LEN);
        if let Some(end) = known_end
            && there < end
        {
            lengthen(&mut ranges, there..end);
        }

        let is_damaged = !ranges.is_empty() || excess > 0;
        let can_mend = is_damaged && self.keep(number, &bytes, &ranges, excess)?;
        if is_newest {
            if can_mend && let Some(torn) = ranges.pop_if(|last| is_tail(last, bytes.len())) {
                bytes.truncate(torn.start);
            }
            self.write_back(number, &bytes)?;
            if is_damaged {
                self.tail = Tail::Lost;
            }
        }
        if can_mend {
            mend(number, &mut bytes, &ranges, &header);
        }
        // So far it is the newest that the index has.
        self.index.extend_newest(length(bytes.len()), last_write);
        match (can_mend, is_followed) {
            (true, false) => self.unfinished.push((number, bytes)),
            (true, true) => self.write_back(number, &bytes)?,
            (false, _) => {}
        }
        Ok(())
    }

    /// The header, put together anew if it is lost, and what of it is damaged.
    fn header(&self, candidate: &Candidate, len: usize) -> (Header, Option<Range<usize>>) {
        match &candidate.header {
            FoundHeader::Good(header, damaged) => (*header, damaged.clone()),
            FoundHeader::OtherVersion(_) | FoundHeader::Lost => {
                let follows = self.index.newest().map(|(number, segment)| Position {
                    segment: number,
                    offset: segment.end,
                });
                let header = Header {
                    id: self.id,
                    number: candidate.number,
                    next: self.next,
                    follows: follows.unwrap_or_default(),
                };
                (header, Some(0..len.min(HEADERS_LEN)))
            }
        }
    }

    fn apply(&mut self, segment: u64, offset: u32, record: Record<'_>, groups: &mut Groups) {
        match record {
            Record::Message {
                seq,
                part,
                write,
                body,
            } => {
                self.insert(groups.enter_write(write));
                let place = Place {
                    segment,
                    offset,
                    length: length(body.len()),
                };
                self.insert(groups.take(part, Member { seq, place }));
            }
            Record::Settled { ranges, write } => {
                self.insert(groups.enter_write(write));
                groups.break_off();
                for (first, last) in ranges.iter() {
                    groups.settle(first..=last);
                    self.index.remove_range(first, last);
                    self.next = self.next.max(last + 1);
                }
            }
            Record::Filler => groups.break_off(),
        }
    }

    fn insert(&mut self, messages: Vec<Member>) {
        for Member { seq, place } in messages {
            self.void.remove(&seq);
            self.index.insert(seq, place);
            self.next = self.next.max(seq + 1);
        }
    }

    /// What is left of groups in the last write is not what their sender was promised, and so is
    /// damage.
    fn leave_out(&mut self, broken: Vec<Member>, ranges: &mut Vec<Range<usize>>) {
        for member in broken {
            self.void.insert(member.seq);
            self.next = self.next.max(member.seq + 1);
            ranges.push(member.range());
        }
        ranges.sort_unstable_by_key(|range| range.start);
        for range in std::mem::take(ranges) {
            lengthen(ranges, range);
        }
    }

    /// Keeps a copy of the damage, and reports it. Says whether it may be taken out now.
    fn keep(
        &mut self,
        number: u64,
        bytes: &[u8],
        ranges: &[Range<usize>],
        excess: u64,
    ) -> Result<bool, OutboxError> {
        let is_there = |range: &Range<usize>| !range.is_empty() && range.start < bytes.len();
        let there: Vec<_> = ranges.iter().filter(|at| is_there(at)).cloned().collect();
        let kept_in = if there.is_empty() {
            None
        } else {
            damage::keep(self.disk, number, bytes, &there)?
        };
        let file = segment_name(number);
        // An empty file is what is left of one that was just made: nothing is damaged.
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            self.lost_bytes += range.len() as u64;
            self.damaged.push(Damage {
                file: file.clone(),
                offset: range.start as u64,
                bytes: range.len() as u64,
                kept_in: kept_in.clone().filter(|_| is_there(range)),
            });
        }
        if excess > 0 {
            self.damaged.push(Damage {
                file,
                offset: bytes.len() as u64,
                bytes: excess,
                kept_in: None,
            });
        }
        Ok(kept_in.is_some() || there.is_empty())
    }

    /// As [`write_back`], but for a full disk.
    fn write_back(&mut self, number: u64, bytes: &[u8]) -> Result<(), OutboxError> {
        match write_back(&self.index, number, bytes) {
            // Overwriting takes room where a file system never overwrites in place.
            Err(error) if error.is_full() => {
                warn!(%error, "a segment of the outbox stays as it is");
                self.tail = Tail::Lost;
                Ok(())
            }
            result => result,
        }
    }
}

/// Writes a segment as it was read or mended, and makes that and its length durable, which a failed
/// sync may have left another one on the disk than is seen. What lies behind the bytes stays.
pub(super) fn write_back(index: &Index, number: u64, bytes: &[u8]) -> Result<(), OutboxError> {
    let Some(segment) = index.segment(number) else {
        return Ok(());
    };
    let file = &segment.file;
    file.write_at(0, bytes)
        .and_then(|()| file.set_len(file.len()?))
        .and_then(|()| file.sync())
        .map_err(OutboxError::disk("write to", &segment_name(number)))
}

/// Whether damage is at the end, behind all records. There it is not mended: the next segment says
/// that it follows what is before.
fn is_tail(range: &Range<usize>, len: usize) -> bool {
    range.start >= HEADERS_LEN && range.end == len
}

/// Puts a new header and fillers in the places of what is damaged.
fn mend(number: u64, bytes: &mut Vec<u8>, ranges: &[Range<usize>], header: &Header) {
    for range in ranges {
        if range.start < HEADERS_LEN {
            bytes.resize(bytes.len().max(HEADERS_LEN), 0);
            bytes[..HEADERS_LEN].copy_from_slice(&header.encode());
            continue;
        }
        let at = Position {
            segment: number,
            offset: length(range.start),
        };
        // Shorter than any record is only damage in a file that this program has not written; it
        // stays, and is reported each time.
        if let Some(record) = filler(at, range.len()) {
            bytes.resize(bytes.len().max(range.end), 0);
            bytes[range.clone()].copy_from_slice(&record);
        }
    }
}

/// Adds a range behind the others, which the last one may touch.
fn lengthen(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if last.start >= HEADERS_LEN && last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
