//! Makes durable what was appended and settled, and gives room back.

use std::collections::BTreeSet;
use std::io;

use tracing::warn;

use crate::planted::{PlantedBug, is_planted};

use super::error::OutboxError;
use super::files::segment_name;
use super::format::{
    HEADERS_LEN, Header, Part, Position, RECORD_HEADER_LEN, Slot, length, put_message, put_settled,
};
use super::index::{FIRST_WRITE, Place, Segment};
use super::limits::{MAX_RANGES, MAX_RANGES_PER_SYNC};
use super::log::Outbox;

/// The room that a batch keeps for the next one.
const KEPT_CAPACITY: usize = 1024 * 1024;

/// Whether the newest segment can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Behind its end there is nothing.
    Sound,
    /// Behind its end there may be what a failed sync has left: a new segment has to come next.
    Lost,
}

/// The records that the next sync writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// They are encoded for the place that the log's end had when the first one came, which only a
    /// sync changes.
    bytes: Vec<u8>,
    /// The appended messages, ascending.
    fresh: Vec<(u64, Place)>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.fresh.first().map(|(seq, _)| *seq)
    }

    pub(super) fn has(&self, seq: u64) -> bool {
        self.fresh
            .binary_search_by_key(&seq, |(seq, _)| *seq)
            .is_ok()
    }

    /// Appends a message that is new. `start` is where the batch begins.
    pub(super) fn append(&mut self, start: Slot, part: Part, seq: u64, body: &[u8]) {
        let place = self.put_message(start, part, seq, body);
        self.fresh.push((seq, place));
    }

    fn put_message(&mut self, start: Slot, part: Part, seq: u64, body: &[u8]) -> Place {
        let slot = self.end(start);
        put_message(&mut self.bytes, slot, part, seq, body);
        Place {
            segment: slot.at.segment,
            offset: slot.at.offset,
            length: length(body.len()),
        }
    }

    fn end(&self, start: Slot) -> Slot {
        start.plus(self.bytes.len())
    }

    /// Empties it, and keeps a little room.
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_CAPACITY);
        self.fresh.clear();
        self.fresh.shrink_to(KEPT_CAPACITY / RECORD_HEADER_LEN);
    }
}

/// How far a failed sync came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// The newest segment could not be written to; it can be cut.
    Write,
    /// The newest segment was written to, and its sync failed.
    Sync,
    /// A new segment could not be made; it is to be removed.
    Begin,
}

/// Numbers, and the ranges that they are; at most so many.
fn ranges(seqs: &BTreeSet<u64>, most: usize) -> (Vec<u64>, Vec<(u64, u64)>) {
    let mut numbers = Vec::new();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &seq in seqs {
        if let Some((_, last)) = ranges.last_mut()
            && *last + 1 == seq
        {
            *last = seq;
        } else if ranges.len() < most {
            ranges.push((seq, seq));
        } else {
            break;
        }
        numbers.push(seq);
    }
    (numbers, ranges)
}

/// Appends settled ranges to the records of a write that begins there.
fn put_ranges(records: &mut Vec<u8>, start: Slot, ranges: &[(u64, u64)]) {
    for ranges in ranges.chunks(MAX_RANGES) {
        let slot = start.plus(records.len());
        put_settled(records, slot, ranges);
    }
}

impl Outbox {
    /// Makes everything durable that was appended and settled: one write and one data sync, and two
    /// syncs more when a new segment is begun or an old one removed. Does nothing when nothing was
    /// appended or settled.
    ///
    /// # Errors
    /// [`OutboxError::Disk`]. All messages that were appended since the last success are gone, as if
    /// they had never been, and their numbers are not given again; what is settled stays so in
    /// memory, and goes with the next sync. What was durable stays, and can be read. On a full disk
    /// ([`OutboxError::is_full`]), and after any other failure, a later call may succeed.
    ///
    /// Only when the disk also fails to take the lost messages out, and the process then ends before
    /// a later sync succeeds, may some of them be found when the log is opened again.
    pub fn sync(&mut self) -> Result<(), OutboxError> {
        if !self.needs_sync() {
            return Ok(());
        }
        // First of all, since on a full disk this is what makes room. What is not yet durably
        // settled there is so once its segment is gone.
        self.remove_dead();
        let start = self.batch_start();
        let mut batch = std::mem::take(&mut self.batch);
        let moved = self.clean(start, &mut batch);
        let settled = self.put_settled(start, &mut batch);
        let written = self.write(start, &batch.bytes);
        match &written {
            Ok(()) => {
                if let Some((last, _)) = batch.fresh.last() {
                    self.durable_next = self.durable_next.max(last + 1);
                }
                for (seq, place) in batch.fresh.iter().copied().chain(moved) {
                    if !self.settling.contains(&seq) {
                        self.index.insert(seq, place);
                    }
                }
                for seq in settled {
                    self.settling.remove(&seq);
                }
            }
            Err(_) => {
                for (seq, _) in &batch.fresh {
                    self.settling.remove(seq);
                }
            }
        }
        batch.clear();
        self.batch = batch;
        match written {
            Ok(()) => {
                self.remove_dead();
                Ok(())
            }
            Err((failed, error)) => {
                self.roll_back(failed);
                Err(error)
            }
        }
    }

    fn write(&mut self, start: Slot, bytes: &[u8]) -> Result<(), (Failed, OutboxError)> {
        let name = segment_name(start.at.segment);
        let Some(segment) = self.index.segment(start.at.segment) else {
            return self
                .begin_segment(bytes)
                .map_err(|error| (Failed::Begin, error));
        };
        segment
            .file
            .write_at(u64::from(start.at.offset), bytes)
            .map_err(|error| (Failed::Write, OutboxError::disk("write to", &name)(error)))?;
        if !is_planted(PlantedBug::SyncSkipped) {
            segment
                .file
                .sync()
                .map_err(|error| (Failed::Sync, OutboxError::disk("sync", &name)(error)))?;
        }
        let end = start.plus(bytes.len()).at.offset;
        self.index.extend_newest(end, start.write);
        Ok(())
    }

    /// Begins the next segment with these records, durably. When that fails the segment is doomed,
    /// and its number is not used again.
    ///
    /// The header makes what the segment before has look as if it had been durable. So the records
    /// that say what of it is void are durable before there is a header.
    pub(super) fn begin_segment(&mut self, records: &[u8]) -> Result<(), OutboxError> {
        let follows = self.index.newest().map(|(number, segment)| Position {
            segment: number,
            offset: segment.end,
        });
        self.last_segment += 1;
        let number = self.last_segment;
        let header = Header {
            id: self.id,
            number,
            next: self.next,
            follows: follows.unwrap_or_default(),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(records);
        let beginning = Slot {
            at: Position {
                segment: number,
                offset: 0,
            },
            write: FIRST_WRITE,
        };
        let (_, void) = ranges(&self.void, usize::MAX);
        put_ranges(&mut bytes, beginning, &void);
        let name = segment_name(number);
        let made = (|| -> io::Result<_> {
            let file = self.disk.create(&name)?;
            let mut written = bytes.len();
            if !void.is_empty() {
                file.write_at(HEADERS_LEN as u64, &bytes[HEADERS_LEN..])?;
                file.sync()?;
                written = HEADERS_LEN;
            }
            file.write_at(0, &bytes[..written])?;
            file.sync()?;
            self.disk.sync()?;
            Ok(file)
        })();
        match made {
            Ok(file) => {
                self.tail = Tail::Sound;
                self.durable_next = self.next;
                self.void.clear();
                let segment = Segment::new(file, length(bytes.len()));
                self.index.add_segment(number, segment);
                Ok(())
            }
            Err(error) => {
                self.tail = Tail::Lost;
                self.doomed.push_back(number);
                Err(OutboxError::disk("begin", &name)(error))
            }
        }
    }

    /// Takes what a failed sync may have written out of the log.
    fn roll_back(&mut self, failed: Failed) {
        let newest = self.index.newest();
        if failed == Failed::Write
            && let Some((_, segment)) = newest
            && segment.file.set_len(u64::from(segment.end)).is_ok()
            && segment.file.sync().is_ok()
        {
            return;
        }
        if failed != Failed::Begin {
            self.tail = Tail::Lost;
            if let Err(error) = self.begin_segment(&[]) {
                warn!(%error, "the outbox cannot go on in a new segment; the next sync tries again");
            }
        }
        self.remove_doomed();
    }

    /// Copies messages of the oldest segment into the batch when there is too much garbage; at most
    /// a segment's worth at a time.
    fn clean(&self, start: Slot, batch: &mut Batch) -> Vec<(u64, Place)> {
        let segment_bytes = self.options.segment_bytes;
        let mut moved = Vec::new();
        let Some(oldest) = self.index.to_clean(segment_bytes) else {
            return moved;
        };
        let mut copied = 0;
        for (seq, place) in self.index.iter().filter(|(_, at)| at.segment == oldest) {
            match self.read_at(seq, place) {
                Ok(body) => {
                    moved.push((seq, batch.put_message(start, Part::Alone, seq, &body)));
                    copied += RECORD_HEADER_LEN + body.len();
                }
                // It stays where it is, and its segment with it, for whoever reads it to find out.
                Err(error) => warn!(seq, %error, "cannot move a message of the outbox"),
            }
            if copied >= segment_bytes as usize {
                break;
            }
        }
        moved
    }

    /// Puts what is settled into the batch, and gives the numbers that it put there.
    fn put_settled(&self, start: Slot, batch: &mut Batch) -> Vec<u64> {
        let (numbers, ranges) = ranges(&self.settling, MAX_RANGES_PER_SYNC);
        put_ranges(&mut batch.bytes, start, &ranges);
        numbers
    }

    /// Removes the oldest segments as far as nothing waits in them.
    fn remove_dead(&mut self) {
        while let Some(number) = self.index.take_dead() {
            self.doomed.push_back(number);
        }
        self.remove_doomed();
    }

    /// A removal is durable before the next one: otherwise a crash could leave the messages of one
    /// segment and not the later one that says that they are settled. What cannot be removed now is
    /// tried again with the next sync.
    pub(super) fn remove_doomed(&mut self) {
        while let Some(&number) = self.doomed.front() {
            let name = segment_name(number);
            let removed = match self.disk.remove(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => self.disk.sync(),
            };
            if let Err(error) = removed {
                warn!(file = name, %error, "cannot remove a segment of the outbox");
                return;
            }
            self.doomed.pop_front();
        }
    }
}
