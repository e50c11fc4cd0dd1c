//! Opens a log: finds its segments, reads what is intact, and mends the rest.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use tracing::warn;

use crate::disk::{Disk, DiskFile};
use crate::planted::{PlantedBug, is_planted};

use super::damage;
use super::error::OutboxError;
use super::files::{segment_name, segment_number, set_aside_prefix};
use super::format::{
    FoundHeader, HEADERS_LEN, Header, Position, RECORD_HEADER_LEN, Record, filler, length,
};
use super::index::{Index, Place, Segment};
use super::limits::{MAX_SEGMENT_BYTES, MAX_SEQ};
use super::log::{Outbox, OutboxOptions};
use super::report::{Damage, OpenReport, OutboxIdentity, SetAside, SetAsideReason};
use super::scan::{Piece, scan};
use super::sync::{Batch, Tail};

/// A segment's file.
struct Candidate {
    number: u64,
    file: Box<dyn DiskFile>,
    len: u64,
    header: FoundHeader,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    options: OutboxOptions,
    fresh: OutboxId,
) -> Result<(Outbox, OpenReport), OutboxError> {
    let mut candidates = find(&*disk)?;
    let last_segment = candidates.last().map_or(0, |candidate| candidate.number);
    let set_aside = set_aside_unusable(&*disk, &mut candidates)?;
    let known = candidates.iter().rev().find_map(|one| one.header.good());
    let identity = match known {
        Some(_) => OutboxIdentity::Found,
        None if candidates.iter().all(|one| one.len == 0) => OutboxIdentity::New,
        None => OutboxIdentity::Lost,
    };
    let id = known.map_or(fresh, |header| header.id);

    let chain = Chain::follow(candidates);
    let mut salvage = Salvage {
        disk: &*disk,
        id,
        index: Index::default(),
        next: 1,
        lost_bytes: 0,
        damaged: chain.missing,
        tail: Tail::Sound,
        unfinished: None,
    };
    let newest = chain.valid.len().saturating_sub(1);
    for (place, link) in chain.valid.into_iter().enumerate() {
        salvage.take(link, place == newest)?;
    }
    let report = OpenReport {
        identity,
        waiting: salvage.index.len(),
        damaged: salvage.damaged,
        set_aside,
    };
    let skipped = salvage.lost_bytes.div_ceil(RECORD_HEADER_LEN as u64);
    let unfinished = salvage.unfinished;
    let mut outbox = Outbox {
        id,
        options,
        index: salvage.index,
        settling: BTreeSet::new(),
        batch: Batch::default(),
        next: salvage.next.saturating_add(skipped).min(MAX_SEQ + 1),
        durable_next: salvage.next,
        tail: salvage.tail,
        last_segment,
        doomed: chain.void,
        disk,
    };
    if is_planted(PlantedBug::NumbersReused) {
        outbox.next = outbox.waiting().last().unwrap_or(0) + 1;
        outbox.durable_next = outbox.next;
    }
    // The names, too, may be such as only this machine's memory knows so far.
    outbox
        .disk
        .sync()
        .map_err(OutboxError::disk("sync the names of", "the outbox"))?;
    outbox.remove_doomed();
    go_on(&mut outbox, unfinished)?;
    if !report.damaged.is_empty() {
        damage::forget_oldest(&*outbox.disk);
    }
    Ok((outbox, report))
}

/// Begins a segment when there is none, because the id has to last from now on; and when the newest
/// is damaged, because nothing else tells the numbers to skip once the damage is gone. Only then
/// is the newest mended.
fn go_on(outbox: &mut Outbox, unfinished: Option<(u64, Vec<u8>)>) -> Result<(), OutboxError> {
    let is_new = outbox.index.newest().is_none();
    if outbox.tail == Tail::Sound && !is_new {
        return Ok(());
    }
    match outbox.begin_segment(&[]) {
        Ok(()) => {}
        Err(error) if error.is_full() && !is_new => {
            warn!(%error, "the outbox can be read, and not written to");
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    if let Some((number, bytes)) = unfinished {
        match write_back(&outbox.index, number, &bytes) {
            Err(error) if error.is_full() => warn!(%error, "the outbox stays damaged"),
            result => return result,
        }
    }
    Ok(())
}

/// The segments on the disk, in their order.
fn find(disk: &dyn Disk) -> Result<Vec<Candidate>, OutboxError> {
    let names = disk
        .list()
        .map_err(OutboxError::disk("list", "the outbox"))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment_number(name))
        .collect();
    numbers.sort_unstable();
    let candidate = |number| {
        let name = segment_name(number);
        (|| -> io::Result<_> {
            let file = disk.open(&name)?;
            let len = file.len()?;
            let header = FoundHeader::read(&read_from_start(&*file, len, HEADERS_LEN)?);
            Ok(Candidate {
                number,
                file,
                len,
                header,
            })
        })()
        .map_err(OutboxError::disk("open", &name))
    };
    numbers.into_iter().map(candidate).collect()
}

/// Reads a file of this length, but not more than the limit. Blocks that cannot be read are zeros,
/// and so damage; when none can the error is the disk's.
fn read_from_start(file: &dyn DiskFile, len: u64, limit: usize) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 4096;
    let mut bytes = vec![0; usize::try_from(len).map_or(limit, |len| len.min(limit))];
    let Err(whole) = file.read_at(0, &mut bytes) else {
        return Ok(bytes);
    };
    let mut offset = 0;
    let mut any = false;
    for block in bytes.chunks_mut(BLOCK) {
        match file.read_at(offset, block) {
            Ok(()) => any = true,
            Err(_) => block.fill(0),
        }
        offset += BLOCK as u64;
    }
    if any { Ok(bytes) } else { Err(whole) }
}

/// Renames what this program must not touch: the whole log when any of it has another version,
/// and intact segments that belong to another outbox.
fn set_aside_unusable(
    disk: &dyn Disk,
    candidates: &mut Vec<Candidate>,
) -> Result<Vec<SetAside>, OutboxError> {
    let other_version = candidates.iter().find_map(|one| match one.header {
        FoundHeader::OtherVersion(version) => Some(version),
        FoundHeader::Good(..) | FoundHeader::Lost => None,
    });
    let (reason, unusable) = if let Some(version) = other_version {
        let mut all = std::mem::take(candidates);
        // Those by which the log is known to be another's go last: if this is interrupted, the rest
        // follows the next time.
        all.sort_by_key(|one| matches!(one.header, FoundHeader::OtherVersion(_)));
        (SetAsideReason::OtherVersion(version), all)
    } else {
        let id = candidates
            .iter()
            .rev()
            .filter(|one| is_in_place(one))
            .find_map(|one| one.header.good())
            .map(|header| header.id);
        let misplaced = candidates
            .extract_if(.., |one| match one.header.good() {
                Some(header) => !is_in_place(one) || Some(header.id) != id,
                None => false,
            })
            .collect();
        (SetAsideReason::Misplaced, misplaced)
    };
    if unusable.is_empty() {
        return Ok(Vec::new());
    }
    let names = disk
        .list()
        .map_err(OutboxError::disk("list", "the outbox"))?;
    let prefix = set_aside_prefix(&names);
    let mut files = Vec::new();
    for Candidate { number, file, .. } in unusable {
        // Windows does not rename an open file of every kind.
        drop(file);
        let name = segment_name(number);
        let to = format!("{prefix}{name}");
        disk.rename(&name, &to)
            .and_then(|()| disk.sync())
            .map_err(OutboxError::disk("set aside", &name))?;
        files.push(to);
    }
    Ok(vec![SetAside { reason, files }])
}

fn is_in_place(candidate: &Candidate) -> bool {
    candidate
        .header
        .good()
        .is_some_and(|header| header.number == candidate.number)
}

/// A segment that counts, and its length if a later one knows it.
struct Link {
    candidate: Candidate,
    known_end: Option<usize>,
}

/// The segments as their headers join them.
struct Chain {
    /// In the order of the log.
    valid: Vec<Link>,
    void: VecDeque<u64>,
    /// Segments that are gone although the log goes on before them.
    missing: Vec<Damage>,
}

impl Chain {
    fn follow(candidates: Vec<Candidate>) -> Self {
        let mut chain = Self {
            valid: Vec::new(),
            void: VecDeque::new(),
            missing: Vec::new(),
        };
        // What the segment behind says that it follows; nothing if that cannot be read.
        let mut follows: Option<Position> = None;
        for candidate in candidates.into_iter().rev() {
            let known_end = match follows {
                Some(position) if candidate.number > position.segment => {
                    chain.void.push_front(candidate.number);
                    continue;
                }
                Some(position) if candidate.number == position.segment => {
                    Some((position.offset as usize).max(HEADERS_LEN))
                }
                Some(position) => {
                    chain.missing.push(Damage {
                        file: segment_name(position.segment),
                        offset: 0,
                        bytes: u64::from(position.offset),
                        kept_in: None,
                    });
                    None
                }
                None => None,
            };
            follows = candidate.header.good().map(|header| header.follows);
            chain.valid.push(Link {
                candidate,
                known_end,
            });
        }
        chain.valid.reverse();
        chain
    }
}

/// What is read from the segments, one after the other.
struct Salvage<'a> {
    disk: &'a dyn Disk,
    id: OutboxId,
    index: Index,
    next: u64,
    /// The bytes in which there may have been messages whose numbers nothing else tells: a later
    /// header would.
    lost_bytes: u64,
    damaged: Vec<Damage>,
    tail: Tail,
    /// The mended content of the newest segment, to be written in the end.
    unfinished: Option<(u64, Vec<u8>)>,
}

impl Salvage<'_> {
    fn take(&mut self, link: Link, is_newest: bool) -> Result<(), OutboxError> {
        let Link {
            candidate,
            known_end,
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
        scan(number, &bytes, |piece| match piece {
            Piece::Record(record, offset) => self.apply(number, offset, record),
            Piece::Damaged(range) => ranges.push(range),
        });
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
        self.index.extend_newest(length(bytes.len()));
        match (can_mend, is_newest) {
            (true, true) => self.unfinished = Some((number, bytes)),
            (true, false) => self.write_back(number, &bytes)?,
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

    fn apply(&mut self, segment: u64, offset: u32, record: Record<'_>) {
        match record {
            Record::Message { seq, body } => {
                let place = Place {
                    segment,
                    offset,
                    length: length(body.len()),
                };
                self.index.insert(seq, place);
                self.next = self.next.max(seq + 1);
            }
            Record::Settled(ranges) => {
                for (first, last) in ranges.iter() {
                    self.index.remove_range(first, last);
                    self.next = self.next.max(last + 1);
                }
            }
            Record::Filler => {}
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
fn write_back(index: &Index, number: u64, bytes: &[u8]) -> Result<(), OutboxError> {
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
