//! The reference agent: asks its user, backs up, reports.
//!
//! ```text
//! service ──> inbox ──┐
//! user ─────> prompt ─┼──> run ──> steps ──> run ──┬──> what the user sees
//! backup's end ───────┘                            ├──> backup_run ──> service
//!                                                  └──> outbox ──────> service
//! ```
//!
//! `steps` decides, without clock or I/O; `run` does what it decided.

mod backup_run;
mod command;
mod consent;
mod inbox;
mod memory;
mod outbox;
mod prompt;
mod run;
mod steps;
mod wording;

pub(crate) use command::AgentCommand;
