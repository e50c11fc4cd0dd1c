//! What a send can come to.

use migration_ipc_protocol::extensions::ChunksEndCode;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{EncodeError, IpcMessage};
use thiserror::Error;

use super::reason::DisconnectReason;
use crate::reconnecting::{ConnectionTrouble, OutboxFailure};

/// The peer's answer to a message.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The peer's handler finished and had nothing to say.
    Handled,
    /// The peer's handler replied with this message, as it came: who sent it is sure, what it says
    /// (a `userId` too) is not.
    Replied(IpcMessage),
}

/// The peer's refusal of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The peer's words.
    pub error: String,
    /// The machine-readable cause, from peers that negotiated error codes.
    pub code: Option<ErrorCode>,
}

impl Rejection {
    /// Whether sending the same message again later may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.code.as_ref().is_some_and(ErrorCode::is_retryable)
    }
}

/// Why a message was not sent, or what is known about one that was.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message cannot be put on the wire; nothing was written.
    #[error("the message cannot be encoded, nothing was sent: {0}")]
    Encode(#[from] std::sync::Arc<EncodeError>),
    /// The connection's outbound lane is full (`try_send` only), or the queue of a reconnecting
    /// client (where its type's overflow says so); nothing was written.
    #[error("the queue is full, nothing was sent")]
    Full,
    /// The connection ended before anything of the message was handed to the operating system.
    #[error("the connection has ended ({0}), nothing was sent")]
    Closed(DisconnectReason),
    /// The client tries no more to connect.
    #[error("the client gave up ({0}), nothing was sent")]
    GaveUp(ConnectionTrouble),
    /// The message was to be kept on disk, and the client has no outbox.
    #[error("the client has no outbox to keep the message in, nothing was sent")]
    NoOutbox,
    /// The message cannot be kept on disk, so it was not accepted.
    #[error("the message cannot be kept on disk, nothing was sent: {0}")]
    NotStored(std::sync::Arc<OutboxFailure>),
    /// The client stopped. The message is in its outbox, and goes out when that is opened again.
    #[error("the client stopped; the message is kept and will be sent by the next one")]
    Kept,
    /// An operator dropped the message before it was sent.
    #[error("an operator dropped the message, nothing was sent")]
    Dropped,
    /// The message is longer than what the peer takes in chunks; nothing was sent.
    #[error("a message of {size} bytes is over the {limit} that the peer takes, nothing was sent")]
    TooLarge {
        /// The length of its envelope in bytes.
        size: usize,
        /// What the peer takes.
        limit: usize,
    },
    /// The message is longer than a frame, and the peer takes nothing in chunks: it is a plain one,
    /// or one of the two sides does not want that. Nothing was sent.
    #[error(
        "a message of {size} bytes is over the {limit} of a frame, and the peer takes no longer \
         ones in chunks, nothing was sent"
    )]
    NoChunks {
        /// The length of its envelope in bytes.
        size: usize,
        /// What fits a frame.
        limit: usize,
    },
    /// The peer did not take the whole of a message that was sent in chunks, so it handled nothing
    /// of it.
    #[error("the peer did not take the message ({code}): {}", .error.escape_debug())]
    NotTaken {
        /// Why, for programs.
        code: ChunksEndCode,
        /// Why, for people.
        error: String,
    },
    /// The message is sensitive, and goes over encrypted connections alone
    /// ([`SensitivePolicy::Encrypted`](crate::SensitivePolicy::Encrypted)); this one is not, or
    /// (`try_send` only) not yet.
    #[error("the message is sensitive and the connection is not encrypted, nothing was sent")]
    NotEncrypted,
    /// The peer refused the message.
    #[error("the peer refused the message: {}", .0.error.escape_debug())]
    Rejected(Rejection),
    /// The peer refused the batch that the message was in: nothing of that was handled.
    #[error("the peer refused the batch that the message was in: {}", .0.error.escape_debug())]
    BatchRejected(Rejection),
    /// No answer came in time; whether the message was handled is unknown.
    #[error("no answer in time; whether the message was handled is unknown")]
    Unanswered,
    /// The message was handed to the operating system, or was in the write that was cut, and the
    /// connection ended before the answer; whether it was handled is unknown.
    #[error(
        "the connection ended ({0}) before the answer; whether the message was handled is unknown"
    )]
    Lost(DisconnectReason),
}

impl SendError {
    /// Whether it is certain that the peer did not handle the message.
    #[must_use]
    pub fn is_certainly_unhandled(&self) -> bool {
        match self {
            Self::Encode(_)
            | Self::Full
            | Self::Closed(_)
            | Self::Dropped
            | Self::GaveUp(_)
            | Self::NoOutbox
            | Self::NotStored(_)
            | Self::TooLarge { .. }
            | Self::NoChunks { .. }
            | Self::NotTaken { .. }
            | Self::NotEncrypted
            | Self::Rejected(_)
            | Self::BatchRejected(_) => true,
            Self::Kept | Self::Unanswered | Self::Lost(_) => false,
        }
    }
}

impl From<EncodeError> for SendError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(std::sync::Arc::new(error))
    }
}
