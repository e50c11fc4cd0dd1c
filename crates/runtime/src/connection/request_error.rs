//! What a request can come to besides its reply.

use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{MessageType, PayloadError};
use thiserror::Error;

use super::error::{Rejection, SendError};
use super::reason::DisconnectReason;

/// Why a request has no reply, and what is known of its fate.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The peer does not say what its replies answer, cannot stream them, or has not shown yet what
    /// it is; nothing was sent. [`send_acknowledged`](super::IpcConnection::send_acknowledged)
    /// works with every peer.
    #[error("the peer did not negotiate what the request needs, nothing was sent")]
    NotNegotiated,
    /// Nothing was sent: it cannot be encoded, or the connection ended before.
    #[error(transparent)]
    NotSent(SendError),
    /// The deadline passed, or the caller gave up, while the request waited for room; nothing was
    /// sent.
    #[error("the request was given up before there was room for it, nothing was sent")]
    TooLate,
    /// The peer refused the request: its handler failed, there is none, or the request came to it
    /// too late ([`ErrorCode::Deadline`]) or was cancelled ([`ErrorCode::Cancelled`]) before a
    /// handler began.
    #[error("the peer refused the request: {}", .0.error.escape_debug())]
    Rejected(Rejection),
    /// The deadline passed before the reply came. The peer is told so; whether it handled the
    /// request is unknown.
    #[error("no reply before the deadline; whether the request was handled is unknown")]
    Deadline,
    /// The [`Cancellation`](crate::Cancellation) that the request was bound to fired. The peer is
    /// told so; whether it handled the request is unknown.
    #[error("the request was cancelled; whether it was handled is unknown")]
    Cancelled,
    /// Whether the request was handled is unknown: the connection ended before the reply.
    #[error(transparent)]
    Unknown(SendError),
    /// The peer handled the request, and has nothing to say to it.
    #[error("the request was handled, and answered without a reply")]
    NoReply,
    /// The peer handled the request, and replied (or sent an item) of another type.
    #[error("the request was answered with {} instead of {expected}", found.escape_debug())]
    UnexpectedType {
        /// The type that was expected.
        expected: &'static str,
        /// The type that came.
        found: MessageType,
    },
    /// The peer handled the request, and its reply, or an item, cannot be read.
    #[error("the reply cannot be read: {}", .0.to_string().escape_debug())]
    BadReply(PayloadError),
    /// The peer handled the request, and its reply, or an item, names another account than the
    /// peer's. It is counted and recorded as in any other message.
    #[error("the reply names another account than that of its sender")]
    IdentityMismatch,
}

impl RequestError {
    /// Whether it is certain that the peer did not handle the request.
    #[must_use]
    pub fn is_certainly_unhandled(&self) -> bool {
        match self {
            Self::NotNegotiated | Self::NotSent(_) | Self::TooLate | Self::Rejected(_) => true,
            Self::Deadline
            | Self::Cancelled
            | Self::Unknown(_)
            | Self::NoReply
            | Self::UnexpectedType { .. }
            | Self::BadReply(_)
            | Self::IdentityMismatch => false,
        }
    }

    /// The peer's code, when it refused the request and said why in a form for programs.
    #[must_use]
    pub fn code(&self) -> Option<&ErrorCode> {
        match self {
            Self::Rejected(rejection) => rejection.code.as_ref(),
            Self::NotNegotiated
            | Self::NotSent(_)
            | Self::TooLate
            | Self::Deadline
            | Self::Cancelled
            | Self::Unknown(_)
            | Self::NoReply
            | Self::UnexpectedType { .. }
            | Self::BadReply(_)
            | Self::IdentityMismatch => None,
        }
    }

    pub(super) fn aborted() -> Self {
        Self::Unknown(SendError::Lost(DisconnectReason::Aborted))
    }
}

impl From<SendError> for RequestError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Rejected(rejection) => Self::Rejected(rejection),
            error if error.is_certainly_unhandled() => Self::NotSent(error),
            error => Self::Unknown(error),
        }
    }
}
