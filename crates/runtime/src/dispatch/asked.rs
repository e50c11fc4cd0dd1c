//! What the peer said of the answer that it wants, from the arrival of its request to the answer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use migration_ipc_protocol::extensions::RequestHead;
use migration_ipc_protocol::messages::ErrorCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outcome::HandlerError;

/// The most items that may be granted and not sent. A peer that grants more gains nothing: the
/// number is so large that nobody gets there, and small enough never to overflow.
const MAX_GRANTED: usize = 1 << 30;

/// Why nobody waits for an answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    Cancelled,
    Deadline,
}

/// A request of the peer that is not answered yet. The session, the handler and what the handler
/// passes on share it.
#[derive(Debug)]
pub(crate) struct Asked {
    deadline: Option<Instant>,
    why: OnceLock<GivenUp>,
    /// Fires when nobody waits any more; `why` says why.
    given_up: CancellationToken,
    /// Items that may be sent; `None` when the request takes none.
    grants: Option<Semaphore>,
    /// Whether a handler has what sends its items. There is one, so that they are numbered.
    claimed: AtomicBool,
    /// Whether it has its final answer. Written and read under the lock of the lanes alone.
    answered: AtomicBool,
}

impl Asked {
    pub(crate) fn new(head: RequestHead, now: Instant) -> Self {
        let items = head.items.map(|items| usize::try_from(items).unwrap_or(0));
        Self {
            deadline: head.deadline.map(|deadline| now + deadline),
            why: OnceLock::new(),
            given_up: CancellationToken::new(),
            grants: items.map(Semaphore::new),
            claimed: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Nobody waits any more. The first reason counts.
    pub(crate) fn give_up(&self, why: GivenUp) {
        if self.why.set(why).is_ok() {
            self.given_up.cancel();
        }
    }

    /// Fires when nobody waits any more.
    pub(crate) fn given_up(&self) -> &CancellationToken {
        &self.given_up
    }

    /// The answer to a request that no handler has begun, if nobody waits for it any more.
    pub(crate) fn refusal(&self) -> Option<HandlerError> {
        if self.why.get().is_none()
            && self
                .deadline
                .is_some_and(|deadline| deadline <= Instant::now())
        {
            self.give_up(GivenUp::Deadline);
        }
        let error = match self.why.get()? {
            GivenUp::Cancelled => {
                HandlerError::new("the request was cancelled").with_code(ErrorCode::Cancelled)
            }
            GivenUp::Deadline => HandlerError::new("the deadline of the request has passed")
                .with_code(ErrorCode::Deadline),
        };
        Some(error)
    }

    // --- items -----------------------------------------------------------------------------------

    /// Items that may be sent; `None` when the request takes none.
    pub(crate) fn grants(&self) -> Option<&Semaphore> {
        self.grants.as_ref()
    }

    /// The peer takes more items. Only the session calls it, so nothing is added meanwhile.
    pub(crate) fn grant(&self, items: u32) {
        if let Some(grants) = &self.grants {
            let room = MAX_GRANTED.saturating_sub(grants.available_permits());
            grants.add_permits(usize::try_from(items).unwrap_or(room).min(room));
        }
    }

    /// Whether the caller is the first that wants to send the items.
    pub(crate) fn claim_items(&self) -> bool {
        self.grants.is_some() && !self.claimed.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn set_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}

const _: () = assert!(MAX_GRANTED < Semaphore::MAX_PERMITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_add_up_to_a_bound() {
        let head = RequestHead {
            items: Some(1),
            ..RequestHead::NONE
        };
        let asked = Asked::new(head, Instant::now());
        let granted = || asked.grants().unwrap().available_permits();
        asked.grant(1024);
        assert_eq!(granted(), 1025);
        for _ in 0..3 {
            asked.grant(u32::MAX);
            assert_eq!(granted(), MAX_GRANTED);
        }
    }

    #[test]
    fn the_first_reason_to_give_up_counts() {
        let asked = Asked::new(RequestHead::NONE, Instant::now());
        assert_eq!(asked.refusal(), None);
        asked.give_up(GivenUp::Cancelled);
        asked.give_up(GivenUp::Deadline);
        assert_eq!(asked.refusal().unwrap().code, ErrorCode::Cancelled);
    }
}
