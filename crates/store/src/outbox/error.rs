//! Why the outbox cannot do what was asked.

use std::io;

use thiserror::Error;

use super::limits::{MAX_BATCH_BYTES, MAX_RECORD_BODY, MAX_SEQ};

/// An operation of the outbox failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The caller's message is larger than a record can be.
    #[error("a message of {size} bytes is larger than the outbox keeps ({MAX_RECORD_BODY})")]
    TooLarge {
        /// Its length in bytes.
        size: usize,
    },
    /// So much waits for a sync that this message has to wait for it, too: sync, then append again.
    #[error(
        "more than {MAX_BATCH_BYTES} bytes at once are more than the outbox takes: send fewer together"
    )]
    BatchFull,
    /// The last sequence number was given.
    #[error("the outbox has used all sequence numbers up to {MAX_SEQ}")]
    Exhausted,
    /// No durable message with this number waits: it was settled, or never was.
    #[error("no message with the number {seq} waits in the outbox")]
    NotWaiting {
        /// The number.
        seq: u64,
    },
    /// The message was intact when the outbox was opened, and is not any more. Nothing but settling
    /// it is left to do; its bytes are set aside when the outbox is opened the next time.
    #[error("the message with the number {seq} is damaged on the disk")]
    Damaged {
        /// Its number.
        seq: u64,
    },
    /// The disk failed, or is full.
    #[error("cannot {action} {file}: {source}")]
    Disk {
        /// What was to be done.
        action: &'static str,
        /// With which file of the outbox's folder.
        file: String,
        /// What the disk says.
        source: io::Error,
    },
}

impl OutboxError {
    /// Whether the disk has no room: the same may succeed later.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if is_full(source))
    }

    /// Makes an error of the disk's into one of the outbox's.
    pub(super) fn disk(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Disk {
            action,
            file,
            source,
        }
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
