//! What is between the queue of durable messages and the log that keeps them. Pure.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::log::{MAX_GROUP, MAX_GROUP_BYTES, MAX_UNSYNCED, OutboxFailure, SETTLE_DELAY, Turn};
use super::queue::Entry;

/// Records in memory ahead of their turn to be sent, at most.
const READ_AHEAD: usize = 256;

/// Bytes of records in memory ahead of their turn, unless one has more.
const READ_AHEAD_BYTES: usize = 1024 * 1024;

/// Messages that ask to be kept, together or not at all.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) entries: Vec<Entry<()>>,
    pub(crate) records: Vec<Vec<u8>>,
    /// What makes way for them, once they are kept.
    pub(crate) displaced: Vec<(u64, Entry<()>)>,
    pub(crate) done: oneshot::Sender<Result<(), Arc<OutboxFailure>>>,
}

/// Why the log has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    /// Something was settled, which can wait until then.
    At(Instant),
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Desk {
    batches: VecDeque<Batch>,
    /// The batches of the turn under way, without their records.
    accepting: Vec<Batch>,
    settles: Vec<u64>,
    /// Since when the disk does not know of something settled.
    unsynced_since: Option<Instant>,
    /// Sending waits for the disk to know what is settled.
    sync_wanted: bool,
    marks: Vec<u64>,
    /// Messages whose mark is under way.
    marking: BTreeSet<u64>,
    reads: Vec<u64>,
    /// Whether a read is under way.
    reading: bool,
    /// What the service has seen is not below the numbers given next.
    number_from: Option<u64>,
    /// Whether that is being seen to: nothing is sent meanwhile.
    numbering: bool,
    /// The next number to be given.
    next: u64,
    records: HashMap<u64, Vec<u8>, RandomState>,
    record_bytes: usize,
    /// Every number below it is settled for good.
    floor: u64,
}

impl Desk {
    pub(crate) fn new(floor: u64, next: u64) -> Self {
        Self {
            batches: VecDeque::new(),
            accepting: Vec::new(),
            settles: Vec::new(),
            unsynced_since: None,
            sync_wanted: false,
            marks: Vec::new(),
            marking: BTreeSet::new(),
            reads: Vec::new(),
            reading: false,
            number_from: None,
            numbering: false,
            next,
            records: HashMap::default(),
            record_bytes: 0,
            floor,
        }
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    // --- what the log is asked for -------------------------------------------------------------

    pub(crate) fn accept(&mut self, batch: Batch) {
        self.batches.push_back(batch);
    }

    pub(crate) fn settle(&mut self, number: u64, now: Instant) {
        self.forget_record(number);
        self.settles.push(number);
        self.unsynced_since.get_or_insert(now);
    }

    /// The service has seen all numbers below this one. Nothing is to be done if this side gave
    /// them.
    pub(crate) fn number_from(&mut self, next: u64) {
        if next > self.next {
            self.number_from = Some(next);
            self.numbering = true;
        }
    }

    pub(crate) fn is_numbering(&self) -> bool {
        self.numbering
    }

    /// The numbers below which messages of this run need new ones, if that is to be seen to now.
    pub(crate) fn to_renumber(&self) -> Option<u64> {
        self.number_from
    }

    /// Everything has a number of its own, or has to be seen to again.
    pub(crate) fn finish_numbering(&mut self, next: u64, again: Option<u64>) {
        self.next = next;
        if again.is_some() {
            self.number_from = again;
        } else if self.number_from.is_none() {
            self.numbering = false;
        }
    }

    /// Sending waits for the disk. Whether that is of any use.
    pub(crate) fn want_sync(&mut self) -> bool {
        let useful = self.unsynced_since.is_some();
        self.sync_wanted |= useful;
        useful
    }

    /// Asks for marks, unless they are asked for already. Whether any is new.
    pub(crate) fn mark(&mut self, number: u64) -> bool {
        let new = self.marking.insert(number);
        if new {
            self.marks.push(number);
        }
        new
    }

    /// Asks for records, unless some are on their way. Whether it did.
    pub(crate) fn read(&mut self, wanted: impl Iterator<Item = (u64, u32)>) -> bool {
        if self.reading {
            return false;
        }
        let mut bytes = 0;
        for (number, size) in wanted.take(READ_AHEAD) {
            if self.records.contains_key(&number) {
                continue;
            }
            self.reads.push(number);
            bytes += usize::try_from(size).unwrap_or(usize::MAX);
            if bytes >= READ_AHEAD_BYTES {
                break;
            }
        }
        self.reading = !self.reads.is_empty();
        self.reading
    }

    // --- the log's turn --------------------------------------------------------------------------

    /// When the log has something to do. A disk that failed is left alone until then, but for what
    /// somebody waits for.
    pub(crate) fn due(&self, leave_alone_until: Option<Instant>) -> Due {
        let awaited = !self.batches.is_empty() || !self.marks.is_empty() || !self.reads.is_empty();
        let many = self.sync_wanted || self.settles.len() >= MAX_UNSYNCED;
        match (self.unsynced_since, leave_alone_until) {
            _ if awaited => Due::Now,
            (_, None) if self.number_from.is_some() => Due::Now,
            (_, Some(until)) if self.number_from.is_some() => Due::At(until),
            (None, _) => Due::Nothing,
            (Some(_), Some(until)) => Due::At(until),
            (Some(_), None) if many => Due::Now,
            (Some(since), None) => Due::At(since + SETTLE_DELAY),
        }
    }

    pub(crate) fn take_turn(&mut self, renumber: Vec<u64>) -> Turn {
        let mut turn = Turn {
            batches: Vec::new(),
            marks: std::mem::take(&mut self.marks),
            settles: std::mem::take(&mut self.settles),
            reads: std::mem::take(&mut self.reads),
            number_from: self.number_from.take(),
            renumber,
        };
        let (mut messages, mut bytes) = (0, 0);
        // What gets a new number comes before what is accepted next.
        while turn.renumber.is_empty()
            && let Some(batch) = self.batches.front_mut()
        {
            messages += batch.records.len();
            bytes += batch.records.iter().map(Vec::len).sum::<usize>();
            let fits = messages <= MAX_GROUP && bytes <= MAX_GROUP_BYTES;
            if !fits && !turn.batches.is_empty() {
                break;
            }
            turn.batches.push(std::mem::take(&mut batch.records));
            self.accepting.extend(self.batches.pop_front());
        }
        self.sync_wanted = false;
        self.unsynced_since = None;
        turn
    }

    /// The batches of the turn that is over, in its order.
    pub(crate) fn take_accepting(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.accepting)
    }

    /// All batches that wait: the log is gone.
    pub(crate) fn take_batches(&mut self) -> Vec<Batch> {
        let mut batches = self.take_accepting();
        batches.extend(self.batches.drain(..));
        batches
    }

    pub(crate) fn finish_sync(&mut self, floor: u64, synced: bool, now: Instant) {
        self.floor = floor;
        if !synced {
            self.unsynced_since.get_or_insert(now);
        }
    }

    pub(crate) fn finish_mark(&mut self, number: u64) {
        self.marking.remove(&number);
    }

    /// The marks that were asked for and did not come.
    pub(crate) fn take_marking(&mut self) -> BTreeSet<u64> {
        self.marks.clear();
        std::mem::take(&mut self.marking)
    }

    // --- records in memory -----------------------------------------------------------------------

    /// Keeps the record of a message that was just accepted, if its turn may come soon.
    pub(crate) fn keep_record(&mut self, number: u64, record: Vec<u8>) {
        if self.records.len() < READ_AHEAD && self.record_bytes < READ_AHEAD_BYTES {
            self.insert_record(number, record);
        }
    }

    /// Keeps a record that was asked for.
    pub(crate) fn insert_record(&mut self, number: u64, record: Vec<u8>) {
        self.record_bytes += record.len();
        if let Some(before) = self.records.insert(number, record) {
            self.record_bytes -= before.len();
        }
    }

    pub(crate) fn finish_read(&mut self) {
        self.reading = false;
    }

    pub(crate) fn take_record(&mut self, number: u64) -> Option<Vec<u8>> {
        let record = self.records.remove(&number)?;
        self.record_bytes -= record.len();
        if self.records.is_empty() {
            self.records.shrink_to(READ_AHEAD);
        }
        Some(record)
    }

    pub(crate) fn forget_record(&mut self, number: u64) {
        drop(self.take_record(number));
    }
}
