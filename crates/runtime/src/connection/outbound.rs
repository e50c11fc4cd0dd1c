//! The bounded way from many handles to the one driver of a connection.
//!
//! A channel of our own, because what travels are bytes: a frame is encoded once, by its
//! sender, and copied into its lane under a lock that is never held for longer than that copy.

mod batches;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use migration_ipc_protocol::MessageId;
use migration_ipc_protocol::hello::uses_credit;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub(crate) use self::batches::BatchFrame;
use super::account::{Account, MEMORY_FLOOR};
use super::error::SendError;
use super::in_flight::{AnswerResult, InFlight, Patience, Sent};
use super::lanes::{LaneKind, Lanes, Place, SendCredit};
use super::reason::DisconnectReason;
use crate::config::ConnectionLimits;

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
    /// Since when the normal lane has been full, and never half empty.
    pub(crate) full_since: Option<Instant>,
}

#[derive(Debug)]
struct State {
    lanes: Lanes,
    in_flight: InFlight,
    /// Messages that count as unanswered once they are written.
    unwritten: Vec<(Place, oneshot::Sender<AnswerResult>)>,
    /// When the normal lane became full; forgotten when it is down to half.
    full_since: Option<Instant>,
    /// Set once; from then on nothing is accepted.
    closed: Option<DisconnectReason>,
    close_request: Option<CloseRequest>,
    /// Whether the driver knows already that there is something for it.
    signalled: bool,
    /// Whether a sender may be waiting for room.
    awaited: bool,
    /// Bytes in the lanes, as the account knows them.
    counted: usize,
}

impl State {
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
}

#[derive(Debug)]
pub(crate) struct Outbound {
    state: Mutex<State>,
    /// Whether the control lane is at its bound; written under the lock.
    control_is_full: AtomicBool,
    driver: AtomicWaker,
    room: Notify,
    limits: ConnectionLimits,
    account: Arc<Account>,
}

impl Outbound {
    pub(crate) fn new(limits: ConnectionLimits, account: Arc<Account>) -> Self {
        Self {
            state: Mutex::new(State {
                lanes: Lanes::new(),
                in_flight: InFlight::default(),
                unwritten: Vec::new(),
                full_since: None,
                closed: None,
                close_request: None,
                signalled: false,
                awaited: false,
                counted: 0,
            }),
            control_is_full: AtomicBool::new(false),
            driver: AtomicWaker::new(),
            room: Notify::new(),
            limits,
            account,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
        tracking: Tracking,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, Refused> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(Refused::Closed(reason.clone()));
        }
        // What needs no credit must not spend any: the peer would never give it back.
        let lane = if uses_credit(message_type, false) {
            LaneKind::Normal
        } else {
            LaneKind::Control
        };
        // A lane takes a frame whenever it is below its bound, so that a large frame cannot
        // starve behind small ones; it holds at most its bound and one frame.
        let full = self.is_full(&state, lane)
            || (tracking.awaits_answer() && !state.in_flight.has_room(id, self.limits.in_flight));
        if full {
            state.awaited = true;
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
                let (answer, receiver) = oneshot::channel();
                let place = state.lanes.next_place(lane);
                state.unwritten.push((place, answer));
                Some(receiver)
            }
        };
        state.lanes.push(lane, frame);
        self.count(&mut state);
        if lane == LaneKind::Normal && state.full_since.is_none() && self.is_full(&state, lane) {
            state.full_since = Some(Instant::now());
        }
        self.signal(state);
        Ok(answer)
    }

    fn is_full(&self, state: &State, lane: LaneKind) -> bool {
        state.lanes.queued_bytes(lane) >= self.limits.outbound_bytes
            || state.lanes.queued_messages(lane) >= self.limits.outbound_messages
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
            let held = state.lanes.queued_bytes(LaneKind::Control)
                + state.lanes.queued_bytes(LaneKind::Normal);
            self.account.recount(&mut state.counted, held);
        }
    }

    /// Whether so much room is there that waiting senders are let in, a batch at a time.
    fn is_half_empty(&self, state: &State) -> bool {
        state.lanes.queued_bytes(LaneKind::Normal) <= self.limits.outbound_bytes / 2
            && state.lanes.queued_messages(LaneKind::Normal) <= self.limits.outbound_messages / 2
    }

    /// As [`offer`](Self::offer), waiting for room.
    ///
    /// Cancel safe: the frame is taken in the last step, whole, or not at all.
    pub(crate) async fn accept(
        &self,
        frame: &[u8],
        id: &MessageId,
        message_type: &'static str,
        tracking: Tracking,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, DisconnectReason> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match self.offer(frame, id, message_type, tracking) {
                Ok(answer) => return Ok(answer),
                Err(Refused::Closed(reason)) => return Err(reason),
                Err(Refused::Full) => room.await,
            }
        }
    }

    /// Asks the driver to end the connection.
    pub(crate) fn request_close(&self, request: CloseRequest) {
        let mut state = self.lock();
        state.close_request = Some(request);
        self.signal(state);
    }

    pub(crate) fn queued_messages(&self) -> usize {
        self.lock().lanes.queued_messages(LaneKind::Normal)
    }

    // --- for the driver ----------------------------------------------------------------------

    pub(crate) fn register(&self, waker: &Waker) {
        self.driver.register(waker);
    }

    /// A control frame of the driver's own: always taken.
    pub(crate) fn push_control(&self, frame: &[u8]) {
        let mut state = self.lock();
        state.lanes.push(LaneKind::Control, frame);
        self.count(&mut state);
        self.note_control(&state);
    }

    /// Whether the peer leaves so many answers untaken that no more should be made.
    pub(crate) fn control_is_full(&self) -> bool {
        self.control_is_full.load(Ordering::Relaxed)
    }

    fn note_control(&self, state: &State) {
        let full = state.lanes.queued_bytes(LaneKind::Control) >= self.limits.control_bytes
            || self.is_out_of_memory(state, LaneKind::Control);
        self.control_is_full.store(full, Ordering::Relaxed);
    }

    /// Tells the driver what there is to do, and gives it what it wants.
    pub(crate) fn take_work(&self, wanted: Wanted<'_>) -> Work {
        let mut state = self.lock();
        state.signalled = false;
        let filled = match wanted {
            Wanted::Write(write) => {
                // The write before this one is complete.
                state.lanes.finish_write();
                if !state.unwritten.is_empty() {
                    state.resolve_unwritten(&SendError::Unanswered, Lanes::is_written);
                }
                state.lanes.fill(write)
            }
            Wanted::Nothing => 0,
            Wanted::Discard => {
                state.lanes.discard_control();
                0
            }
        };
        self.count(&mut state);
        self.note_control(&state);
        if state.full_since.is_some() && self.is_half_empty(&state) {
            state.full_since = None;
        }
        let work = Work {
            filled,
            full_since: state.full_since,
            close_request: state.close_request.take(),
            answers_awaited: state.in_flight.len() > 0,
            lanes_are_empty: state.lanes.is_empty(),
        };
        self.wake_senders(state);
        work
    }

    /// The normal lane could not empty, for a reason of ours: its time begins anew.
    pub(crate) fn excuse_full(&self, now: Instant) {
        if let Some(since) = &mut self.lock().full_since {
            *since = now;
        }
    }

    /// Gives back the memory of empty lanes.
    pub(crate) fn trim(&self) {
        self.lock().lanes.trim();
    }

    pub(crate) fn set_credit(&self, credit: SendCredit) {
        self.lock().lanes.set_credit(credit);
    }

    pub(crate) fn grant(&self, messages: u32) {
        self.lock().lanes.grant(messages);
    }

    /// Expects an answer to a message of the driver's own, which goes into the control lane next.
    pub(crate) fn track(
        &self,
        id: MessageId,
        message_type: &'static str,
    ) -> oneshot::Receiver<AnswerResult> {
        let mut state = self.lock();
        let sent = Sent {
            message_type,
            at: Instant::now(),
            place: state.lanes.next_place(LaneKind::Control),
            patience: Patience::Usual,
        };
        state.in_flight.insert(id, sent)
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
        self.wake_senders(state);
        sent
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
        self.room.notify_waiters();
    }

    /// No answer will come any more: what has left the lanes may have been handled or not. The
    /// rest may still be written; [`finish`](Self::finish) knows.
    pub(crate) fn fail_answers(&self, reason: &DisconnectReason) {
        let mut state = self.lock();
        let State {
            lanes, in_flight, ..
        } = &mut *state;
        let lost = SendError::Lost(reason.clone());
        in_flight.fail(&lost, |place| lanes.has_left(place));
    }

    /// The connection is gone. What never left the lanes was certainly not sent; of the rest, the
    /// fate is unknown. Returns how many messages were accepted and never written.
    pub(crate) fn finish(&self, reason: &DisconnectReason) -> usize {
        self.close(reason);
        self.fail_answers(reason);
        let mut state = self.lock();
        let unsent = state.lanes.queued_messages(LaneKind::Normal);
        let lost = SendError::Lost(reason.clone());
        state.resolve_unwritten(&lost, Lanes::has_left);
        let closed = SendError::Closed(reason.clone());
        state.in_flight.fail(&closed, |_| true);
        for (_, answer) in std::mem::take(&mut state.unwritten) {
            drop(answer.send(Err(closed.clone())));
        }
        state.lanes.clear();
        self.count(&mut state);
        unsent
    }

    fn wake_senders(&self, mut state: MutexGuard<'_, State>) {
        let wake = self.is_half_empty(&state) && std::mem::take(&mut state.awaited);
        drop(state);
        if wake {
            self.room.notify_waiters();
        }
    }
}
