//! Bugs planted on purpose: the simulation shows that it finds them.
//!
//! They exist only with the feature `planted-bugs`, which nothing but this project's own tests turns
//! on. Without it [`is_planted`] is constantly false, and the compiler removes what depends on it.

/// A mistake that this library could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// A service acknowledges a message when its handler has ended, stored or not.
    AcknowledgeBeforeCommit,
    /// A service handles whatever arrives.
    NoLedger,
    /// The ledger takes all outboxes of an account for one.
    LedgerWithoutOutbox,
    /// Messages overtake one of their stream that was put off.
    PutOffNotHeld,
    /// A message that is done is acknowledged without the reply of the first time.
    LostReply,
    /// Messages that come back from a lost connection line up behind those that wait.
    ReorderOnRetry,
    /// Every connection resets the backoff, however short it was.
    BackoffResetOnConnect,
    /// A message is settled once it was sent.
    SettleBeforeAcknowledgment,
    /// The outbox does not wait for the disk.
    SyncSkipped,
    /// After a crash the outbox gives out numbers again.
    NumbersReused,
    /// A crash can leave some of the messages that were to be accepted together.
    GroupsTorn,
    /// A full queue drops its oldest message and tells nobody.
    OldestDroppedSilently,
    /// An acknowledgment of many messages covers what lies between them, answered or not.
    RangeOverUnanswered,
    /// The outcomes of a batch are told from the last to the first.
    OutcomesReversed,
}

impl PlantedBug {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::AcknowledgeBeforeCommit,
        Self::NoLedger,
        Self::LedgerWithoutOutbox,
        Self::PutOffNotHeld,
        Self::LostReply,
        Self::ReorderOnRetry,
        Self::BackoffResetOnConnect,
        Self::SettleBeforeAcknowledgment,
        Self::SyncSkipped,
        Self::NumbersReused,
        Self::GroupsTorn,
        Self::OldestDroppedSilently,
        Self::RangeOverUnanswered,
        Self::OutcomesReversed,
    ];
}

#[cfg(feature = "planted-bugs")]
mod on {
    use std::cell::Cell;

    use super::PlantedBug;

    thread_local! {
        static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
    }

    /// Plants a bug in what runs on this thread from now on, or none.
    pub fn plant(bug: Option<PlantedBug>) {
        PLANTED.set(bug);
    }

    /// Whether this bug is planted.
    pub fn is_planted(bug: PlantedBug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use on::{is_planted, plant};

/// Whether this bug is planted: it is not.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn is_planted(_: PlantedBug) -> bool {
    false
}
