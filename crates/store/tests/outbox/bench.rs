//! What the tests have in common: an outbox on a simulated disk beside a plain list that says what
//! must be in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::outbox::{OpenReport, Outbox, OutboxError, OutboxOptions};
use migration_ipc_testkit::disk::SimDisk;

pub(crate) const ID: OutboxId = OutboxId::from_bytes([7; 16]);

/// Small segments, so that little work makes, cleans and removes many.
pub(crate) fn small() -> OutboxOptions {
    OutboxOptions::default().segment_bytes(1024)
}

pub(crate) fn try_open(disk: &SimDisk) -> Result<(Outbox, OpenReport), OutboxError> {
    Outbox::open(Arc::new(disk.clone()), small(), ID)
}

pub(crate) fn open(disk: &SimDisk) -> (Outbox, OpenReport) {
    try_open(disk).unwrap()
}

/// A body that no other message has, of a length that depends on its number.
pub(crate) fn body(number: u64) -> Vec<u8> {
    let length = usize::try_from(number * 37 % 120).unwrap();
    let mut body = format!("message {number} ").into_bytes();
    body.resize(body.len() + length, b'.');
    body
}

/// Everything that waits, as it is read.
pub(crate) fn contents(outbox: &Outbox) -> BTreeMap<u64, Vec<u8>> {
    let read = |seq| (seq, outbox.read(seq).unwrap());
    let contents: BTreeMap<_, _> = outbox.waiting().map(read).collect();
    assert_eq!(outbox.waiting_messages(), contents.len());
    let bytes: usize = contents.values().map(Vec::len).sum();
    assert_eq!(outbox.waiting_bytes(), bytes as u64);
    contents
}

/// What an outbox must hold, by what its operations have promised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// Durable and not settled.
    pub(crate) waiting: BTreeMap<u64, Vec<u8>>,
    /// Settled since the last sync, with what they are.
    pub(crate) settling: BTreeMap<u64, Vec<u8>>,
    /// Appended since the last sync.
    pub(crate) fresh: BTreeMap<u64, Vec<u8>>,
    /// Below this every number was settled durably.
    pub(crate) floor: u64,
    /// The highest number of a message that was durable.
    pub(crate) highest: u64,
    /// What was appended together, and may have been written or not.
    groups: Vec<Range<u64>>,
    appended: u64,
}

impl Model {
    pub(crate) fn append(&mut self, outbox: &mut Outbox) -> u64 {
        self.appended += 1;
        let body = body(self.appended);
        let seq = outbox.append(&body).unwrap();
        assert!(seq > self.highest, "{seq} was given already");
        let last = self.fresh.last_key_value().map(|(last, _)| *last);
        assert!(last < Some(seq), "{seq} was given already");
        self.fresh.insert(seq, body);
        seq
    }

    pub(crate) fn append_group(&mut self, outbox: &mut Outbox, count: u64) -> Range<u64> {
        let bodies: Vec<_> = (1..=count).map(|one| body(self.appended + one)).collect();
        self.appended += count;
        let numbers = outbox.append_all(&bodies).unwrap();
        assert_eq!(numbers.end - numbers.start, count);
        let last = self.fresh.last_key_value().map(|(last, _)| *last);
        assert!(numbers.start > self.highest && last < Some(numbers.start));
        self.fresh.extend(numbers.clone().zip(bodies));
        self.groups.push(numbers.clone());
        numbers
    }

    pub(crate) fn settle(&mut self, outbox: &mut Outbox, seq: u64) {
        outbox.settle(seq);
        if let Some(body) = self.waiting.remove(&seq) {
            self.settling.insert(seq, body);
        }
    }

    /// Syncs, and takes over what that promises.
    pub(crate) fn sync(&mut self, outbox: &mut Outbox) -> Result<(), OutboxError> {
        let does_something = outbox.needs_sync();
        let result = outbox.sync();
        match &result {
            Ok(()) => {
                if does_something {
                    self.groups.clear();
                }
                if let Some((seq, _)) = self.fresh.last_key_value() {
                    self.highest = *seq;
                }
                self.waiting.append(&mut self.fresh);
                self.settling.clear();
            }
            Err(_) => self.fresh.clear(),
        }
        result
    }

    /// The outbox is what it must be while it is open.
    pub(crate) fn check(&mut self, outbox: &Outbox) {
        assert_eq!(contents(outbox), self.waiting);
        let floor = outbox.settled_floor();
        let unsettled = [&self.waiting, &self.settling, &self.fresh];
        for first in unsettled.iter().filter_map(|all| all.keys().next()) {
            assert!(floor <= *first, "{first} is not durably settled");
        }
        if unsettled.iter().all(|all| all.is_empty()) {
            assert!(floor > self.highest);
        }
        assert!(floor >= self.floor, "the floor has sunk");
        self.floor = floor;
    }

    /// The outbox was opened after a crash: all that was durable is there, and what was not yet is
    /// there as it was or not at all, each group as one. The model goes on from what is there.
    ///
    /// `in_doubt` is what was appended and may have been written.
    pub(crate) fn recover(&mut self, outbox: &Outbox, in_doubt: &BTreeMap<u64, Vec<u8>>) {
        let found = contents(outbox);
        for (seq, body) in &self.waiting {
            assert_eq!(found.get(seq), Some(body), "message {seq} is lost");
        }
        for (seq, body) in &found {
            let known = [&self.waiting, &self.settling, in_doubt]
                .iter()
                .find_map(|all| all.get(seq));
            assert_eq!(Some(body), known, "message {seq} must not be there");
        }
        for group in self.groups.drain(..) {
            let there = found.range(group.clone()).count() as u64;
            let all = group.end - group.start;
            assert!(there == 0 || there == all, "{there} of {group:?} are there");
        }
        assert!(outbox.settled_floor() >= self.floor, "the floor has sunk");
        self.floor = outbox.settled_floor();
        self.highest = self
            .highest
            .max(found.keys().next_back().copied().unwrap_or(0));
        self.waiting = found;
        self.settling.clear();
        self.fresh.clear();
    }
}
