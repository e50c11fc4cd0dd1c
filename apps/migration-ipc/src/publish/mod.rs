//! `publish`: sends what scripts give it, as an agent does.
//!
//! ```text
//! stdin ──lines──> command ──batch──> client ──> outbox ──> service
//! stdout <──report──┴──────── receipts ───┘
//! ```

mod command;
mod lines;
mod report;

pub(crate) use command::PublishCommand;
