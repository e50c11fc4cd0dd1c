//! The service's store: what handlers did, the ledger, mail, dead letters and the journal, in one
//! embedded database.
//!
//! [`Store::commit`] stores the effects of many messages, the fact that these are done, and what
//! their senders are to be told, in one transaction. So after a crash each message is
//! either done, effects and outcome together, or not done at all and will be sent again.
//!
//! # Why redb, and how
//! It is Rust alone, so it builds for every target without a C compiler, and its commits are
//! atomic: a page is never overwritten while the last commit refers to it. Of its settings:
//!
//! - **Two phases, two syncs per commit.** With one, after a crash the newest commit whose checksums
//!   all verify counts: a flipped bit in the newest one looks like a torn commit, and what was
//!   acknowledged would be gone without a word. With two, a commit is on the disk before it counts,
//!   so one that does not verify is reported as damage. The second sync is of a single page, and
//!   many messages share it.
//! - **Verified when opened.** The checksum of every page is looked at, also after a clean end, so
//!   that damage is an error here and no surprise later. That reads the whole file, whose size is
//!   bounded by the limits of this module; it also makes the allocator tables that would spare a
//!   scan after a crash ("quick repair") useless, so commits do not write them.
//! - **A bounded cache**, [`CACHE_BYTES`].

mod backend;
mod commit;
mod dead_letters;
mod effects;
mod error;
mod files;
mod journal;
mod mail;
mod reader;
mod record;
mod rows;
mod shared;
mod shelf;
mod store;
mod tables;

pub use dead_letters::{
    DeadLetter, Direction, KeptDeadLetter, MAX_DEAD_LETTER_BYTES_PER_ACCOUNT,
    MAX_DEAD_LETTERS_PER_ACCOUNT,
};
pub use effects::{Effects, Origin, Refusal, Work};
pub use error::StoreError;
pub use files::SCHEMA;
pub use journal::{JournalEntry, JournalOutcome, MAX_JOURNAL};
pub use mail::{KeptMail, MAX_MAIL_BYTES_PER_ACCOUNT, MAX_MAIL_PER_ACCOUNT, Mail};
pub use reader::Reader;
pub use rows::{Row, Rows};
pub use shared::CACHE_BYTES;
pub use store::{Journal, OpenReport, SetAside, Store, StoreOptions};
