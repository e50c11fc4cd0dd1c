//! The reference agent: asks its user, backs up, reports.
//!
//! ```text
//! service ──messages──> inbox ──> desk ──> steps ──> terminal, backup, messages to the service
//! ```
//!
//! `steps` decides, without clock or I/O; `run` does what it decided.

mod backup_run;
mod consent;
mod inbox;
mod outbox;
mod prompt;
mod run;
mod steps;
mod wording;

pub(crate) use run::AgentCommand;
