//! Messages received and not yet handled, and the handlers at work.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{Announcement, MessageId};
use tokio::time::Instant;

use crate::config::ConnectionLimits;
use crate::dispatch::{HandlerError, HandlerFuture, OnSuccess, Order, Outcome, OutcomeKind};
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
    /// What the message announces, should its handler accept it.
    pub(crate) announcement: Option<Announcement>,
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
}

/// A message whose handling has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) job: Job,
    pub(crate) outcome: OutcomeKind,
}

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

/// The inbox of one connection.
///
/// Handlers start in the order of their messages. One runs at a time, except those that were
/// registered as concurrent. They are polled by the connection's own task, so a connection costs
/// no second one, and a handler that waits never keeps the driver from reading or writing.
pub(crate) struct Inbox {
    waiting: VecDeque<Waiting>,
    current: Option<Running>,
    concurrent: FuturesUnordered<Running>,
    /// Invariant: the number and the sizes of the jobs in the three places above.
    messages: usize,
    bytes: usize,
    limits: ConnectionLimits,
}

impl Inbox {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self {
            waiting: VecDeque::new(),
            current: None,
            concurrent: FuturesUnordered::new(),
            messages: 0,
            bytes: 0,
            limits,
        }
    }

    pub(crate) fn push(&mut self, job: Job, task: Task) {
        self.messages += 1;
        self.bytes += job.size;
        self.waiting.push_back(Waiting { job, task });
    }

    pub(crate) fn len(&self) -> usize {
        self.messages
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// When the oldest of the messages whose handling has not ended was received.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|waiting| &waiting.job);
        let running = self.current.iter().chain(self.concurrent.iter());
        waiting
            .into_iter()
            .chain(running.filter_map(|running| running.job.as_ref()))
            .map(|job| job.received)
            .min()
    }

    /// Whether the peer should be read from no further.
    pub(crate) fn is_full(&self, patience: Patience) -> bool {
        let factor = match patience {
            Patience::Usual => 1,
            Patience::Extended => 2,
        };
        self.messages >= self.limits.inbox_messages * factor
            || self.bytes >= self.limits.inbox_bytes * factor
    }

    /// Whether the next message could be begun now.
    pub(crate) fn can_start(&self) -> bool {
        self.next_startable().is_some()
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
            return self.finish(finished);
        }
        if !self.concurrent.is_empty()
            && let Poll::Ready(Some(finished)) = Pin::new(&mut self.concurrent).poll_next(cx)
        {
            return self.finish(finished);
        }
        while let Some(order) = self.next_startable()
            && starting == Starting::Allowed
        {
            let Some(Waiting { job, task }) = self.waiting.pop_front() else {
                break;
            };
            let future = match task {
                Task::Handler(future, _) => future,
                Task::Refused(error) => {
                    return self.finish(Finished {
                        job,
                        outcome: OutcomeKind::Failed(error),
                    });
                }
            };
            let mut running = Running {
                job: Some(job),
                future,
            };
            // Polled here for the first time, so that handlers start in order.
            if let Poll::Ready(finished) = Pin::new(&mut running).poll(cx) {
                return self.finish(finished);
            }
            match order {
                Order::Sequential => self.current = Some(running),
                Order::Concurrent => {
                    self.concurrent.push(running);
                    // Its place in the set has a waker of its own, which only a poll registers.
                    if let Poll::Ready(Some(finished)) =
                        Pin::new(&mut self.concurrent).poll_next(cx)
                    {
                        return self.finish(finished);
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Takes out everything that no handler has begun.
    pub(crate) fn refuse_waiting(&mut self, error: &HandlerError) -> Vec<Finished> {
        let refused: Vec<Finished> = self
            .waiting
            .drain(..)
            .map(|Waiting { job, .. }| Finished {
                job,
                outcome: OutcomeKind::Failed(error.clone()),
            })
            .collect();
        for Finished { job, .. } in &refused {
            self.messages -= 1;
            self.bytes -= job.size;
        }
        refused
    }

    /// The order of the next message, if it may start now.
    fn next_startable(&self) -> Option<Order> {
        let order = match &self.waiting.front()?.task {
            Task::Handler(_, order) => *order,
            Task::Refused(_) => Order::Sequential,
        };
        let room = match order {
            Order::Sequential => self.current.is_none(),
            Order::Concurrent => self.concurrent.len() < self.limits.concurrent_handlers,
        };
        room.then_some(order)
    }

    fn finish(&mut self, finished: Finished) -> Poll<Finished> {
        self.messages -= 1;
        self.bytes -= finished.job.size;
        if self.waiting.is_empty() {
            // An idle connection gives back what a burst made it allocate.
            self.waiting.shrink_to(8);
        }
        Poll::Ready(finished)
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
            Some(job) => Poll::Ready(Finished { job, outcome }),
            None => Poll::Pending,
        }
    }
}

/// The error of a handler that panicked; the panic hook has shown the details on our side.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> HandlerError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    HandlerError::new(format_args!("the handler panicked: {text}"))
        .with_code(ErrorCode::HandlerPanicked)
}
