//! The outbox as its owner uses it.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;

use crate::disk::Disk;

use super::error::OutboxError;
use super::files::segment_name;
use super::format::{
    Found, HEADERS_LEN, Part, Position, RECORD_HEADER_LEN, Record, Slot, length, read_record,
};
use super::index::{FIRST_WRITE, Index, Place};
use super::limits::{MAX_BATCH_BYTES, MAX_RECORD_BODY, MAX_SEQ, MIN_SEGMENT_BYTES, SEGMENT_BYTES};
use super::open;
use super::report::OpenReport;
use super::sync::{Batch, Tail};

/// How an outbox keeps its log.
#[derive(Clone, Copy, Debug)]
pub struct OutboxOptions {
    pub(super) segment_bytes: u32,
}

impl Default for OutboxOptions {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
        }
    }
}

impl OutboxOptions {
    /// The length from which a segment gets no more records: at most [`SEGMENT_BYTES`], which is the
    /// default, and at least 1 KiB. A log may be opened with another length each time.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u32) -> Self {
        self.segment_bytes = bytes.clamp(MIN_SEGMENT_BYTES, SEGMENT_BYTES);
        self
    }
}

/// Messages that are kept on disk until they are settled.
///
/// A message gets its number when it is appended, and is durable, and only then to be sent, when
/// [`sync`](Self::sync) has succeeded. Numbers go up from 1, with gaps; none is given twice, as far
/// as this disk can tell. Every operation that reads or writes blocks on the disk.
#[derive(Debug)]
pub struct Outbox {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: OutboxOptions,
    pub(super) id: OutboxId,
    /// What is durable and not settled.
    pub(super) index: Index,
    /// Settled, and not durably so. None of them is in the index.
    pub(super) settling: BTreeSet<u64>,
    /// Messages that are on the disk and do not count: what is left of groups. They are settled with
    /// the next segment, which the tail makes the next thing to be written.
    pub(super) void: BTreeSet<u64>,
    /// What is appended, and not on the disk.
    pub(super) batch: Batch,
    /// The next number to be given; higher than all that were.
    pub(super) next: u64,
    /// The next number that this log would give if it were opened now; at most `next`.
    pub(super) durable_next: u64,
    pub(super) tail: Tail,
    /// The highest number that a segment has, or that one was to have.
    pub(super) last_segment: u64,
    /// Segments that are to be removed, in this order, each before the next.
    pub(super) doomed: VecDeque<u64>,
}

impl Outbox {
    /// Opens the log on this disk, or begins one with the fresh id; other files are left alone.
    ///
    /// Damage is no error: the report tells of it. Opening reads the whole log once, one segment at
    /// a time.
    ///
    /// # Errors
    /// [`OutboxError::Disk`] when the disk cannot be read or written to; nothing is lost then. A full
    /// disk is an error only when there is no log yet.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: OutboxOptions,
        fresh: OutboxId,
    ) -> Result<(Self, OpenReport), OutboxError> {
        open::open(disk, options, fresh)
    }

    /// What the receiver knows this outbox by. It stays the same as long as the log is there.
    pub fn id(&self) -> OutboxId {
        self.id
    }

    /// Takes a message in and gives its number; [`sync`](Self::sync) makes it durable.
    ///
    /// # Errors
    /// [`TooLarge`](OutboxError::TooLarge), [`Exhausted`](OutboxError::Exhausted), and
    /// [`BatchFull`](OutboxError::BatchFull), after which a sync makes room. The message is not taken
    /// in then.
    pub fn append(&mut self, body: &[u8]) -> Result<u64, OutboxError> {
        self.append_all(&[body]).map(|numbers| numbers.start)
    }

    /// Takes messages in together, and gives their numbers. Until [`sync`](Self::sync) has succeeded
    /// all of them or none are there when the log is opened again, wherever the machine failed.
    ///
    /// # Errors
    /// As those of [`append`](Self::append); none of the messages is taken in then. What is longer
    /// than [`MAX_BATCH_BYTES`], with the headers of its records, never finds room.
    pub fn append_all(&mut self, bodies: &[impl AsRef<[u8]>]) -> Result<Range<u64>, OutboxError> {
        let sizes = || bodies.iter().map(|body| body.as_ref().len());
        if let Some(size) = sizes().find(|size| *size > MAX_RECORD_BODY) {
            return Err(OutboxError::TooLarge { size });
        }
        let records: usize = sizes().map(|size| RECORD_HEADER_LEN + size).sum();
        if self.batch.len() + records > MAX_BATCH_BYTES {
            return Err(OutboxError::BatchFull);
        }
        let first = self.next;
        if (MAX_SEQ + 1).saturating_sub(first) < bodies.len() as u64 {
            return Err(OutboxError::Exhausted);
        }
        let start = self.batch_start();
        for (place, body) in bodies.iter().enumerate() {
            let part = Part::of(place, bodies.len());
            self.batch.append(start, part, self.next, body.as_ref());
            self.next += 1;
        }
        Ok(first..self.next)
    }

    /// The peer has answered for a message, or it is given up: it is not read or listed any more.
    /// The next [`sync`](Self::sync) makes that durable. Numbers that do not wait are ignored.
    pub fn settle(&mut self, seq: u64) {
        if self.index.remove(seq).is_some() || self.batch.has(seq) {
            self.settling.insert(seq);
        }
    }

    /// Whether there is anything that a sync would make durable.
    pub fn needs_sync(&self) -> bool {
        !self.batch.is_empty() || !self.settling.is_empty()
    }

    /// Reads a waiting message, which is checked again.
    ///
    /// # Errors
    /// [`NotWaiting`](OutboxError::NotWaiting), [`Damaged`](OutboxError::Damaged), and
    /// [`Disk`](OutboxError::Disk) when the disk cannot be read.
    pub fn read(&self, seq: u64) -> Result<Vec<u8>, OutboxError> {
        let place = self.index.get(seq).ok_or(OutboxError::NotWaiting { seq })?;
        self.read_at(seq, place)
    }

    pub(super) fn read_at(&self, seq: u64, place: Place) -> Result<Vec<u8>, OutboxError> {
        let segment = self
            .index
            .segment(place.segment)
            .ok_or(OutboxError::NotWaiting { seq })?;
        let mut bytes = vec![0; RECORD_HEADER_LEN + place.length as usize];
        match segment.file.read_at(u64::from(place.offset), &mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(OutboxError::Damaged { seq });
            }
            Err(error) => {
                let file = segment_name(place.segment);
                return Err(OutboxError::disk("read", &file)(error));
            }
        }
        let at = Position {
            segment: place.segment,
            offset: place.offset,
        };
        match read_record(&bytes, at) {
            Found::Record(Record::Message { seq: found, .. }, len)
                if found == seq && len == bytes.len() =>
            {
                bytes.drain(..RECORD_HEADER_LEN);
                Ok(bytes)
            }
            _ => Err(OutboxError::Damaged { seq }),
        }
    }

    /// The numbers of the messages that are durable and not settled, ascending.
    pub fn waiting(&self) -> impl Iterator<Item = u64> {
        self.index.iter().map(|(seq, _)| seq)
    }

    /// How many messages are durable and not settled.
    pub fn waiting_messages(&self) -> usize {
        self.index.len()
    }

    /// The bytes of their bodies.
    pub fn waiting_bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// Every number below this one is durably settled, or is that of no message and never will be.
    pub fn settled_floor(&self) -> u64 {
        [
            self.index.first(),
            self.settling.first().copied(),
            self.void.first().copied(),
            self.batch.first(),
        ]
        .into_iter()
        .flatten()
        .fold(self.durable_next, u64::min)
    }

    /// The next number to be given, unless [`number_from`](Self::number_from) raises it: every number
    /// that was given is below it.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Gives no number below this one from now on: the receiver has seen them. It is durable with
    /// the next message.
    pub fn number_from(&mut self, next: u64) {
        self.next = self.next.max(next.min(MAX_SEQ + 1));
    }

    /// Where the next batch will be.
    pub(super) fn batch_start(&self) -> Slot {
        match (self.tail, self.index.newest()) {
            (Tail::Sound, Some((number, segment))) if segment.end < self.options.segment_bytes => {
                Slot {
                    at: Position {
                        segment: number,
                        offset: segment.end,
                    },
                    write: segment.last_write.wrapping_add(1),
                }
            }
            _ => Slot {
                at: Position {
                    segment: self.last_segment + 1,
                    offset: length(HEADERS_LEN),
                },
                write: FIRST_WRITE,
            },
        }
    }
}
