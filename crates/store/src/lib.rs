//! What migration-ipc keeps on disk, so that nothing is lost with a process.
//!
//! Everything here blocks on the disk, and knows neither connections nor tasks. All of it goes
//! through the small seam of [`disk`], so that tests can crash the disk at every step.

pub mod disk;
pub mod ledger;
pub mod outbox;
#[doc(hidden)]
pub mod planted;
pub mod state;

pub use ledger::{Begin, Ledger, MAX_REPLY, OutboxKey, StoredOutcome, Ticket};
pub use state::{
    DeadLetter, Direction, Effects, Journal, JournalEntry, JournalOutcome, KeptDeadLetter,
    KeptMail, Mail, OpenReport, Origin, Reader, Refusal, Rows, SetAside, Store, StoreError,
    StoreOptions, Work,
};
