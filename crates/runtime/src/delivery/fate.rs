//! What is known of a message in the end.

use std::fmt;

use migration_ipc_protocol::IpcMessage;

use crate::connection::{Answer, AnswerResult, Rejection, SendError};

/// What became of a message, as far as its sender can know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Fate {
    /// It certainly never reached the peer.
    NotSent(SendError),
    /// It was handed to the operating system, and the peer, which was still connected when the time
    /// for an answer was over, did not answer: a plain agent never does, nor does a service for a
    /// type that it registered as [silent](crate::HandlerOptions::silent).
    Sent,
    /// The peer handled it.
    Handled,
    /// The peer handled it and replied with this message.
    Replied(IpcMessage),
    /// The peer refused it: for good, unless it says
    /// [otherwise](Rejection::is_retryable) of a message that is kept in memory.
    Rejected(Rejection),
    /// Its time to live was over before it was sent.
    Expired,
    /// A newer message about the same thing took its place before it was sent.
    Superseded,
    /// It may have been handled or not.
    Unknown(SendError),
}

impl Fate {
    /// A short name from a closed set, fit for a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotSent(_) => "not_sent",
            Self::Sent => "sent",
            Self::Handled => "handled",
            Self::Replied(_) => "replied",
            Self::Rejected(_) => "rejected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether the peer's handler is known to have come to its end.
    #[must_use]
    pub fn is_handled(&self) -> bool {
        matches!(self, Self::Handled | Self::Replied(_))
    }

    /// What an answer, or the want of one, says.
    pub(crate) fn of(answer: AnswerResult) -> Self {
        match answer {
            Ok(Answer::Handled) => Self::Handled,
            Ok(Answer::Replied(message)) => Self::Replied(message),
            Err(SendError::Rejected(rejection)) => Self::Rejected(rejection),
            // The time for the answer to what waits in a queue begins once it is written.
            Err(SendError::Unanswered) => Self::Sent,
            Err(error) if error.is_certainly_unhandled() => Self::NotSent(error),
            Err(error) => Self::Unknown(error),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => write!(f, "not sent: {error}"),
            Self::Sent => f.write_str("sent, unconfirmed"),
            Self::Handled => f.write_str("handled"),
            Self::Replied(message) => write!(f, "handled, with a {}", message.message_type),
            Self::Rejected(rejection) => write!(f, "rejected: {}", rejection.error.escape_debug()),
            Self::Expired => f.write_str("expired"),
            Self::Superseded => f.write_str("superseded by a newer one"),
            Self::Unknown(error) => write!(f, "unknown: {error}"),
        }
    }
}
