//! The receiver's ledger: which messages of which outbox are done, and with what outcome.
//!
//! A durable message may arrive any number of times. [`Ledger::begin`] says whether its handler is
//! to run; a message that is done is answered with its first outcome instead. The ledger is kept
//! in memory and is stored by the commits of [`Store`](crate::Store), together with what the
//! handlers did.
//!
//! # Why it is bounded and yet forgets nothing
//! A sender sends number `n` only when every number up to `n - DELIVERY_WINDOW` is settled for
//! good. So one bit for each of the last [`DELIVERY_WINDOW`] numbers below the highest one says
//! everything, and whatever is older was settled long ago.
//!
//! [`DELIVERY_WINDOW`]: migration_ipc_protocol::limits::DELIVERY_WINDOW

mod book;
mod handle;
mod key;
mod order;
mod outcome;
mod window;

pub(crate) use book::{LedgerRow, Slot};
pub(crate) use handle::{Numbered, Outcomes, SharedBook};
pub(crate) use window::{Known, Window};

pub use book::{MAX_OUTBOXES, MAX_OUTBOXES_PER_ACCOUNT};
pub use handle::{Begin, Ledger, Ticket};
pub use key::OutboxKey;
pub use outcome::{MAX_REPLY, StoredOutcome};
