//! All of it at once, with real processes and real files, and checked.
//!
//! ```text
//!            stdin = lifeline              stdout = witness
//! demo ──┬─────────────────────> service ──────────┐
//!        ├─────────────────────> agent 1 ──────────┤
//!        ├─────────────────────> agent N ──────────┤
//!        └──────────── witness ────────────────────┴──> stdin of the janitor
//! ```
//!
//! Nothing is left behind, whatever ends the demonstration. Each child has one end of a pipe as
//! its standard input and ends in an orderly way when the other end, which only the demonstration
//! has, is gone: closed on purpose, or by the operating system after `SIGKILL`. The janitor waits
//! until every process that writes to its pipe has ended, and removes the scratch folder then; it
//! is the only one that does, so that the way of the worst case is the way of every case.

mod janitor;
mod outcome;
mod processes;
mod run;
mod scratch;
mod source;
mod view;

pub(crate) use janitor::JanitorCommand;
pub(crate) use run::DemoCommand;
