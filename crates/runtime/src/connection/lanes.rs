//! Outbound lanes: whole frames in order; which lane goes first is decided when a write is filled.
//!
//! One append buffer for everything would be simpler, and would put an acknowledgment behind
//! every byte that was queued before it. So frames wait in lanes, and only the frames of the
//! write that is about to happen leave them.

use std::collections::VecDeque;

/// The most bytes of one write, unless a single frame is larger.
///
/// A control frame waits at most for one write, so this bounds its delay; measurements show
/// that larger writes save nothing more.
pub(crate) const MAX_WRITE: usize = 64 * 1024;

/// Which lane a frame waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneKind {
    /// Acknowledgments, replies, heartbeats, hello, credit and goodbye: exempt from credit.
    Control,
    /// Everything else.
    Normal,
}

/// A frame's place in the order of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    lane: LaneKind,
    ordinal: u64,
}

/// A frame that holds more than one message.
#[derive(Debug, Clone, Copy)]
struct Batched {
    ordinal: u64,
    messages: usize,
}

/// Whole frames, back to back, with their lengths.
#[derive(Debug, Default)]
struct Lane {
    /// Invariant: `bytes[start..]` is the concatenation of the frames measured by `lengths`.
    bytes: Vec<u8>,
    start: usize,
    lengths: VecDeque<usize>,
    /// Invariant: those of the frames that hold more than one message, in order.
    batches: VecDeque<Batched>,
    /// Invariant: the messages of all the frames.
    messages: usize,
    /// Frames that have left for a write, ever.
    left: u64,
    /// Those of them whose write is complete.
    written: u64,
}

impl Lane {
    fn push(&mut self, frame: &[u8], messages: usize) {
        if messages != 1 {
            let ordinal = self.next();
            self.batches.push_back(Batched { ordinal, messages });
        }
        self.bytes.extend_from_slice(frame);
        self.lengths.push_back(frame.len());
        self.messages += messages;
    }

    /// Takes the next frame off the books; returns how many messages it holds.
    fn leave(&mut self) -> usize {
        let next = self.left;
        self.left += 1;
        self.lengths.pop_front();
        let batch = self.batches.pop_front_if(|batch| batch.ordinal == next);
        let messages = batch.map_or(1, |batch| batch.messages);
        self.messages -= messages;
        messages
    }

    /// The place of the next frame.
    fn next(&self) -> u64 {
        self.left + self.lengths.len() as u64
    }

    fn len_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Moves frames to `out` while they fit and any `budget` of messages is left; returns how many
    /// messages went. A batch needs no more than one of it, or it might never go: whoever grants
    /// does so as messages are handled, and may never grant as many as it has.
    fn drain_into(&mut self, out: &mut Vec<u8>, budget: usize) -> usize {
        let room = MAX_WRITE.saturating_sub(out.len());
        if self.len_bytes() <= room && self.messages <= budget {
            let moved = self.messages;
            self.left += self.lengths.len() as u64;
            out.extend_from_slice(&self.bytes[self.start..]);
            self.clear();
            return moved;
        }
        let (mut moved, mut taken) = (0, 0);
        while moved < budget {
            let Some(&length) = self.lengths.front() else {
                break;
            };
            let fits = taken + length <= room;
            let alone = out.is_empty() && moved == 0;
            if !fits && !alone {
                break;
            }
            taken += length;
            moved += self.leave();
        }
        out.extend_from_slice(&self.bytes[self.start..self.start + taken]);
        self.start += taken;
        if self.lengths.is_empty() {
            self.clear();
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        moved
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
        self.lengths.clear();
        self.batches.clear();
        self.messages = 0;
    }

    /// Gives back what a burst made it allocate.
    fn trim(&mut self) {
        if self.lengths.is_empty() {
            *self = Self {
                left: self.left,
                written: self.written,
                ..Self::default()
            };
        }
    }
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

/// The lanes of one connection and the credit that its normal lane may spend.
#[derive(Debug)]
pub(crate) struct Lanes {
    control: Lane,
    normal: Lane,
    credit: SendCredit,
    /// What the last batch used beyond what was left of the credit. Grants make up for it first.
    owed: u32,
    /// Messages that went out without credit. A service that answers a hello late counts them.
    uncredited: u32,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            control: Lane::default(),
            normal: Lane::default(),
            credit: SendCredit::Held,
            owed: 0,
            uncredited: 0,
        }
    }

    pub(crate) fn push(&mut self, lane: LaneKind, frame: &[u8]) {
        self.lane_mut(lane).push(frame, 1);
    }

    /// A frame that uses the credit of this many messages.
    pub(crate) fn push_batch(&mut self, frame: &[u8], messages: usize) {
        self.normal.push(frame, messages);
    }

    /// The place that the next frame of a lane gets.
    pub(crate) fn next_place(&self, lane: LaneKind) -> Place {
        Place {
            lane,
            ordinal: self.lane(lane).next(),
        }
    }

    /// Whether the frame of this place has left for a write.
    pub(crate) fn has_left(&self, place: Place) -> bool {
        place.ordinal < self.lane(place.lane).left
    }

    /// Whether the frame of this place is known to have been handed to the operating system.
    pub(crate) fn is_written(&self, place: Place) -> bool {
        place.ordinal < self.lane(place.lane).written
    }

    /// The write that was filled last is complete.
    pub(crate) fn finish_write(&mut self) {
        for lane in [&mut self.control, &mut self.normal] {
            lane.written = lane.left;
        }
    }

    /// Empties the lanes; what was in them has not left.
    pub(crate) fn clear(&mut self) {
        for lane in [&mut self.control, &mut self.normal] {
            lane.clear();
            lane.trim();
        }
    }

    pub(crate) fn queued_bytes(&self, lane: LaneKind) -> usize {
        self.lane(lane).len_bytes()
    }

    pub(crate) fn queued_messages(&self, lane: LaneKind) -> usize {
        self.lane(lane).messages
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
    /// Returns how many messages of the normal lane are in it.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>) -> usize {
        self.control.drain_into(out, usize::MAX);
        match &mut self.credit {
            SendCredit::Held => 0,
            SendCredit::Unlimited => {
                let sent = self.normal.drain_into(out, usize::MAX);
                let counted = u32::try_from(sent).unwrap_or(u32::MAX);
                self.uncredited = self.uncredited.saturating_add(counted);
                sent
            }
            SendCredit::Messages(left) => {
                let budget = usize::try_from(*left).unwrap_or(usize::MAX);
                let sent = self.normal.drain_into(out, budget);
                let used = u32::try_from(sent).unwrap_or(u32::MAX);
                self.owed = self.owed.saturating_add(used.saturating_sub(*left));
                *left = left.saturating_sub(used);
                sent
            }
        }
    }

    /// Forgets answers and the like that nobody will take.
    pub(crate) fn discard_control(&mut self) {
        self.control.clear();
    }

    /// Gives back the memory of empty lanes.
    pub(crate) fn trim(&mut self) {
        self.control.trim();
        self.normal.trim();
    }

    /// Whether every frame has left the lanes.
    pub(crate) fn is_empty(&self) -> bool {
        self.control.lengths.is_empty() && self.normal.lengths.is_empty()
    }

    fn lane(&self, lane: LaneKind) -> &Lane {
        match lane {
            LaneKind::Control => &self.control,
            LaneKind::Normal => &self.normal,
        }
    }

    fn lane_mut(&mut self, lane: LaneKind) -> &mut Lane {
        match lane {
            LaneKind::Control => &mut self.control,
            LaneKind::Normal => &mut self.normal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(lanes: &mut Lanes) -> Vec<u8> {
        let mut out = Vec::new();
        lanes.fill(&mut out);
        out
    }

    #[test]
    fn control_overtakes_what_was_queued_before_it() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        lanes.push(LaneKind::Normal, b"first");
        lanes.push(LaneKind::Control, b"ack");
        assert_eq!(filled(&mut lanes), b"ackfirst");
        assert!(lanes.is_empty());
    }

    #[test]
    fn a_write_holds_whole_frames_up_to_its_limit() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        let frame = vec![7; MAX_WRITE / 3];
        for _ in 0..4 {
            lanes.push(LaneKind::Normal, &frame);
        }
        assert_eq!(filled(&mut lanes).len(), 3 * frame.len());
        assert_eq!(filled(&mut lanes).len(), frame.len());
        assert!(filled(&mut lanes).is_empty());
    }

    #[test]
    fn a_frame_over_the_write_limit_goes_alone() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        lanes.push(LaneKind::Normal, &vec![1; MAX_WRITE * 2]);
        lanes.push(LaneKind::Normal, b"next");
        assert_eq!(filled(&mut lanes).len(), MAX_WRITE * 2);
        assert_eq!(filled(&mut lanes), b"next");
    }

    #[test]
    fn credit_stops_the_normal_lane_and_never_control() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Messages(1));
        lanes.push(LaneKind::Normal, b"a");
        lanes.push(LaneKind::Normal, b"b");
        assert_eq!(filled(&mut lanes), b"a");
        lanes.push(LaneKind::Control, b"c");
        assert_eq!(filled(&mut lanes), b"c");
        lanes.grant(5);
        assert_eq!(filled(&mut lanes), b"b");
    }

    #[test]
    fn a_batch_uses_the_credit_of_its_messages_and_owes_what_is_not_there() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Messages(2));
        lanes.push(LaneKind::Normal, b"a");
        lanes.push_batch(b"BATCH", 5);
        lanes.push(LaneKind::Normal, b"b");
        assert_eq!(lanes.queued_messages(LaneKind::Normal), 7);
        let mut out = Vec::new();
        assert_eq!(lanes.fill(&mut out), 6);
        assert_eq!(out, b"aBATCH");
        lanes.grant(4);
        assert_eq!(filled(&mut lanes), b"", "that made up for the batch");
        lanes.grant(1);
        assert_eq!(filled(&mut lanes), b"b");
        lanes.push_batch(b"NEXT", 3);
        assert_eq!(filled(&mut lanes), b"", "a batch needs one to go");
        lanes.grant(1);
        assert_eq!(filled(&mut lanes), b"NEXT");
        assert_eq!(lanes.queued_messages(LaneKind::Normal), 0);
    }

    #[test]
    fn messages_are_counted_whether_frames_go_together_or_one_by_one() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        let large = vec![7; MAX_WRITE];
        let mut out = Vec::new();
        for frame in [&large[..], b"small"] {
            lanes.push_batch(frame, 3);
            lanes.push(LaneKind::Normal, frame);
        }
        let mut sent = Vec::new();
        while !lanes.is_empty() {
            out.clear();
            sent.push(lanes.fill(&mut out));
        }
        assert_eq!(sent, [3, 1, 4]);
    }

    #[test]
    fn nothing_but_the_preamble_leaves_before_the_peer_is_known() {
        let mut lanes = Lanes::new();
        lanes.push(LaneKind::Control, b"hello");
        lanes.push(LaneKind::Normal, b"x");
        assert_eq!(filled(&mut lanes), b"hello");
        lanes.grant(9);
        assert!(
            filled(&mut lanes).is_empty(),
            "a grant before the hello means nothing"
        );
    }

    #[test]
    fn a_place_has_left_once_its_frame_is_in_a_write() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Messages(2));
        let places = [b"a", b"b", b"c"].map(|frame| {
            let place = lanes.next_place(LaneKind::Normal);
            lanes.push(LaneKind::Normal, frame);
            place
        });
        let left = |lanes: &Lanes| places.map(|place| lanes.has_left(place));
        let written = |lanes: &Lanes| places.map(|place| lanes.is_written(place));
        assert_eq!(left(&lanes), [false, false, false]);
        filled(&mut lanes);
        assert_eq!(left(&lanes), [true, true, false]);
        assert_eq!(written(&lanes), [false, false, false]);
        lanes.finish_write();
        assert_eq!(written(&lanes), [true, true, false]);
        lanes.clear();
        lanes.trim();
        assert_eq!(left(&lanes), [true, true, false]);
        assert_eq!(written(&lanes), [true, true, false]);
    }

    #[test]
    fn an_idle_lane_keeps_no_memory() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        for _ in 0..1000 {
            lanes.push(LaneKind::Normal, &[0; 1000]);
        }
        while !lanes.is_empty() {
            filled(&mut lanes);
        }
        lanes.trim();
        assert_eq!(lanes.normal.bytes.capacity(), 0);
    }
}
