//! The reference service.
//!
//! ```text
//! handlers ──job──> keeper ──> desk ──> state (pure)
//!    ▲                └──> store: rows, ledger, outcome, journal in one commit
//!    └── how it ended ────────┴──> once stored: messages to agents
//! ```

mod agents;
mod arrival;
mod audit;
mod clock;
mod config;
mod desk;
mod ending;
mod entry_log;
mod handlers;
mod journal;
mod keeper;
mod kept;
mod key;
mod lease;
mod operators;
mod overview;
mod permissions;
mod policy;
mod record;
mod run;
mod snapshot;
mod state;
mod store;

pub(crate) use audit::{AuditLine, read as read_audit};
pub(crate) use journal::{page as journal_page, published_endpoint};
pub(crate) use key::UserKey;
pub(crate) use record::{CategoryState, Escalation, Note, Phase};
pub(crate) use run::ServiceCommand;
pub(crate) use store::{StateError, open_existing};
