//! The bounded way from many handles to the one driver of a connection.
//!
//! A channel of our own, because what travels are bytes: a frame is encoded once, by its
//! sender, and copied into its lane under a lock that is never held for longer than that copy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use migration_ipc_protocol::MessageId;
use migration_ipc_protocol::hello::uses_credit;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::error::SendError;
use super::in_flight::{AnswerResult, InFlight, Sent};
use super::lanes::{LaneKind, Lanes, SendCredit};
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

/// Whether the sender wants to know the peer's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    None,
    Answer,
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
}

#[derive(Debug)]
struct State {
    lanes: Lanes,
    in_flight: InFlight,
    /// Set once; from then on nothing is accepted.
    closed: Option<DisconnectReason>,
    close_request: Option<CloseRequest>,
    /// Whether the driver knows already that there is something for it.
    signalled: bool,
    /// Whether a sender may be waiting for room.
    awaited: bool,
}

#[derive(Debug)]
pub(crate) struct Outbound {
    state: Mutex<State>,
    /// Whether the control lane is at its bound; written under the lock.
    control_is_full: AtomicBool,
    driver: AtomicWaker,
    room: Notify,
    limits: ConnectionLimits,
}

impl Outbound {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self {
            state: Mutex::new(State {
                lanes: Lanes::new(),
                in_flight: InFlight::default(),
                closed: None,
                close_request: None,
                signalled: false,
                awaited: false,
            }),
            control_is_full: AtomicBool::new(false),
            driver: AtomicWaker::new(),
            room: Notify::new(),
            limits,
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
        let full = state.lanes.queued_bytes(lane) >= self.limits.outbound_bytes
            || state.lanes.queued_messages(lane) >= self.limits.outbound_messages
            || (tracking == Tracking::Answer && state.in_flight.len() >= self.limits.in_flight);
        if full {
            state.awaited = true;
            return Err(Refused::Full);
        }
        state.lanes.push(lane, frame);
        let answer = match tracking {
            Tracking::None => None,
            Tracking::Answer => Some(state.in_flight.insert(
                id.clone(),
                Sent {
                    message_type,
                    at: Instant::now(),
                },
            )),
        };
        self.signal(state);
        Ok(answer)
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
        self.note_control(&state);
    }

    /// Whether the peer leaves so many answers untaken that no more should be made.
    pub(crate) fn control_is_full(&self) -> bool {
        self.control_is_full.load(Ordering::Relaxed)
    }

    fn note_control(&self, state: &State) {
        let full = state.lanes.queued_bytes(LaneKind::Control) >= self.limits.control_bytes;
        self.control_is_full.store(full, Ordering::Relaxed);
    }

    /// Tells the driver what there is to do, and gives it what it wants.
    pub(crate) fn take_work(&self, wanted: Wanted<'_>) -> Work {
        let mut state = self.lock();
        state.signalled = false;
        let filled = match wanted {
            Wanted::Write(write) => state.lanes.fill(write),
            Wanted::Nothing => 0,
            Wanted::Discard => {
                state.lanes.discard_control();
                0
            }
        };
        self.note_control(&state);
        let work = Work {
            filled,
            close_request: state.close_request.take(),
            answers_awaited: state.in_flight.len() > 0,
            lanes_are_empty: state.lanes.is_empty(),
        };
        self.wake_senders(state);
        work
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

    /// Expects an answer to a message of the driver's own.
    pub(crate) fn track(
        &self,
        id: MessageId,
        message_type: &'static str,
    ) -> oneshot::Receiver<AnswerResult> {
        self.lock().in_flight.insert(
            id,
            Sent {
                message_type,
                at: Instant::now(),
            },
        )
    }

    /// Resolves a tracked message; says what it was.
    pub(crate) fn resolve(&self, id: &MessageId, answer: AnswerResult) -> Option<Sent> {
        let mut state = self.lock();
        let sent = state.in_flight.resolve(id, answer);
        self.wake_senders(state);
        sent
    }

    pub(crate) fn expire(&self, limit: Instant) {
        let mut state = self.lock();
        state.in_flight.expire(limit);
        self.wake_senders(state);
    }

    /// Accepts nothing more; what is queued may still be written.
    pub(crate) fn close(&self, reason: &DisconnectReason) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| reason.clone());
        drop(state);
        self.room.notify_waiters();
    }

    /// No answer will come any more: everything unanswered resolves with what is known.
    pub(crate) fn fail_answers(&self, reason: &DisconnectReason) {
        self.lock()
            .in_flight
            .fail_all(&SendError::Lost(reason.clone()));
    }

    /// The connection is gone. Returns how many messages were accepted and never written.
    pub(crate) fn finish(&self, reason: &DisconnectReason) -> usize {
        self.close(reason);
        self.fail_answers(reason);
        let mut state = self.lock();
        let unsent = state.lanes.queued_messages(LaneKind::Normal);
        state.lanes = Lanes::new();
        unsent
    }

    fn wake_senders(&self, mut state: MutexGuard<'_, State>) {
        // Waking at half the bound lets a batch through at a time.
        let room = state.lanes.queued_bytes(LaneKind::Normal) <= self.limits.outbound_bytes / 2
            && state.lanes.queued_messages(LaneKind::Normal) <= self.limits.outbound_messages / 2;
        let wake = room && std::mem::take(&mut state.awaited);
        drop(state);
        if wake {
            self.room.notify_waiters();
        }
    }
}
