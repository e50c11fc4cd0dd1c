//! Messages received and not yet handled, and the handlers at work.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, Stream};
use migration_ipc_protocol::limits::MAX_BATCH;
use migration_ipc_protocol::{Announcement, MessageId};
use migration_ipc_store::planted::{PlantedBug, is_planted};
use tokio::time::Instant;

use super::chunk_room::Reservation;
use super::rewind::rewind;
use super::session::Seat;
use crate::config::ConnectionConfig;
use crate::dispatch::{
    Asked, HandlerError, HandlerFuture, OnSuccess, Order, Outcome, OutcomeKind, panicked,
};
use crate::store::{Conclusion, Ending, Entry, EntryStart};
use crate::telemetry::TypeMetrics;

/// What is known of a message besides its handler.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: MessageId,
    /// The metrics of the message's type.
    pub(crate) metrics: Arc<TypeMetrics>,
    pub(crate) size: usize,
    pub(crate) received: Instant,
    pub(crate) success: OnSuccess,
    pub(crate) credit: CreditUse,
    pub(crate) named: Named,
    /// What the message announces, should its handler accept it.
    pub(crate) announcement: Option<Box<Announcement>>,
    /// What the store's books say of it, if they say anything.
    pub(crate) entry: Option<Arc<Entry>>,
    /// What its sender said of the answer that it wants, if it did.
    pub(crate) asked: Option<Arc<Asked>>,
    /// The room that it takes, if it came in chunks.
    pub(crate) room: Option<Box<Reservation>>,
}

impl Job {
    /// What it takes of the inbox: what came in chunks has room of its own, so that no message of
    /// that kind keeps the connection from being read until its handler has ended.
    fn inbox_size(&self) -> usize {
        if self.room.is_some() { 0 } else { self.size }
    }

    fn is_durable(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_durable())
    }
}

/// By what the answer to a message names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Id,
    /// The number of its frame, perhaps together with others.
    Frame(u64),
    /// Its place in the batch that it came in.
    Seat(Seat),
}

/// Whether a message used up credit, which is granted anew when it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CreditUse {
    Used,
    Exempt,
}

/// Whether handlers may be begun, besides those at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starting {
    Allowed,
    /// The peer leaves its answers untaken: no more are made.
    Held,
}

/// How far an inbox lets itself be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Up to its bounds.
    Usual,
    /// Up to twice its bounds: the peer keeps to its credit, so what comes on top is control; or
    /// an answer is awaited that may be behind the messages, and the handler that waits for it
    /// may be what keeps them from being handled.
    Extended,
    /// One batch further: a peer that keeps to its credit may send one on the last of it.
    ExtendedByABatch,
}

/// A message whose handler has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) job: Job,
    pub(crate) end: HandlerEnd,
}

/// How a message left its handler.
#[derive(Debug)]
pub(crate) enum HandlerEnd {
    Ran(OutcomeKind),
    /// It was known without the handler.
    Skipped(Conclusion),
}

/// A reply on its way in pieces: the message that it answers, its bytes, and what came of it.
type Replying = Pin<Box<dyn Future<Output = (Job, usize, Result<(), HandlerError>)> + Send>>;

/// What there is to do for a message.
pub(crate) enum Task {
    Handler(HandlerFuture, Order),
    /// Refused before any handler was asked; answered in its turn all the same.
    Refused(HandlerError),
}

struct Waiting {
    job: Job,
    task: Task,
}

/// A message that is not answered yet, because it or one before it is being stored.
struct Unanswered {
    job: Job,
    ending: Ending,
}

/// The inbox of one connection.
///
/// Handlers start in the order of their messages. One runs at a time, except those that were
/// registered as concurrent. They are polled by the connection's own task, so a connection costs
/// no second one, and a handler that waits never keeps the driver from reading or writing.
///
/// A message whose effects are being stored waits in a third stage, while the next handler runs.
/// The answers keep the order of the handlers' ends.
pub(crate) struct Inbox {
    waiting: VecDeque<Waiting>,
    current: Option<Running>,
    concurrent: FuturesUnordered<Running>,
    unanswered: VecDeque<Unanswered>,
    /// What goes out in pieces; nothing on most connections.
    replies: Option<Box<Replies>>,
    /// How many of those in `unanswered` announce somebody. What follows an announcement waits
    /// until that is accepted, so that its handler sees who sent it.
    announcing: usize,
    /// Invariant: the number and the sizes of the jobs in the five places above, and of those that
    /// were handed out and are not [done](Self::done); and the bytes that are [held](Self::hold).
    messages: usize,
    bytes: usize,
    /// The bytes of those of them that have no room of their own.
    inbox_bytes: usize,
    config: Arc<ConnectionConfig>,
}

impl Inbox {
    pub(crate) fn new(config: Arc<ConnectionConfig>) -> Self {
        Self {
            waiting: VecDeque::new(),
            current: None,
            concurrent: FuturesUnordered::new(),
            unanswered: VecDeque::new(),
            replies: None,
            announcing: 0,
            messages: 0,
            bytes: 0,
            inbox_bytes: 0,
            config,
        }
    }

    pub(crate) fn push(&mut self, job: Job, task: Task) {
        self.messages += 1;
        self.bytes += job.size;
        self.inbox_bytes += job.inbox_size();
        self.waiting.push_back(Waiting { job, task });
    }

    /// Counts bytes that are kept for a message which was answered as far as this inbox goes.
    pub(crate) fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.inbox_bytes += bytes;
    }

    /// They are not kept any more.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.inbox_bytes -= bytes;
    }

    pub(crate) fn len(&self) -> usize {
        self.messages
    }

    /// Bytes of the messages that are not answered yet.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// When the oldest of the messages whose handling has not ended was received.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|waiting| &waiting.job);
        let running = self.current.iter().chain(self.concurrent.iter());
        let unanswered = self.unanswered.front().map(|unanswered| &unanswered.job);
        waiting
            .into_iter()
            .chain(unanswered)
            .chain(running.filter_map(|running| running.job.as_ref()))
            .map(|job| job.received)
            .min()
    }

    /// Whether the peer should be read from no further.
    pub(crate) fn is_full(&self, patience: Patience) -> bool {
        let (factor, further) = match patience {
            Patience::Usual => (1, 0),
            Patience::Extended => (2, 0),
            Patience::ExtendedByABatch => (2, MAX_BATCH),
        };
        self.messages >= self.config.limits.inbox_messages * factor + further
            || self.inbox_bytes >= self.config.limits.inbox_bytes * factor
    }

    /// Whether the next message could be begun now.
    pub(crate) fn can_start(&self) -> bool {
        self.next_startable().is_some()
    }

    /// Whether nobody waits to be answered: what ends now may be answered at once.
    pub(crate) fn all_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// Lets a message be answered in its turn.
    pub(crate) fn answer_later(&mut self, job: Job, ending: Ending) {
        self.announcing += usize::from(job.announcement.is_some());
        self.unanswered.push_back(Unanswered { job, ending });
    }

    /// The next message that can be answered, if its turn has come.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<(Job, Conclusion)> {
        let Some(Unanswered { job, mut ending }) = self.unanswered.pop_front() else {
            return Poll::Pending;
        };
        let stored = match &mut ending {
            Ending::Known(_) => Poll::Pending,
            Ending::Committing(commit) | Ending::Journaling(_, commit) => Pin::new(commit).poll(cx),
        };
        let conclusion = match (ending, stored) {
            (Ending::Known(told), _) | (Ending::Journaling(told, _), Poll::Ready(_)) => told,
            (Ending::Committing(_), Poll::Ready(stored)) => Conclusion::of(stored),
            (Ending::Committing(_), Poll::Pending)
                if is_planted(PlantedBug::AcknowledgeBeforeCommit) =>
            {
                Conclusion::Handled
            }
            (ending, Poll::Pending) => {
                self.unanswered.push_front(Unanswered { job, ending });
                return Poll::Pending;
            }
        };
        self.announcing -= usize::from(job.announcement.is_some());
        if self.unanswered.is_empty() {
            self.unanswered.shrink_to(8);
        }
        Poll::Ready((job, conclusion))
    }

    /// A message that was handed out is answered.
    pub(crate) fn done(&mut self, job: &Job) {
        self.messages -= 1;
        self.bytes -= job.size;
        self.inbox_bytes -= job.inbox_size();
        if self.waiting.is_empty() {
            // An idle connection gives back what a burst made it allocate.
            self.waiting.shrink_to(8);
        }
    }

    /// The reply to a message that was handed out goes out in pieces, of so many bytes together.
    /// `sending` ends when all of it is written, or none of it counts.
    pub(crate) fn reply_in_pieces(
        &mut self,
        mut job: Job,
        bytes: usize,
        sending: impl Future<Output = Result<(), HandlerError>> + Send + 'static,
    ) {
        // What was asked is not needed any more, and makes room for others.
        self.bytes -= job.size;
        self.inbox_bytes -= job.inbox_size();
        (job.size, job.room) = (0, None);
        let replies = self.replies.get_or_insert_default();
        replies.bytes += bytes;
        let replying = sending.map(move |sent| (job, bytes, sent));
        replies.under_way.push(Box::pin(replying));
    }

    /// Whether so much is on its way in pieces that nothing further should be sent in that way.
    pub(crate) fn replies_are_full(&self) -> bool {
        let most = self.config.limits.chunked_bytes;
        self.replies.as_ref().is_some_and(|it| it.bytes >= most)
    }

    /// Sends replies in pieces until one of them is through.
    pub(crate) fn poll_replied(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<(Job, Result<(), HandlerError>)> {
        let Some(replies) = &mut self.replies else {
            return Poll::Pending;
        };
        let Some((job, bytes, sent)) = ready!(Pin::new(&mut replies.under_way).poll_next(cx))
        else {
            return Poll::Pending;
        };
        replies.bytes -= bytes;
        if replies.under_way.is_empty() {
            self.replies = None;
        }
        Poll::Ready((job, sent))
    }

    /// Runs handlers until one ends or all of them wait.
    pub(crate) fn poll_finished(
        &mut self,
        cx: &mut Context<'_>,
        starting: Starting,
    ) -> Poll<Finished> {
        if let Some(running) = &mut self.current
            && let Poll::Ready(finished) = Pin::new(running).poll(cx)
        {
            self.current = None;
            return Poll::Ready(finished);
        }
        if !self.concurrent.is_empty()
            && let Poll::Ready(Some(finished)) = Pin::new(&mut self.concurrent).poll_next(cx)
        {
            return Poll::Ready(finished);
        }
        while let Some(order) = self.next_startable()
            && starting == Starting::Allowed
        {
            let Some(Waiting { job, task }) = self.waiting.pop_front() else {
                break;
            };
            rewind(&mut self.waiting);
            let given_up = job.asked.as_ref().and_then(|asked| asked.refusal());
            if let Some(error) = &given_up
                && !job.is_durable()
            {
                let end = HandlerEnd::Skipped(Conclusion::Failed(error.clone()));
                return Poll::Ready(Finished { job, end });
            }
            if let Some(entry) = &job.entry
                && let EntryStart::Skip(conclusion) = entry.begin()
            {
                let end = HandlerEnd::Skipped(conclusion);
                return Poll::Ready(Finished { job, end });
            }
            let future = match task {
                Task::Handler(future, _) => match given_up {
                    None => future,
                    // The books of a durable message say that it is refused.
                    Some(error) => {
                        let end = HandlerEnd::Ran(OutcomeKind::Failed(error));
                        return Poll::Ready(Finished { job, end });
                    }
                },
                Task::Refused(error) => {
                    let end = HandlerEnd::Ran(OutcomeKind::Failed(error));
                    return Poll::Ready(Finished { job, end });
                }
            };
            let mut running = Running {
                job: Some(job),
                future,
            };
            // Polled here for the first time, so that handlers start in order.
            if let Poll::Ready(finished) = Pin::new(&mut running).poll(cx) {
                return Poll::Ready(finished);
            }
            match order {
                Order::Sequential => self.current = Some(running),
                Order::Concurrent => {
                    self.concurrent.push(running);
                    // Its place in the set has a waker of its own, which only a poll registers.
                    if let Poll::Ready(Some(finished)) =
                        Pin::new(&mut self.concurrent).poll_next(cx)
                    {
                        return Poll::Ready(finished);
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Takes out what no handler has begun and nobody waits for any more. A durable message stays:
    /// its books are kept in the order of its stream.
    pub(crate) fn take_given_up(&mut self) -> Vec<(Job, HandlerError)> {
        let mut given_up = Vec::new();
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for waiting in self.waiting.drain(..) {
            let refusal = waiting.job.asked.as_ref().and_then(|asked| asked.refusal());
            match refusal.filter(|_| !waiting.job.is_durable()) {
                Some(error) => given_up.push((waiting.job, error)),
                None => kept.push_back(waiting),
            }
        }
        self.waiting = kept;
        given_up
    }

    /// Takes out everything that no handler has begun.
    pub(crate) fn take_waiting(&mut self) -> Vec<Job> {
        self.waiting.drain(..).map(|waiting| waiting.job).collect()
    }

    /// The order of the next message, if it may start now.
    fn next_startable(&self) -> Option<Order> {
        let order = match &self.waiting.front()?.task {
            Task::Handler(_, order) => *order,
            Task::Refused(_) => Order::Sequential,
        };
        if self.announcing > 0 {
            return None;
        }
        let room = match order {
            Order::Sequential => self.current.is_none(),
            Order::Concurrent => self.concurrent.len() < self.config.limits.concurrent_handlers,
        };
        room.then_some(order)
    }
}

/// A handler at work. Its panic is an outcome like any other.
struct Running {
    /// Taken when the handler ends.
    job: Option<Job>,
    future: HandlerFuture,
}

impl Future for Running {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished> {
        let future = &mut self.future;
        // After a panic the future is dropped and never polled again.
        let outcome = match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Outcome(outcome))) => outcome,
            Err(panic) => OutcomeKind::Failed(panicked(panic.as_ref())),
        };
        match self.job.take() {
            Some(job) => Poll::Ready(Finished {
                job,
                end: HandlerEnd::Ran(outcome),
            }),
            None => Poll::Pending,
        }
    }
}

/// Replies on their way in pieces, beside the handlers.
#[derive(Default)]
struct Replies {
    under_way: FuturesUnordered<Replying>,
    /// Of all of them together.
    bytes: usize,
}
