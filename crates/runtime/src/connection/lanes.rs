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

use migration_ipc_protocol::Priority;

use super::lane::{Allowance, First, Lane, Moved};

/// The most bytes of one write, unless a single frame is larger.
///
/// A control frame waits at most for one write, so this bounds its delay; measurements show
/// that larger writes save nothing more.
pub(crate) const MAX_WRITE: usize = 64 * 1024;

/// The shares of the lanes while all of them have something to send: a large step, because who
/// asks for another priority means it, and small enough for bulk to get its twentieth part.
const HIGH_WEIGHT: u64 = 16;
const NORMAL_WEIGHT: u64 = 4;
const BULK_WEIGHT: u64 = 1;

/// What a byte of a lane of weight 1 costs; every weight divides it.
const COST_SCALE: u64 = 16;

/// What a lane may have in a round, in that cost: 64 KiB of the most urgent one, which is a write,
/// and 4 KiB of bulk. A frame that begins in a round is sent whole, and paid for in the next ones.
const ROUND: u64 = 64 * 1024;

const _: () = assert!(
    COST_SCALE.is_multiple_of(HIGH_WEIGHT)
        && COST_SCALE.is_multiple_of(NORMAL_WEIGHT)
        && COST_SCALE.is_multiple_of(BULK_WEIGHT)
);

/// Which lane a frame waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneKind {
    /// Acknowledgments, replies, heartbeats, hello, credit and goodbye: exempt from credit, and
    /// ahead of everything else.
    Control,
    /// Messages, by their priority.
    High,
    Normal,
    /// Items of streaming replies, and the answers behind them: exempt from credit, since their
    /// reader has granted them.
    Items,
    Bulk,
    /// Pieces of bodies that are sent in chunks: exempt from credit, since their receiver says how
    /// far they may go.
    Pieces,
}

/// When a lane has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Before those that share, with all that it has.
    First,
    /// In turns with the others that share; by this weight.
    Shares(u64),
}

/// Whether each frame of a lane uses up credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spends {
    Credit,
    Nothing,
}

impl LaneKind {
    pub(crate) const COUNT: usize = 6;

    /// In the order in which they are looked at.
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Control,
        Self::High,
        Self::Normal,
        Self::Items,
        Self::Bulk,
        Self::Pieces,
    ];

    /// The lane of messages of this priority.
    pub(crate) const fn of(priority: Priority) -> Self {
        match priority {
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Bulk => Self::Bulk,
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    const fn turn(self) -> Turn {
        match self {
            Self::Control => Turn::First,
            Self::High => Turn::Shares(HIGH_WEIGHT),
            Self::Normal | Self::Items => Turn::Shares(NORMAL_WEIGHT),
            Self::Bulk | Self::Pieces => Turn::Shares(BULK_WEIGHT),
        }
    }

    const fn spends(self) -> Spends {
        match self {
            Self::Control | Self::Items | Self::Pieces => Spends::Nothing,
            Self::High | Self::Normal | Self::Bulk => Spends::Credit,
        }
    }

    /// Whether what waits in it are messages of senders, which may wait for credit, and not what the
    /// connection itself has to say.
    pub(crate) const fn holds_messages(self) -> bool {
        matches!(self.spends(), Spends::Credit)
    }

    /// The lanes of messages.
    pub(crate) fn of_messages() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|lane| lane.holds_messages())
    }
}

/// A frame's place in the order of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) lane: LaneKind,
    pub(crate) ordinal: u64,
}

impl Place {
    /// That of a frame which is in no lane yet.
    pub(crate) const NOWHERE: Self = Self {
        lane: LaneKind::Control,
        ordinal: u64::MAX,
    };
}

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
    lanes: [Lane; LaneKind::COUNT],
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
            lanes: Default::default(),
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
        self.clear = Some(self.lane(LaneKind::Control).next());
    }

    /// Whether the last frame in the clear has left meanwhile; says so once.
    pub(crate) fn take_boundary_left(&mut self) -> bool {
        let left = self.lane(LaneKind::Control).left();
        self.clear.take_if(|clear| *clear <= left).is_some()
    }

    pub(crate) fn push(&mut self, lane: LaneKind, frame: &[u8]) {
        self.push_parts(lane, &[frame]);
    }

    /// Takes a frame that uses the credit of this many messages.
    pub(crate) fn push_batch(&mut self, frame: &[u8], messages: usize) {
        self.lane_to_fill(LaneKind::Normal)
            .push_batch(&[frame], messages);
    }

    /// Takes one frame, in parts.
    pub(crate) fn push_parts(&mut self, lane: LaneKind, parts: &[&[u8]]) {
        self.lane_to_fill(lane).push(parts);
    }

    fn lane_to_fill(&mut self, lane: LaneKind) -> &mut Lane {
        let begun = self.begun / ROUND * ROUND;
        let lane = &mut self.lanes[lane.index()];
        if lane.is_empty() {
            lane.had = lane.had.max(begun);
        }
        lane
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
        place.ordinal < self.lane(place.lane).left()
    }

    /// Whether the frame of this place is known to have been handed to the operating system.
    pub(crate) fn is_written(&self, place: Place) -> bool {
        place.ordinal < self.lane(place.lane).written()
    }

    /// The write that was filled last is complete.
    pub(crate) fn finish_write(&mut self) {
        for lane in &mut self.lanes {
            lane.finish_write();
        }
    }

    /// Empties the lanes; what was in them has not left.
    pub(crate) fn clear(&mut self) {
        for lane in &mut self.lanes {
            lane.clear();
            lane.trim();
        }
    }

    pub(crate) fn queued_bytes(&self, lane: LaneKind) -> usize {
        self.lane(lane).len_bytes()
    }

    pub(crate) fn queued_messages(&self, lane: LaneKind) -> usize {
        self.lane(lane).messages()
    }

    /// Bytes in all lanes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.lanes.iter().map(Lane::len_bytes).sum()
    }

    /// Messages of senders that wait.
    pub(crate) fn waiting_messages(&self) -> usize {
        LaneKind::of_messages()
            .map(|lane| self.queued_messages(lane))
            .sum()
    }

    /// How many frames have left, of all lanes: the number of the last one.
    pub(crate) fn frames_left(&self) -> u64 {
        self.lanes.iter().map(Lane::left).sum()
    }

    /// Bytes of messages that have left other lanes than this one.
    pub(crate) fn left_elsewhere(&self, lane: LaneKind) -> u64 {
        LaneKind::of_messages()
            .filter(|other| *other != lane)
            .map(|other| self.lane(other).left_bytes())
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
        let mut next = self.frames_left() + 1;
        for kind in LaneKind::ALL {
            let first = match kind.turn() {
                Turn::First if out.is_empty() => First::Whatever,
                Turn::First => First::Fits,
                Turn::Shares(_) => continue,
            };
            let messages = match self.clear {
                Some(clear) => {
                    let left = clear.saturating_sub(self.lane(kind).left());
                    usize::try_from(left).unwrap_or(usize::MAX)
                }
                None => self.messages_allowed(kind),
            };
            let allowance = Allowance {
                room: MAX_WRITE.saturating_sub(out.len()),
                messages,
                bytes: usize::MAX,
                first,
            };
            self.drain(kind, out, allowance, &mut next, &mut departed);
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
        while let Some((kind, weight)) = self.whose_turn() {
            let allowance = Allowance {
                room: MAX_WRITE.saturating_sub(out.len()),
                messages: self.messages_allowed(kind),
                bytes: self.bytes_due(kind, weight),
                first,
            };
            self.begun = self.lane(kind).had;
            let moved = self.drain(kind, out, allowance, &mut next, &mut departed);
            if moved.frames == 0 {
                // It is the turn of a frame that does not fit: nobody takes that turn away.
                self.overdue = messages == 0;
                return messages;
            }
            first = First::Fits;
            self.lanes[kind.index()].had += moved.bytes as u64 * (COST_SCALE / weight);
            self.spend(kind, moved.messages);
            if kind.holds_messages() {
                messages += moved.messages;
            }
        }
        self.overdue = false;
        if LaneKind::ALL.iter().all(|kind| self.lane(*kind).is_empty()) {
            self.begin_anew();
        }
        messages
    }

    fn drain(
        &mut self,
        kind: LaneKind,
        out: &mut Vec<u8>,
        allowance: Allowance,
        next: &mut u64,
        departed: &mut impl FnMut(Departure),
    ) -> Moved {
        let lane = &mut self.lanes[kind.index()];
        let place = Place {
            lane: kind,
            ordinal: lane.left(),
        };
        let moved = lane.drain_into(out, allowance);
        if moved.frames > 0 {
            let frames = moved.frames as u64;
            departed(Departure {
                place,
                frames,
                number: *next,
            });
            *next += frames;
        }
        moved
    }

    /// The lane that is in the earliest round of those that may send something; the most urgent one of
    /// several.
    fn whose_turn(&self) -> Option<(LaneKind, u64)> {
        let sharing = LaneKind::ALL
            .into_iter()
            .filter_map(|kind| match kind.turn() {
                Turn::Shares(weight) => Some((kind, weight)),
                Turn::First => None,
            });
        sharing
            .filter(|(kind, _)| !self.lane(*kind).is_empty() && self.messages_allowed(*kind) > 0)
            .min_by_key(|(kind, _)| self.round(*kind))
    }

    fn round(&self, kind: LaneKind) -> u64 {
        self.lane(kind).had / ROUND
    }

    /// Bytes that a lane may send until it is another one's turn.
    fn bytes_due(&self, kind: LaneKind, weight: u64) -> usize {
        let others = LaneKind::ALL.into_iter().filter(|other| {
            *other != kind
                && matches!(other.turn(), Turn::Shares(_))
                && !self.lane(*other).is_empty()
                && self.messages_allowed(*other) > 0
        });
        // A more urgent one has its turn as soon as both are in the same round.
        let rounds =
            others.map(|other| self.round(other) + u64::from(other.index() > kind.index()));
        rounds.min().map_or(usize::MAX, |round| {
            let due = (round * ROUND).saturating_sub(self.lane(kind).had);
            let bytes = due.div_ceil(COST_SCALE / weight);
            usize::try_from(bytes).unwrap_or(usize::MAX)
        })
    }

    fn messages_allowed(&self, kind: LaneKind) -> usize {
        match (kind.spends(), self.credit) {
            (Spends::Nothing, _) | (Spends::Credit, SendCredit::Unlimited) => usize::MAX,
            (Spends::Credit, SendCredit::Held) => 0,
            (Spends::Credit, SendCredit::Messages(left)) => {
                usize::try_from(left).unwrap_or(usize::MAX)
            }
        }
    }

    fn spend(&mut self, kind: LaneKind, messages: usize) {
        if kind.spends() == Spends::Nothing {
            return;
        }
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
        for lane in &mut self.lanes {
            lane.had = 0;
        }
    }

    /// Forgets answers and the like that nobody will take.
    pub(crate) fn discard_answers(&mut self) {
        for kind in LaneKind::ALL {
            if !kind.holds_messages() {
                self.lanes[kind.index()].clear();
            }
        }
    }

    /// Gives back the memory of empty lanes.
    pub(crate) fn trim(&mut self) {
        for lane in &mut self.lanes {
            lane.trim();
        }
    }

    /// Whether every frame has left the lanes.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.iter().all(Lane::is_empty)
    }

    fn lane(&self, lane: LaneKind) -> &Lane {
        &self.lanes[lane.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(lanes: &mut Lanes) -> Vec<u8> {
        let mut out = Vec::new();
        lanes.fill(&mut out, |_| {});
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
        assert_eq!(lanes.fill(&mut out, |_| {}), 6);
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
            sent.push(lanes.fill(&mut out, |_| {}));
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
    fn items_need_no_credit_and_take_turns_with_messages() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Messages(1));
        lanes.push(LaneKind::Normal, &[b'm'; MAX_WRITE]);
        for _ in 0..3 {
            lanes.push(LaneKind::Items, &[b'i'; MAX_WRITE]);
        }
        lanes.push(LaneKind::Control, b"c");
        assert_eq!(filled(&mut lanes), b"c", "control goes before items");
        let mut firsts = String::new();
        while !lanes.is_empty() {
            firsts.push(char::from(filled(&mut lanes)[0]));
        }
        assert_eq!(firsts, "miii");
        lanes.push(LaneKind::Normal, b"no credit left");
        lanes.push(LaneKind::Items, b"item");
        assert_eq!(filled(&mut lanes), b"item");
    }

    #[test]
    fn pieces_need_no_credit_and_go_behind_everything_else() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Messages(1));
        lanes.push_parts(LaneKind::Pieces, &[b"p", b"1"]);
        lanes.push_parts(LaneKind::Pieces, &[b"p", b"2"]);
        lanes.push(LaneKind::Normal, b"a");
        lanes.push(LaneKind::Normal, b"b");
        lanes.push(LaneKind::Control, b"c");
        assert_eq!(filled(&mut lanes), b"cap1p2");
        assert!(!lanes.is_empty());
    }

    #[test]
    fn a_stream_of_messages_does_not_stop_pieces() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        lanes.push(LaneKind::Pieces, &[1; MAX_WRITE / 2]);
        let mut writes = 0;
        while lanes.queued_messages(LaneKind::Pieces) > 0 {
            lanes.push(LaneKind::Normal, &[2; MAX_WRITE]);
            filled(&mut lanes);
            writes += 1;
        }
        assert_eq!(writes, 2);
    }

    #[test]
    fn a_write_ends_behind_the_last_frame_in_the_clear() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        lanes.push(LaneKind::Normal, b"message");
        lanes.push(LaneKind::Control, &vec![1; MAX_WRITE]);
        lanes.push(LaneKind::Control, b"marker");
        lanes.end_clear();
        lanes.push(LaneKind::Control, b"sealed");
        assert_eq!(filled(&mut lanes).len(), MAX_WRITE);
        assert!(!lanes.take_boundary_left(), "it waits");
        assert_eq!(filled(&mut lanes), b"marker");
        assert!(lanes.take_boundary_left());
        assert!(!lanes.take_boundary_left(), "once");
        assert_eq!(filled(&mut lanes), b"sealedmessage");
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

    /// Lanes of messages that all have this many frames, each of its lane's own letter.
    fn loaded(frames: usize, length: usize) -> Lanes {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        for (lane, letter) in [
            (LaneKind::High, b'h'),
            (LaneKind::Normal, b'n'),
            (LaneKind::Bulk, b'b'),
        ] {
            for _ in 0..frames {
                lanes.push(lane, &vec![letter; length]);
            }
        }
        lanes
    }

    fn count(bytes: &[u8], letter: u8) -> usize {
        bytes.iter().filter(|byte| **byte == letter).count()
    }

    #[test]
    fn lanes_share_by_their_weights_while_all_of_them_have_something() {
        let mut lanes = loaded(10_000, 1000);
        let mut out = Vec::new();
        while count(&out, b'h') < 9_000_000 {
            out.extend(filled(&mut lanes));
        }
        let share = |letter| count(&out, letter) * 210 / out.len();
        // In parts of 210: 16, 4 and 1 of 21.
        assert!((158..=162).contains(&share(b'h')), "{}", share(b'h'));
        assert!((38..=42).contains(&share(b'n')), "{}", share(b'n'));
        assert!((8..=12).contains(&share(b'b')), "{}", share(b'b'));
    }

    #[test]
    fn the_share_counts_bytes_and_not_messages() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        // Bulk in frames over the limit of a write, high in small ones.
        for _ in 0..4 {
            lanes.push(LaneKind::Bulk, &vec![b'b'; 2 * MAX_WRITE]);
        }
        for _ in 0..100_000 {
            lanes.push(LaneKind::High, &[b'h'; 100]);
        }
        let mut out = Vec::new();
        while count(&out, b'b') < 4 * 2 * MAX_WRITE {
            out.extend(filled(&mut lanes));
        }
        let ratio = count(&out, b'h') / (3 * 2 * MAX_WRITE);
        assert_eq!(ratio, 16, "until the last of four bulk frames begins");
    }

    #[test]
    fn a_lane_that_was_empty_saves_nothing_up() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        for _ in 0..10_000 {
            lanes.push(LaneKind::Bulk, &[b'b'; 1000]);
        }
        for _ in 0..50 {
            filled(&mut lanes);
        }
        for _ in 0..10_000 {
            lanes.push(LaneKind::Normal, &[b'n'; 1000]);
        }
        let mut out = Vec::new();
        for _ in 0..10 {
            out.extend(filled(&mut lanes));
        }
        let (normal, bulk) = (count(&out, b'n'), count(&out, b'b'));
        assert!(bulk > 0, "bulk is not made to pay for when it was alone");
        assert!((3 * bulk..=5 * bulk).contains(&normal), "{normal} {bulk}");
    }

    #[test]
    fn order_holds_within_each_lane() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        let mut next = [0_u32; LaneKind::COUNT];
        let mut seen = [0_u32; LaneKind::COUNT];
        for _ in 0..2000 {
            for _ in 0..random.usize(0..8) {
                let lane = LaneKind::ALL[random.usize(0..LaneKind::COUNT)];
                let number = &mut next[lane.index()];
                let mut frame = vec![u8::try_from(lane.index()).unwrap()];
                frame.extend(number.to_le_bytes());
                frame.resize(random.usize(5..20_000), 0);
                let length = u32::try_from(frame.len()).unwrap();
                lanes.push(lane, &[&length.to_le_bytes()[..], &frame].concat());
                *number += 1;
            }
            let out = filled(&mut lanes);
            let mut rest = &out[..];
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
                let (frame, after) = after.split_at(length);
                let lane = usize::from(frame[0]);
                let number = u32::from_le_bytes(*frame[1..].first_chunk().unwrap());
                assert_eq!(number, seen[lane]);
                seen[lane] += 1;
                rest = after;
            }
        }
        assert!(seen.iter().all(|seen| *seen > 1000));
    }

    #[test]
    fn lanes_share_credit_in_the_same_turns() {
        let mut lanes = loaded(1000, 4096);
        lanes.set_credit(SendCredit::Messages(0));
        let mut out = Vec::new();
        for _ in 0..210 {
            lanes.grant(1);
            out.extend(filled(&mut lanes));
        }
        let messages = |letter| count(&out, letter) / 4096;
        assert_eq!(
            [messages(b'h'), messages(b'n'), messages(b'b')],
            [160, 40, 10]
        );
    }

    /// A few urgent messages do not wait for bulk to get what it is due in the long run.
    #[test]
    fn what_is_urgent_goes_first_in_each_round() {
        let mut lanes = loaded(3, 1000);
        let out = filled(&mut lanes);
        let letters: Vec<u8> = out.chunks(1000).map(|frame| frame[0]).collect();
        assert_eq!(letters, b"hhhnnnbbb");
    }

    /// A service that answers a flood while it sends a large message had an answer for every write,
    /// and the large message, which never fitted behind it, never left.
    #[test]
    fn messages_get_into_every_second_write_however_much_control_there_is() {
        let mut lanes = Lanes::new();
        lanes.set_credit(SendCredit::Unlimited);
        lanes.push(LaneKind::Bulk, &vec![b'b'; 2 * MAX_WRITE]);
        lanes.push(LaneKind::Normal, b"n");
        let mut out = Vec::new();
        for _ in 0..4 {
            for _ in 0..MAX_WRITE / 100 + 1 {
                lanes.push(LaneKind::Control, &[b'c'; 100]);
            }
            out.extend(filled(&mut lanes));
        }
        assert_eq!(count(&out, b'n'), 1);
        assert_eq!(count(&out, b'b'), 2 * MAX_WRITE);
        assert!(lanes.frames_left() > 2);
    }

    #[test]
    fn what_leaves_is_told_with_its_numbers() {
        let mut lanes = Lanes::new();
        lanes.push(LaneKind::Control, b"hello");
        let mut told = Vec::new();
        let mut tell = |lanes: &mut Lanes| {
            let mut out = Vec::new();
            lanes.fill(&mut out, |departure| {
                let Departure {
                    place,
                    frames,
                    number,
                } = departure;
                told.push((place.lane, place.ordinal, frames, number));
            });
        };
        tell(&mut lanes);
        lanes.set_credit(SendCredit::Unlimited);
        lanes.push(LaneKind::Normal, b"n");
        lanes.push(LaneKind::Normal, b"n");
        lanes.push(LaneKind::Control, b"c");
        tell(&mut lanes);
        tell(&mut lanes);
        lanes.push(LaneKind::Normal, b"n");
        tell(&mut lanes);
        let expected = [
            (LaneKind::Control, 0, 1, 1),
            (LaneKind::Control, 1, 1, 2),
            (LaneKind::Normal, 0, 2, 3),
            (LaneKind::Normal, 2, 1, 5),
        ];
        assert_eq!(told, expected);
        assert_eq!(lanes.frames_left(), 5);
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
        assert_eq!(lanes.lane(LaneKind::Normal).capacity(), 0);
    }
}
