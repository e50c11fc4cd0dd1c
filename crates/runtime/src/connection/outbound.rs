//! The bounded way from many handles to the one driver of a connection.
//!
//! A channel of our own, because what travels are bytes: a frame is encoded once, by its
//! sender, and copied into its lane under a lock that is never held for longer than that copy.

// With its path, because tests include this file by its own.
#[path = "outbound/batches.rs"]
mod batches;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use migration_ipc_protocol::extensions::{Chunk, FrameRange};
use migration_ipc_protocol::hello::uses_credit;
use migration_ipc_protocol::{MessageId, Priority};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use self::batches::BatchFrame;
use super::account::{Account, MEMORY_FLOOR};
use super::asking::{Asking, BadItem, Item, ItemFate};
use super::error::SendError;
use super::in_flight::{AnswerResult, InFlight, Patience, Sent};
use super::lane_kind::{LaneKind, LaneSet, Place};
use super::lanes::{Lanes, MAX_WRITE, SendCredit};
use super::reason::DisconnectReason;
use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering};
use super::transfers::Transfers;
use crate::config::ConnectionConfig;
use crate::dispatch::Asked;

/// Somebody asks for the end of the connection: finish handlers, flush, say goodbye, wait for the
/// peer until the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CloseRequest {
    pub(crate) reason: DisconnectReason,
    pub(crate) deadline: Instant,
}

/// Why a frame was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    Full,
    Closed(DisconnectReason),
}

/// Why an item of a streaming reply was not taken.
#[derive(Debug)]
pub(crate) enum ItemRefused {
    /// Its lane is full.
    Full,
    /// The request has its final answer.
    Answered,
    Closed(DisconnectReason),
}

/// What the sender wants to know of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    None,
    /// The peer's answer, if it comes in time.
    Answer,
    /// The same; the time does not run while the message waits to be written.
    AnswerOnceWritten,
    /// The peer's answer, which is sure to come while the connection lives.
    SureAnswer,
    /// That it was handed to the operating system, where no answer can be expected: it resolves
    /// as unanswered at that moment.
    Written,
}

/// Whether a piece is the last of its body, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last<'a> {
    No,
    /// Of this message, of this type: the peer answers it.
    OfMessage(&'a MessageId, &'static str),
    /// Of a reply: it resolves as unanswered once it was handed to the operating system.
    OfReply,
}

/// How a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    pub(crate) tracking: Tracking,
    pub(crate) priority: Priority,
}

impl Manner {
    /// What needs no credit must not spend any: the peer would never give it back.
    fn lane(self, message_type: &str) -> LaneKind {
        if uses_credit(message_type, false) {
            LaneKind::of(self.priority)
        } else {
            LaneKind::Control
        }
    }
}

impl Tracking {
    fn awaits_answer(self) -> bool {
        match self {
            Self::Answer | Self::AnswerOnceWritten | Self::SureAnswer => true,
            Self::None | Self::Written => false,
        }
    }

    fn patience(self) -> Patience {
        match self {
            Self::SureAnswer => Patience::Unlimited,
            Self::AnswerOnceWritten => Patience::OnceWritten,
            Self::None | Self::Answer | Self::Written => Patience::Usual,
        }
    }
}

/// What the driver wants of the lanes.
#[derive(Debug)]
pub(crate) enum Wanted<'a> {
    /// The next write, into this buffer.
    Write(&'a mut Vec<u8>),
    /// Nothing: a write is under way.
    Nothing,
    /// Nothing ever again. Answers are dropped; messages stay, and count as unsent in the end.
    Discard,
}

/// What the driver finds when it looks.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) close_request: Option<CloseRequest>,
    pub(crate) answers_awaited: bool,
    pub(crate) lanes_are_empty: bool,
    /// Senders' messages in the write that was filled.
    pub(crate) filled: usize,
    /// Since when a lane of messages has been full, and never half empty, although none of the
    /// others went before it: the one of which that is longest.
    pub(crate) full_since: Option<Instant>,
    /// The write that was filled ends with the last frame in the clear.
    pub(crate) boundary_left: bool,
}

/// The peer acknowledged frames that it cannot have received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeverSent;

/// A lane of messages that became full, and has not been half empty since.
#[derive(Debug, Clone, Copy)]
struct Full {
    lane: LaneKind,
    since: Instant,
    /// Bytes that had left the other lanes by then. When they are given as much as would have emptied
    /// this one by half, it is not the peer that is slow.
    elsewhere: u64,
}

#[derive(Debug)]
struct State {
    lanes: Lanes,
    in_flight: InFlight,
    asking: Asking,
    /// Where the driver's answers go at present: behind the items of their request, if it has any.
    answers: LaneKind,
    /// Messages that count as unanswered once they are written.
    unwritten: Vec<(Place, oneshot::Sender<AnswerResult>)>,
    /// At most one of each lane; forgotten when it is down to half.
    full: Vec<Full>,
    /// Set once; from then on nothing is accepted.
    closed: Option<DisconnectReason>,
    close_request: Option<CloseRequest>,
    /// Whether the driver knows already that there is something for it.
    signalled: bool,
    /// In which lanes a sender may be waiting for room.
    awaited: LaneSet,
    /// Bytes in the lanes, as the account knows them.
    counted: usize,
}

impl State {
    /// What comes of the message at this place: it counts as unanswered once it is written.
    fn await_writing(&mut self, place: Place) -> oneshot::Receiver<AnswerResult> {
        let (answer, receiver) = oneshot::channel();
        self.unwritten.push((place, answer));
        receiver
    }

    /// Resolves those that wait to be written as far as their place in the lanes says so.
    fn resolve_unwritten(&mut self, fate: &SendError, concerned: impl Fn(&Lanes, Place) -> bool) {
        let lanes = &self.lanes;
        for (_, answer) in self
            .unwritten
            .extract_if(.., |(place, _)| concerned(lanes, *place))
        {
            drop(answer.send(Err(fate.clone())));
        }
    }

    fn full_since(&self) -> Option<Instant> {
        self.full.iter().map(|full| full.since).min()
    }
}

#[derive(Debug)]
pub(crate) struct Outbound {
    state: Mutex<State>,
    /// Whether anything may have changed since the driver looked for work.
    news: AtomicBool,
    /// Whether the control lane is at its bound; written under the lock.
    control_is_full: AtomicBool,
    driver: AtomicWaker,
    /// For each lane.
    room: [Notify; LaneKind::COUNT],
    /// Bytes of items that came for our requests and were not read.
    held_items: AtomicUsize,
    transfers: Transfers,
    config: Arc<ConnectionConfig>,
    account: Arc<Account>,
}

impl Outbound {
    pub(crate) fn new(config: Arc<ConnectionConfig>, account: Arc<Account>) -> Self {
        Self {
            state: Mutex::new(State {
                lanes: Lanes::new(),
                in_flight: InFlight::new(),
                asking: Asking::default(),
                answers: LaneKind::Control,
                unwritten: Vec::new(),
                full: Vec::new(),
                closed: None,
                close_request: None,
                signalled: false,
                awaited: LaneSet::default(),
                counted: 0,
            }),
            news: AtomicBool::new(true),
            control_is_full: AtomicBool::new(false),
            driver: AtomicWaker::new(),
            room: Default::default(),
            held_items: AtomicUsize::new(0),
            transfers: Transfers::new(),
            config,
            account,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.lock_for_driver();
        self.news.store(true, Ordering::Relaxed);
        state
    }

    fn lock_for_driver(&self) -> MutexGuard<'_, State> {
        // No code of a user runs under this lock, and every section leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, mut state: MutexGuard<'_, State>) {
        let first = !std::mem::replace(&mut state.signalled, true);
        drop(state);
        if first {
            self.driver.wake();
        }
    }

    // --- for handles -------------------------------------------------------------------------

    /// Takes a whole frame into a lane, or nothing of it.
    pub(crate) fn offer(
        &self,
        frame: &[u8],
        id: &MessageId,
        message_type: &'static str,
        manner: Manner,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, Refused> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(Refused::Closed(reason.clone()));
        }
        let tracking = manner.tracking;
        let lane = manner.lane(message_type);
        // A lane takes a frame whenever it is below its bound, so that a large frame cannot
        // starve behind small ones; it holds at most its bound and one frame.
        let full = self.is_full(&state, lane)
            || (tracking.awaits_answer()
                && !state.in_flight.has_room(id, self.config.limits.in_flight));
        if full {
            state.awaited.insert(lane);
            return Err(Refused::Full);
        }
        let answer = match tracking {
            Tracking::None => None,
            Tracking::Answer | Tracking::AnswerOnceWritten | Tracking::SureAnswer => {
                let sent = Sent {
                    message_type,
                    at: Instant::now(),
                    place: state.lanes.next_place(lane),
                    patience: tracking.patience(),
                };
                Some(state.in_flight.insert(id.clone(), sent))
            }
            Tracking::Written => {
                let place = state.lanes.next_place(lane);
                Some(state.await_writing(place))
            }
        };
        state.lanes.push(lane, frame);
        self.count(&mut state);
        self.note_full(&mut state, lane);
        self.signal(state);
        Ok(answer)
    }

    /// Remembers since when a lane of messages has been full.
    fn note_full(&self, state: &mut State, lane: LaneKind) {
        let is_noted = state.full.iter().any(|full| full.lane == lane);
        if lane.holds_messages() && !is_noted && self.is_full(state, lane) {
            state.full.push(Full {
                lane,
                since: Instant::now(),
                elsewhere: state.lanes.left_elsewhere(lane),
            });
        }
    }

    fn is_full(&self, state: &State, lane: LaneKind) -> bool {
        state.lanes.queued_bytes(lane) >= self.config.limits.outbound_bytes
            || state.lanes.queued_messages(lane) >= self.config.limits.outbound_messages
            || self.is_out_of_memory(state, lane)
    }

    /// Whether a lane may take nothing more for the sake of the account's memory. Whoever waits for
    /// room needs no call when that changes: the lane is not empty, so it is looked at again when
    /// the peer has taken something of it, and a peer that takes nothing is disconnected.
    fn is_out_of_memory(&self, state: &State, lane: LaneKind) -> bool {
        state.lanes.queued_bytes(lane) >= MEMORY_FLOOR && self.account.is_out_of_memory()
    }

    /// Lets the account know what the lanes hold.
    fn count(&self, state: &mut State) {
        if self.account.is_limited() {
            let held = state.lanes.held_bytes();
            self.account.recount(&mut state.counted, held);
        }
    }

    /// Whether so much room is there that waiting senders are let in, a batch at a time.
    fn is_half_empty(&self, state: &State, lane: LaneKind) -> bool {
        state.lanes.queued_bytes(lane) <= self.config.limits.outbound_bytes / 2
            && state.lanes.queued_messages(lane) <= self.config.limits.outbound_messages / 2
    }

    fn has_room_again(&self, state: &State, lane: LaneKind) -> bool {
        match lane {
            LaneKind::Pieces => self.has_room_for_piece(state),
            _ => self.is_half_empty(state, lane),
        }
    }

    /// Looks again at the lanes that were full.
    fn review_full(&self, state: &mut State) {
        let mut noted = std::mem::take(&mut state.full);
        noted.retain_mut(|full| {
            if self.is_half_empty(state, full.lane) {
                return false;
            }
            let elsewhere = state.lanes.left_elsewhere(full.lane);
            if elsewhere - full.elsewhere >= (self.config.limits.outbound_bytes / 2).max(1) as u64 {
                full.since = Instant::now();
                full.elsewhere = elsewhere;
            }
            true
        });
        state.full = noted;
    }

    /// As [`offer`](Self::offer), waiting for room.
    ///
    /// Cancel safe: the frame is taken in the last step, whole, or not at all.
    pub(crate) async fn accept(
        &self,
        frame: &[u8],
        id: &MessageId,
        message_type: &'static str,
        manner: Manner,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, DisconnectReason> {
        let room = &self.room[manner.lane(message_type).index()];
        loop {
            let mut room = std::pin::pin!(room.notified());
            room.as_mut().enable();
            match self.offer(frame, id, message_type, manner) {
                Ok(answer) => return Ok(answer),
                Err(Refused::Closed(reason)) => return Err(reason),
                Err(Refused::Full) => room.await,
            }
        }
    }

    // --- for requests ------------------------------------------------------------------------

    /// Expects items for a request that is about to be sent.
    pub(crate) fn begin_stream(&self, id: &MessageId, window: u32) -> mpsc::Receiver<Item> {
        self.lock().asking.begin_stream(id.clone(), window)
    }

    /// Lets the peer send more items of a stream; `frame` says so to it. Nothing happens once the
    /// final answer is there.
    pub(crate) fn grant_items(&self, id: &MessageId, items: u32, frame: &[u8]) {
        let mut state = self.lock();
        if state.closed.is_some() || !state.asking.grant(id, items) {
            return;
        }
        state.lanes.push(LaneKind::Control, frame);
        self.count(&mut state);
        self.note_control(&state);
        self.signal(state);
    }

    /// Nobody waits for the answer to a request any more. `cancel` tells the peer, once the request
    /// has left its lane.
    pub(crate) fn give_up(&self, id: &MessageId, cancel: Option<Box<[u8]>>) {
        let mut state = self.lock();
        state.asking.end_stream(id);
        let Some(sent) = state.in_flight.remove(id) else {
            return;
        };
        state.asking.abandon(id.clone(), sent.place, cancel);
        self.tell_cancels(&mut state);
        // There may be room now for who waits to be answered.
        let wake = std::mem::take(&mut state.awaited);
        self.signal(state);
        self.notify(wake);
    }

    /// Tells the peer of requests that were given up, as far as they have left their lane.
    fn tell_cancels(&self, state: &mut State) {
        let State { lanes, asking, .. } = state;
        let cancels = asking.take_cancels(|place| lanes.has_left(place));
        if cancels.is_empty() {
            return;
        }
        for frame in cancels {
            lanes.push(LaneKind::Control, &frame);
        }
        self.count(state);
        self.note_control(state);
    }

    /// Bytes of items that came and were not read.
    pub(crate) fn held_items(&self) -> usize {
        self.held_items.load(Ordering::Relaxed)
    }

    pub(crate) fn hold_item(&self, bytes: usize) {
        self.held_items.fetch_add(bytes, Ordering::Relaxed);
    }

    /// May be called under the lock, as items are dropped wherever their channel is.
    pub(crate) fn release_item(&self, bytes: usize) {
        self.held_items.fetch_sub(bytes, Ordering::Relaxed);
        if self.account.is_limited() && self.account.is_out_of_memory() {
            // The driver may be waiting for it.
            self.driver.wake();
        }
    }

    /// Takes an item of a streaming reply, or nothing of it.
    pub(crate) fn offer_item(&self, frame: &[u8], asked: &Asked) -> Result<(), ItemRefused> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(ItemRefused::Closed(reason.clone()));
        }
        if asked.is_answered() {
            return Err(ItemRefused::Answered);
        }
        if self.is_full(&state, LaneKind::Items) {
            state.awaited.insert(LaneKind::Items);
            return Err(ItemRefused::Full);
        }
        state.lanes.push(LaneKind::Items, frame);
        self.count(&mut state);
        self.note_control(&state);
        self.signal(state);
        Ok(())
    }

    /// As [`offer_item`](Self::offer_item), waiting for room. Cancel safe as
    /// [`accept`](Self::accept).
    pub(crate) async fn accept_item(&self, frame: &[u8], asked: &Asked) -> Result<(), ItemRefused> {
        loop {
            let mut room = std::pin::pin!(self.room[LaneKind::Items.index()].notified());
            room.as_mut().enable();
            match self.offer_item(frame, asked) {
                Err(ItemRefused::Full) => room.await,
                taken => return taken,
            }
        }
    }

    /// The driver answers a request for good: no item follows, and what it says until
    /// [`end_answer`](Self::end_answer) goes behind those that are there.
    pub(crate) fn begin_answer(&self, asked: &Asked) {
        let mut state = self.lock();
        asked.set_answered();
        state.answers = LaneKind::Items;
    }

    pub(crate) fn end_answer(&self) {
        self.lock().answers = LaneKind::Control;
    }

    /// Gives an item to whoever reads the stream of the request.
    ///
    /// # Errors
    /// Says which rule the item breaks.
    pub(crate) fn take_item(
        &self,
        id: &MessageId,
        number: u64,
        item: impl FnOnce() -> Item,
    ) -> Result<ItemFate, BadItem> {
        let mut state = self.lock();
        let State {
            asking, in_flight, ..
        } = &mut *state;
        match asking.take_item(id, number, item) {
            Some(taken) => taken,
            None if in_flight.contains(id) => Err(BadItem("an item that nobody asked for")),
            None => Ok(ItemFate::Dropped),
        }
    }

    /// Whether this is the late answer to a request that was given up.
    pub(crate) fn take_late(&self, id: &MessageId) -> bool {
        self.lock().asking.take_late(id)
    }

    // --- for bodies in chunks ------------------------------------------------------------------

    /// The bodies that this side sends in pieces.
    pub(crate) fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// Takes a piece, waiting for room; of the last one something is told. Cancel safe: the piece is
    /// taken in the last step, or not at all.
    pub(crate) async fn accept_piece(
        &self,
        piece: Chunk<'_>,
        last: Last<'_>,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, DisconnectReason> {
        loop {
            let mut room = std::pin::pin!(self.room[LaneKind::Pieces.index()].notified());
            room.as_mut().enable();
            match self.offer_piece(piece, last) {
                Ok(answer) => return Ok(answer),
                Err(Refused::Closed(reason)) => return Err(reason),
                Err(Refused::Full) => room.await,
            }
        }
    }

    /// The lane holds a few pieces at a time: a body is not copied as a whole.
    fn offer_piece(
        &self,
        piece: Chunk<'_>,
        last: Last<'_>,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, Refused> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(Refused::Closed(reason.clone()));
        }
        let room_for_answer = match last {
            Last::OfMessage(id, _) => state.in_flight.has_room(id, self.config.limits.in_flight),
            Last::No | Last::OfReply => true,
        };
        if !self.has_room_for_piece(&state) || !room_for_answer {
            state.awaited.insert(LaneKind::Pieces);
            return Err(Refused::Full);
        }
        let place = state.lanes.next_place(LaneKind::Pieces);
        let answer = match last {
            Last::No => None,
            Last::OfMessage(id, message_type) => {
                let sent = Sent {
                    message_type,
                    at: Instant::now(),
                    place,
                    patience: Patience::OnceWritten,
                };
                Some(state.in_flight.insert(id.clone(), sent))
            }
            Last::OfReply => Some(state.await_writing(place)),
        };
        let head = piece.head();
        // A piece is far shorter than what a prefix can say.
        let length = u32::try_from(head.len() + piece.data.len()).unwrap_or(u32::MAX);
        let parts: [&[u8]; 3] = [&length.to_le_bytes(), &head, piece.data];
        state.lanes.push_parts(LaneKind::Pieces, &parts);
        self.count(&mut state);
        self.signal(state);
        Ok(answer)
    }

    fn has_room_for_piece(&self, state: &State) -> bool {
        state.lanes.queued_bytes(LaneKind::Pieces) < MAX_WRITE
            && !self.is_out_of_memory(state, LaneKind::Pieces)
    }

    /// As [`push_control`](Self::push_control), for somebody beside the driver: what is said of
    /// transfers, of which few are under way.
    pub(crate) fn push_of_transfer(&self, frame: &[u8]) {
        let mut state = self.lock();
        if state.closed.is_some() {
            return;
        }
        state.lanes.push(LaneKind::Control, frame);
        self.count(&mut state);
        self.note_control(&state);
        self.signal(state);
    }

    /// Asks the driver to end the connection.
    pub(crate) fn request_close(&self, request: CloseRequest) {
        let mut state = self.lock();
        state.close_request = Some(request);
        self.signal(state);
    }

    /// Why nothing is accepted any more.
    pub(crate) fn closed(&self) -> Option<DisconnectReason> {
        self.lock().closed.clone()
    }

    pub(crate) fn queued_messages(&self) -> usize {
        self.lock().lanes.waiting_messages()
    }

    // --- for the driver ----------------------------------------------------------------------

    pub(crate) fn register(&self, waker: &Waker) {
        self.driver.register(waker);
    }

    /// A control frame of the driver's own: always taken.
    pub(crate) fn push_control(&self, frame: &[u8]) {
        let mut state = self.lock();
        let lane = state.answers;
        state.lanes.push(lane, frame);
        self.count(&mut state);
        self.note_control(&state);
    }

    /// The last frame in the clear: what goes out behind it is sealed.
    pub(crate) fn push_last_clear(&self, frame: &[u8]) {
        self.push_control(frame);
        self.lock().lanes.end_clear();
    }

    /// Whether the peer leaves so many answers untaken that no more should be made.
    pub(crate) fn control_is_full(&self) -> bool {
        self.control_is_full.load(Ordering::Relaxed)
    }

    fn note_control(&self, state: &State) {
        let full = state.lanes.queued_bytes(LaneKind::Control) >= self.config.limits.control_bytes
            || state.lanes.queued_bytes(LaneKind::Items) >= self.config.limits.outbound_bytes
            || self.is_out_of_memory(state, LaneKind::Control);
        self.control_is_full.store(full, Ordering::Relaxed);
    }

    /// Whether [`take_work`](Self::take_work) may have anything to say that it did not say before. What
    /// a handle does while this is asked wakes the driver afterwards. The account's memory is no news:
    /// a lane that is held back by it is looked at again when its write is complete.
    pub(crate) fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed)
    }

    /// Tells the driver what there is to do, and gives it what it wants.
    pub(crate) fn take_work(&self, wanted: Wanted<'_>) -> Work {
        let mut state = self.lock_for_driver();
        self.news.store(false, Ordering::Relaxed);
        state.signalled = false;
        let filled = match wanted {
            Wanted::Write(write) => {
                // The write before this one is complete.
                state.lanes.finish_write();
                if !state.unwritten.is_empty() {
                    state.resolve_unwritten(&SendError::Unanswered, Lanes::is_written);
                }
                let State {
                    lanes, in_flight, ..
                } = &mut *state;
                let filled = lanes.fill(write, |departure| in_flight.note_left(departure));
                self.tell_cancels(&mut state);
                filled
            }
            Wanted::Nothing => 0,
            Wanted::Discard => {
                state.lanes.discard_answers();
                // The connection waits for replies that are on their way.
                let lost = SendError::Lost(DisconnectReason::Aborted);
                state.resolve_unwritten(&lost, |_, place| place.lane == LaneKind::Pieces);
                0
            }
        };
        self.count(&mut state);
        self.note_control(&state);
        self.review_full(&mut state);
        let work = Work {
            filled,
            boundary_left: state.lanes.take_boundary_left(),
            full_since: state.full_since(),
            close_request: state.close_request.take(),
            answers_awaited: state.in_flight.len() > 0,
            lanes_are_empty: state.lanes.is_empty(),
        };
        self.wake_senders(state);
        work
    }

    /// The lanes of messages could not empty, for a reason of ours: their time begins anew.
    pub(crate) fn excuse_full(&self, now: Instant) {
        for full in &mut self.lock().full {
            full.since = now;
        }
    }

    /// Gives back the memory of empty lanes, and of what nobody waits for.
    pub(crate) fn trim(&self) {
        let mut state = self.lock();
        state.lanes.trim();
        state.in_flight.trim();
    }

    pub(crate) fn set_credit(&self, credit: SendCredit) {
        self.lock().lanes.set_credit(credit);
    }

    pub(crate) fn grant(&self, messages: u32) {
        self.lock().lanes.grant(messages);
    }

    /// The peer names messages by their ids, and never by their frames.
    pub(crate) fn forget_frames(&self) {
        self.lock().in_flight.forget_frames();
    }

    /// Expects an answer to a message of the driver's own, which is [pushed](Self::push_tracked) later.
    pub(crate) fn track(
        &self,
        id: MessageId,
        message_type: &'static str,
    ) -> oneshot::Receiver<AnswerResult> {
        let sent = Sent {
            message_type,
            at: Instant::now(),
            place: Place::NOWHERE,
            patience: Patience::Usual,
        };
        self.lock().in_flight.insert_unlisted(id, sent)
    }

    /// As [`push_control`](Self::push_control), of a message that is tracked.
    pub(crate) fn push_tracked(&self, frame: &[u8], id: &MessageId) {
        let mut state = self.lock();
        let State {
            lanes, in_flight, ..
        } = &mut *state;
        in_flight.place(id, lanes.next_place(LaneKind::Control));
        lanes.push(LaneKind::Control, frame);
        self.count(&mut state);
        self.note_control(&state);
    }

    /// Resolves a tracked message; says what it was.
    pub(crate) fn resolve(&self, id: &MessageId, answer: AnswerResult) -> Option<Sent> {
        let mut state = self.lock();
        if let Err(SendError::Rejected(_)) = answer {
            // A batch that is refused as a whole has used no credit.
            let messages = state.in_flight.messages_of(id);
            state.lanes.grant(u32::try_from(messages).unwrap_or(0));
        }
        let sent = state.in_flight.resolve(id, answer);
        if sent.is_some() {
            state.asking.end_stream(id);
        }
        self.wake_senders(state);
        sent
    }

    /// Resolves what is in these frames: first those that failed, then whatever else the ranges have.
    /// Adds what it was to `resolved`.
    ///
    /// # Errors
    /// When one of them has not been sent yet. Nothing is resolved then.
    pub(crate) fn resolve_frames(
        &self,
        failed: Vec<(u64, SendError)>,
        handled: &[FrameRange],
        resolved: &mut Vec<Sent>,
    ) -> Result<(), NeverSent> {
        let mut state = self.lock();
        let sent = 1..=state.lanes.frames_left();
        let possible = failed.iter().all(|(frame, _)| sent.contains(frame))
            && handled.iter().all(|range| sent.contains(&range.last()));
        if !possible {
            return Err(NeverSent);
        }
        for (frame, error) in failed {
            resolved.extend(state.in_flight.resolve_frame(frame, Err(error)));
        }
        for range in handled {
            state.in_flight.resolve_range(*range, resolved);
        }
        let State {
            in_flight, asking, ..
        } = &mut *state;
        asking.end_streams(|id| !in_flight.contains(id));
        self.wake_senders(state);
        Ok(())
    }

    /// Gives up on what waits since before `limit`.
    pub(crate) fn expire(&self, limit: Instant, now: Instant) {
        let mut state = self.lock();
        let State {
            lanes, in_flight, ..
        } = &mut *state;
        in_flight.expire(limit, now, |place| lanes.is_written(place));
        self.wake_senders(state);
    }

    /// Accepts nothing more; what is queued may still be written.
    pub(crate) fn close(&self, reason: &DisconnectReason) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| reason.clone());
        drop(state);
        self.transfers.close(reason);
        for room in &self.room {
            room.notify_waiters();
        }
    }

    /// No answer will come any more: what has left the lanes may have been handled or not. The
    /// rest may still be written; [`finish`](Self::finish) knows.
    pub(crate) fn fail_answers(&self, reason: &DisconnectReason) {
        let mut state = self.lock();
        let State {
            lanes,
            in_flight,
            asking,
            ..
        } = &mut *state;
        let lost = SendError::Lost(reason.clone());
        in_flight.fail(&lost, |place| lanes.has_left(place));
        asking.end_streams(|id| !in_flight.contains(id));
    }

    /// The connection is gone. What never left the lanes was certainly not sent; of the rest, the
    /// fate is unknown. Returns how many messages were accepted and never written.
    pub(crate) fn finish(&self, reason: &DisconnectReason) -> usize {
        self.close(reason);
        self.fail_answers(reason);
        let mut state = self.lock();
        let unsent = state.lanes.waiting_messages();
        let lost = SendError::Lost(reason.clone());
        state.resolve_unwritten(&lost, Lanes::has_left);
        let closed = SendError::Closed(reason.clone());
        state.in_flight.fail(&closed, |_| true);
        state.asking.end_streams(|_| true);
        for (_, answer) in std::mem::take(&mut state.unwritten) {
            drop(answer.send(Err(closed.clone())));
        }
        state.lanes.clear();
        self.count(&mut state);
        unsent
    }

    fn wake_senders(&self, mut state: MutexGuard<'_, State>) {
        let mut wake = state.awaited;
        for lane in state.awaited.iter() {
            if !self.has_room_again(&state, lane) {
                wake.remove(lane);
            }
        }
        state.awaited = state.awaited.difference(wake);
        drop(state);
        self.notify(wake);
    }

    /// Lets those look again who wait for room in these lanes.
    fn notify(&self, lanes: LaneSet) {
        for lane in lanes.iter() {
            self.room[lane.index()].notify_waiters();
        }
    }
}
