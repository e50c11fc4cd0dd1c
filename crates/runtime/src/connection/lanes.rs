//! Outbound lanes: whole frames in order; which lane goes first is decided when a write is filled.
//!
//! One append buffer for everything would be simpler, and would put an acknowledgment behind
//! every byte that was queued before it. So frames wait in lanes, and only the frames of the
//! write that is about to happen leave them.
//!
//! What runs the connection goes first. The lanes of messages share what is left by bytes, by the
//! weights of their priorities: each counts what it has had for its weight. Who has had the least
//! goes next, in rounds: within a round the most urgent lane takes all of its share, then the next
//! one. A lane that was empty cannot save up: it begins with the round that the others are in
//! (start-time fair queueing; Goyal, Vin and Cheng, SIGCOMM 1996). They share credit in the same
//! turns, one for each message.
//!
//! A service has thousands of connections, most of which use two of the lanes. So the others are not
//! there before their first frame, and none is looked at while it is empty.

use super::lane::{Allowance, First, Lane, Moved};
use super::lane_kind::{LaneKind, LaneSet, Place};

/// The most bytes of one write, unless a single frame is larger.
///
/// A control frame waits at most for one write, so this bounds its delay; measurements show
/// that larger writes save nothing more.
pub(crate) const MAX_WRITE: usize = 64 * 1024;

/// What a lane may have in a round, by its [cost](LaneKind::byte_cost): 64 KiB of the most urgent
/// one, which is a write, and 4 KiB of bulk. A frame that begins in a round is sent whole, and paid
/// for in the next ones.
const ROUND: u64 = 64 * 1024;

/// Frames that left one lane one after the other for a write, with nothing in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Departure {
    /// The place of the first of them.
    pub(crate) place: Place,
    /// How many they are.
    pub(crate) frames: u64,
    /// The number of the first among all frames of the connection, from 1 on.
    pub(crate) number: u64,
}

/// How many more messages the peer will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendCredit {
    /// The peer is not known yet: only the preamble may go out.
    Held,
    /// The peer did not negotiate message credit.
    Unlimited,
    /// The peer will take this many more.
    Messages(u32),
}

/// The lanes of one connection and the credit that its lanes of messages share.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Those that every connection uses.
    control: Lane,
    normal: Lane,
    /// The others, from the first frame of one of them on.
    others: Option<Box<[Lane; LaneKind::COUNT]>>,
    /// Invariant: those that hold frames.
    waiting: LaneSet,
    /// Those of which frames are in the write that was filled last.
    leaving: LaneSet,
    /// Those that have had something since all of them were empty.
    served: LaneSet,
    /// Invariant: the bytes in all lanes.
    bytes: usize,
    /// Frames that have left, of all lanes: the number of the last one.
    left: u64,
    credit: SendCredit,
    /// What the last batch used beyond what was left of the credit. Grants make up for it first.
    owed: u32,
    /// Messages that went out without credit. A service that answers a hello late counts them.
    uncredited: u32,
    /// What the lane whose turn was last had had before it: where lanes that were empty begin.
    begun: u64,
    /// Control left no room for messages in the write before: one of them goes into the next.
    overdue: bool,
    /// How many frames of the control lane go out in the clear, as long as some of them wait. A
    /// write holds nothing behind them.
    clear: Option<u64>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            control: Lane::default(),
            normal: Lane::default(),
            others: None,
            waiting: LaneSet::default(),
            leaving: LaneSet::default(),
            served: LaneSet::default(),
            bytes: 0,
            left: 0,
            credit: SendCredit::Held,
            owed: 0,
            uncredited: 0,
            begun: 0,
            overdue: false,
            clear: None,
        }
    }

    /// The control frame that was pushed last is the last one in the clear.
    pub(crate) fn end_clear(&mut self) {
        self.clear = Some(self.next_place(LaneKind::Control).ordinal);
    }

    /// Whether the last frame in the clear has left meanwhile; says so once.
    pub(crate) fn take_boundary_left(&mut self) -> bool {
        let left = self.clear_frames();
        self.clear.take_if(|_| left == Some(0)).is_some()
    }

    /// How many frames in the clear wait, if what is behind them is sealed.
    fn clear_frames(&self) -> Option<u64> {
        let clear = self.clear?;
        let left = self.lane(LaneKind::Control).map_or(0, Lane::left);
        Some(clear.saturating_sub(left))
    }

    pub(crate) fn push(&mut self, lane: LaneKind, frame: &[u8]) {
        self.push_parts(lane, &[frame]);
    }

    /// Takes a frame that uses the credit of this many messages.
    pub(crate) fn push_batch(&mut self, frame: &[u8], messages: usize) {
        self.take_in(LaneKind::Normal, &[frame], messages);
    }

    /// Takes one frame, in parts.
    pub(crate) fn push_parts(&mut self, lane: LaneKind, parts: &[&[u8]]) {
        self.take_in(lane, parts, 1);
    }

    fn take_in(&mut self, kind: LaneKind, parts: &[&[u8]], messages: usize) {
        let begins_at = self.begun / ROUND * ROUND;
        let lane = match kind {
            LaneKind::Control => &mut self.control,
            LaneKind::Normal => &mut self.normal,
            other => &mut self.others.get_or_insert_default()[other.index()],
        };
        if !self.waiting.contains(kind) {
            self.waiting.insert(kind);
            lane.had = lane.had.max(begins_at);
        }
        self.bytes += lane.push(parts, messages);
    }

    /// The place that the next frame of a lane gets.
    pub(crate) fn next_place(&self, lane: LaneKind) -> Place {
        Place {
            lane,
            ordinal: self.lane(lane).map_or(0, Lane::next),
        }
    }

    /// Whether the frame of this place has left for a write.
    pub(crate) fn has_left(&self, place: Place) -> bool {
        self.lane(place.lane)
            .is_some_and(|lane| place.ordinal < lane.left())
    }

    /// Whether the frame of this place is known to have been handed to the operating system.
    pub(crate) fn is_written(&self, place: Place) -> bool {
        self.lane(place.lane)
            .is_some_and(|lane| place.ordinal < lane.written())
    }

    /// The write that was filled last is complete.
    pub(crate) fn finish_write(&mut self) {
        for kind in std::mem::take(&mut self.leaving).iter() {
            if let Some(lane) = self.lane_mut(kind) {
                lane.finish_write();
            }
        }
    }

    /// Empties the lanes; what was in them has not left.
    pub(crate) fn clear(&mut self) {
        self.empty(self.waiting);
        self.trim();
    }

    /// Forgets answers and the like that nobody will take.
    pub(crate) fn discard_answers(&mut self) {
        self.empty(self.waiting.difference(LaneSet::MESSAGES));
    }

    fn empty(&mut self, lanes: LaneSet) {
        for kind in lanes.iter() {
            self.bytes -= self.queued_bytes(kind);
            self.waiting.remove(kind);
            if let Some(lane) = self.lane_mut(kind) {
                lane.clear();
            }
        }
    }

    pub(crate) fn queued_bytes(&self, lane: LaneKind) -> usize {
        self.waiting_lane(lane).map_or(0, Lane::len_bytes)
    }

    pub(crate) fn queued_messages(&self, lane: LaneKind) -> usize {
        self.waiting_lane(lane).map_or(0, Lane::messages)
    }

    /// Bytes in all lanes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// Messages of senders that wait.
    pub(crate) fn waiting_messages(&self) -> usize {
        let waiting = self.waiting.intersection(LaneSet::MESSAGES);
        waiting.iter().map(|lane| self.queued_messages(lane)).sum()
    }

    /// How many frames have left, of all lanes: the number of the last one.
    pub(crate) fn frames_left(&self) -> u64 {
        self.left
    }

    /// Bytes of messages that have left other lanes than this one.
    pub(crate) fn left_elsewhere(&self, lane: LaneKind) -> u64 {
        LaneSet::MESSAGES
            .iter()
            .filter(|other| *other != lane)
            .filter_map(|other| self.lane(other))
            .map(Lane::left_bytes)
            .sum()
    }

    pub(crate) fn set_credit(&mut self, credit: SendCredit) {
        self.credit = match credit {
            SendCredit::Messages(granted) => {
                SendCredit::Messages(granted.saturating_sub(self.uncredited))
            }
            SendCredit::Held | SendCredit::Unlimited => credit,
        };
    }

    /// Adds what the peer granted; without negotiated credit a grant means nothing.
    pub(crate) fn grant(&mut self, messages: u32) {
        if let SendCredit::Messages(left) = &mut self.credit {
            let made_up = self.owed.min(messages);
            self.owed -= made_up;
            *left = left.saturating_add(messages - made_up);
        }
    }

    /// Fills `out` (normally empty) with the next write: control first, then what credit allows.
    /// Tells `departed` what left, in its order. Returns how many messages of senders are in it.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, mut departed: impl FnMut(Departure)) -> usize {
        if self.waiting.contains(LaneKind::Control) {
            let clear = self.clear_frames();
            let allowance = Allowance {
                room: MAX_WRITE.saturating_sub(out.len()),
                messages: clear.map_or(usize::MAX, |clear| {
                    usize::try_from(clear).unwrap_or(usize::MAX)
                }),
                bytes: usize::MAX,
                first: if out.is_empty() {
                    First::Whatever
                } else {
                    First::Fits
                },
            };
            self.drain(LaneKind::Control, out, allowance, &mut departed);
        }
        if self.clear.is_some() {
            return 0;
        }
        let mut messages = 0;
        let mut first = if out.is_empty() || self.overdue {
            First::Whatever
        } else {
            First::Fits
        };
        while let Some(kind) = self.whose_turn() {
            let allowance = Allowance {
                room: MAX_WRITE.saturating_sub(out.len()),
                messages: self.messages_allowed(kind),
                bytes: self.bytes_due(kind),
                first,
            };
            self.begun = self.had(kind);
            let moved = self.drain(kind, out, allowance, &mut departed);
            if moved.frames == 0 {
                // It is the turn of a frame that does not fit: nobody takes that turn away.
                self.overdue = messages == 0;
                return messages;
            }
            first = First::Fits;
            if kind.holds_messages() {
                self.spend(moved.messages);
                messages += moved.messages;
            }
        }
        self.overdue = false;
        if self.waiting.is_empty() {
            self.begin_anew();
        }
        messages
    }

    fn drain(
        &mut self,
        kind: LaneKind,
        out: &mut Vec<u8>,
        allowance: Allowance,
        departed: &mut impl FnMut(Departure),
    ) -> Moved {
        let Some(lane) = self.lane_mut(kind) else {
            return Moved::default();
        };
        let place = Place {
            lane: kind,
            ordinal: lane.left(),
        };
        let moved = lane.drain_into(out, allowance);
        lane.had += moved.bytes as u64 * kind.byte_cost();
        let is_empty = lane.is_empty();
        if moved.frames > 0 {
            if is_empty {
                self.waiting.remove(kind);
            }
            self.leaving.insert(kind);
            self.served.insert(kind);
            self.bytes -= moved.bytes;
            let frames = moved.frames as u64;
            departed(Departure {
                place,
                frames,
                number: self.left + 1,
            });
            self.left += frames;
        }
        moved
    }

    /// Those that share, and may send something.
    fn sendable(&self) -> LaneSet {
        let sharing = self.waiting.intersection(LaneSet::SHARING);
        match self.credit {
            SendCredit::Held | SendCredit::Messages(0) => sharing.difference(LaneSet::MESSAGES),
            SendCredit::Unlimited | SendCredit::Messages(_) => sharing,
        }
    }

    /// The lane that is in the earliest round of those that may send something; the most urgent one of
    /// several.
    fn whose_turn(&self) -> Option<LaneKind> {
        self.sendable().iter().min_by_key(|kind| self.round(*kind))
    }

    /// What a lane has had, by its cost.
    fn had(&self, kind: LaneKind) -> u64 {
        self.lane(kind).map_or(0, |lane| lane.had)
    }

    fn round(&self, kind: LaneKind) -> u64 {
        self.had(kind) / ROUND
    }

    /// Bytes that a lane may send until it is another one's turn.
    fn bytes_due(&self, kind: LaneKind) -> usize {
        let mut others = self.sendable();
        others.remove(kind);
        // A more urgent one has its turn as soon as both are in the same round.
        let rounds = others
            .iter()
            .map(|other| self.round(other) + u64::from(other.index() > kind.index()));
        rounds.min().map_or(usize::MAX, |round| {
            let due = (round * ROUND).saturating_sub(self.had(kind));
            let bytes = due.div_ceil(kind.byte_cost());
            usize::try_from(bytes).unwrap_or(usize::MAX)
        })
    }

    fn messages_allowed(&self, kind: LaneKind) -> usize {
        match self.credit {
            _ if !kind.holds_messages() => usize::MAX,
            SendCredit::Unlimited => usize::MAX,
            SendCredit::Held => 0,
            SendCredit::Messages(left) => usize::try_from(left).unwrap_or(usize::MAX),
        }
    }

    fn spend(&mut self, messages: usize) {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        match &mut self.credit {
            SendCredit::Held => {}
            SendCredit::Unlimited => self.uncredited = self.uncredited.saturating_add(messages),
            SendCredit::Messages(left) => {
                self.owed = self.owed.saturating_add(messages.saturating_sub(*left));
                *left = left.saturating_sub(messages);
            }
        }
    }

    /// Nobody waits: who has had how much does not matter any more.
    fn begin_anew(&mut self) {
        self.begun = 0;
        for kind in std::mem::take(&mut self.served).iter() {
            if let Some(lane) = self.lane_mut(kind) {
                lane.had = 0;
            }
        }
    }

    /// Gives back the memory of empty lanes.
    pub(crate) fn trim(&mut self) {
        let others = self.others.iter_mut().flat_map(|others| others.iter_mut());
        for lane in [&mut self.control, &mut self.normal]
            .into_iter()
            .chain(others)
        {
            lane.trim();
        }
    }

    /// Whether every frame has left the lanes.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn lane(&self, kind: LaneKind) -> Option<&Lane> {
        match kind {
            LaneKind::Control => Some(&self.control),
            LaneKind::Normal => Some(&self.normal),
            other => Some(&self.others.as_ref()?[other.index()]),
        }
    }

    fn lane_mut(&mut self, kind: LaneKind) -> Option<&mut Lane> {
        match kind {
            LaneKind::Control => Some(&mut self.control),
            LaneKind::Normal => Some(&mut self.normal),
            other => Some(&mut self.others.as_mut()?[other.index()]),
        }
    }

    /// A lane, if it holds frames.
    fn waiting_lane(&self, kind: LaneKind) -> Option<&Lane> {
        self.lane(kind).filter(|_| self.waiting.contains(kind))
    }
}

#[cfg(test)]
// With its path, because the tests on shuttle include this file by its own.
#[path = "lanes/tests.rs"]
mod tests;
