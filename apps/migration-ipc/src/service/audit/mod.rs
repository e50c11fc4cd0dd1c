//! The audit log of the service: records on disk, in its data folder.
//!
//! ```text
//! connections ──record──> sink ──queue, bounded──> writer, one task ──> files
//! ```

mod file;
mod sink;
#[cfg(test)]
mod tests;

pub(crate) use file::{AuditLine, read};
pub(crate) use sink::{AuditFile, AuditWriter, open};
