//! How a message ended.

use std::fmt;

use migration_ipc_protocol::messages::ErrorCode;
use serde::{Deserialize, Serialize};

/// The longest payload in bytes of a reply to a durable message. The reply is kept for as long as
/// the message may be sent again.
pub const MAX_REPLY: usize = 64 * 1024;

/// How a durable message ended, for good: what its sender is told, as often as it asks.
///
/// Its `Debug` shows how long the payload of a reply is, and not what it says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredOutcome {
    /// It was handled.
    Handled,
    /// It was handled, and answered with a message.
    Replied {
        /// The type of the answer.
        message_type: Box<str>,
        /// Its payload, JSON of at most [`MAX_REPLY`] bytes.
        payload: Box<str>,
    },
    /// It was refused.
    Rejected {
        /// The kind of failure. A [retryable](ErrorCode::is_retryable) one is never kept: the
        /// message was put off.
        code: ErrorCode,
        /// Why, for people.
        text: Box<str>,
    },
}

impl fmt::Debug for StoredOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handled => f.write_str("Handled"),
            Self::Replied {
                message_type,
                payload,
            } => f
                .debug_struct("Replied")
                .field("message_type", message_type)
                .field("payload", &format_args!("{} bytes", payload.len()))
                .finish(),
            Self::Rejected { code, text } => f
                .debug_struct("Rejected")
                .field("code", code)
                .field("text", text)
                .finish(),
        }
    }
}

impl StoredOutcome {
    /// Whether the message is not done: its sender is to send it again.
    #[must_use]
    pub fn is_put_off(&self) -> bool {
        matches!(self, Self::Rejected { code, .. } if code.is_retryable())
    }
}
