//! Where the messages are: all that the outbox holds in memory.

use std::collections::BTreeMap;

use crate::disk::DiskFile;

use super::format::RECORD_HEADER_LEN;

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    /// Of its record.
    pub(super) offset: u32,
    /// Of its body.
    pub(super) length: u32,
}

impl Place {
    fn record_len(self) -> u64 {
        RECORD_HEADER_LEN as u64 + u64::from(self.length)
    }
}

/// The number of the write that begins a segment.
pub(super) const FIRST_WRITE: u16 = 1;

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) file: Box<dyn DiskFile>,
    /// The length that is durable.
    pub(super) end: u32,
    /// The number of the last write in it.
    pub(super) last_write: u16,
    /// The messages in it that the index refers to, and the bytes of their records.
    messages: usize,
    live_bytes: u64,
}

impl Segment {
    pub(super) fn new(file: Box<dyn DiskFile>, end: u32) -> Self {
        Self {
            file,
            end,
            last_write: FIRST_WRITE,
            messages: 0,
            live_bytes: 0,
        }
    }
}

/// The segments and the waiting messages in them. Every place in it is in one of its segments.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: BTreeMap<u64, Segment>,
    waiting: BTreeMap<u64, Place>,
    /// The bodies of the waiting messages.
    bytes: u64,
}

impl Index {
    pub(super) fn add_segment(&mut self, number: u64, segment: Segment) {
        self.segments.insert(number, segment);
    }

    pub(super) fn segment(&self, number: u64) -> Option<&Segment> {
        self.segments.get(&number)
    }

    /// The segment that is written to.
    pub(super) fn newest(&self) -> Option<(u64, &Segment)> {
        let (number, segment) = self.segments.last_key_value()?;
        Some((*number, segment))
    }

    /// The newest segment has got longer, by this write in the end.
    pub(super) fn extend_newest(&mut self, end: u32, write: u16) {
        if let Some(mut newest) = self.segments.last_entry() {
            let newest = newest.get_mut();
            newest.end = end;
            newest.last_write = write;
        }
    }

    /// The oldest segment, if it is not the one that is written to.
    fn oldest(&self) -> Option<(u64, &Segment)> {
        let (number, segment) = self.segments.first_key_value()?;
        (self.segments.len() > 1).then_some((*number, segment))
    }

    /// Takes out the oldest segment if no message is left in it.
    pub(super) fn take_dead(&mut self) -> Option<u64> {
        let (number, segment) = self.oldest()?;
        if segment.messages > 0 {
            return None;
        }
        self.segments.pop_first();
        Some(number)
    }

    /// The oldest segment, if the whole log has more garbage than messages and two segments.
    pub(super) fn to_clean(&self, segment_bytes: u32) -> Option<u64> {
        let (number, _) = self.oldest()?;
        let total: u64 = self.segments.values().map(|one| u64::from(one.end)).sum();
        let live: u64 = self.segments.values().map(|one| one.live_bytes).sum();
        (total - live > live + 2 * u64::from(segment_bytes)).then_some(number)
    }

    pub(super) fn get(&self, seq: u64) -> Option<Place> {
        self.waiting.get(&seq).copied()
    }

    /// A message waits here; one of the same number elsewhere no longer counts.
    pub(super) fn insert(&mut self, seq: u64, place: Place) {
        self.remove(seq);
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.messages += 1;
            segment.live_bytes += place.record_len();
            self.bytes += u64::from(place.length);
            self.waiting.insert(seq, place);
        }
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<Place> {
        let place = self.waiting.remove(&seq)?;
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.messages -= 1;
            segment.live_bytes -= place.record_len();
        }
        self.bytes -= u64::from(place.length);
        Some(place)
    }

    /// Work that follows the messages that wait, not the width of the range.
    pub(super) fn remove_range(&mut self, first: u64, last: u64) {
        while let Some((&seq, _)) = self.waiting.range(first..=last).next() {
            self.remove(seq);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Place)> {
        self.waiting.iter().map(|(seq, place)| (*seq, *place))
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(seq, _)| *seq)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
