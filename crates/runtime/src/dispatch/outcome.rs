//! What a handler's work comes to: an acknowledgment, a reply, or an error.

use std::{error, fmt};

use migration_ipc_protocol::messages::{ErrorCode, UserId};
use migration_ipc_protocol::{
    EncodeError, EnvelopeHead, MessagePayload, MessageSerializer, RawValue,
};
use migration_ipc_store::Effects;

use crate::connection::SensitiveTypes;
use crate::store::Commit;

/// What a handler's work came to; see [`IntoOutcome`] for how handlers say it.
#[derive(Debug)]
pub struct Outcome(pub(crate) OutcomeKind);

#[derive(Debug)]
pub(crate) enum OutcomeKind {
    Handled,
    Replied(Box<dyn ReplyPayload>),
    Failed(HandlerError),
    /// To be stored before the peer is told how it ended.
    Effects(Box<Effects>),
    /// Being stored.
    Committing(Commit),
}

/// A message that is sent to the peer in place of the acknowledgment. One that does not fit a frame
/// (1 MiB) goes in pieces to a peer that negotiated [`Chunks`](crate::Capability::Chunks), up to what
/// both sides [take](crate::ConnectionLimits::chunked_bytes); the last reply to a streaming request
/// has to fit one. When it is too long, or not taken, the peer is told so, and that its message was
/// handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<P>(pub P);

/// Why a handler failed. The peer is told the text (`success: false`); the connection lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerError {
    pub(crate) code: ErrorCode,
    pub(crate) text: String,
}

impl HandlerError {
    /// A failure with this text.
    #[must_use]
    pub fn new(text: impl fmt::Display) -> Self {
        Self {
            code: ErrorCode::HandlerFailed,
            text: text.to_string(),
        }
    }

    /// The same with another code, for example [`ErrorCode::Busy`] when a retry makes sense.
    /// Peers that did not negotiate error codes see the text alone.
    #[must_use]
    pub fn with_code(mut self, code: ErrorCode) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// No `std::error::Error` for `HandlerError` itself: every error converts into it instead.
impl<E: error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// What a handler may return.
///
/// | returned | the peer gets |
/// |---|---|
/// | `()` | an acknowledgment, unless the type is registered as silent |
/// | `Reply(message)` | that message in place of the acknowledgment |
/// | `None::<Reply<_>>` | an acknowledgment |
/// | `Err(error)` | an acknowledgment with `success: false` and the error's text |
/// | [`Effects`], or a [`Commit`] | once they are stored, how they end: an acknowledgment, a reply, or a refusal |
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "return `()`, `Reply<T>`, `Option<Reply<T>>`, `Effects`, `Commit`, or a `Result` of one of these whose error converts into `HandlerError`",
    note = "to answer with a message, wrap its payload: `Reply(payload)`"
)]
pub trait IntoOutcome {
    /// Converts what was returned.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome(OutcomeKind::Handled)
    }
}

impl<P: MessagePayload> IntoOutcome for Reply<P> {
    fn into_outcome(self) -> Outcome {
        Outcome(OutcomeKind::Replied(Box::new(self.0)))
    }
}

impl<P: MessagePayload> IntoOutcome for Option<Reply<P>> {
    fn into_outcome(self) -> Outcome {
        match self {
            Some(reply) => reply.into_outcome(),
            None => ().into_outcome(),
        }
    }
}

impl IntoOutcome for Effects {
    fn into_outcome(self) -> Outcome {
        Outcome(OutcomeKind::Effects(Box::new(self)))
    }
}

impl IntoOutcome for Commit {
    fn into_outcome(self) -> Outcome {
        Outcome(OutcomeKind::Committing(self))
    }
}

impl<T: IntoOutcome, E: Into<HandlerError>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(error) => Outcome(OutcomeKind::Failed(error.into())),
        }
    }
}

/// A reply whose type is known to its handler alone.
pub(crate) trait ReplyPayload: Send {
    fn message_type(&self) -> &'static str;
    fn user_id_mut(&mut self) -> Option<&mut UserId>;
    /// Remembers the type if it is sensitive.
    fn teach(&self, types: &SensitiveTypes);
    /// Appends the whole frame, with a body of at most `limit` bytes.
    fn encode(
        &self,
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
        limit: usize,
    ) -> Result<(), EncodeError>;
    /// The payload alone.
    fn to_json(&self) -> serde_json::Result<Box<RawValue>>;
}

impl<P: MessagePayload> ReplyPayload for P {
    fn message_type(&self) -> &'static str {
        P::TYPE
    }

    fn user_id_mut(&mut self) -> Option<&mut UserId> {
        MessagePayload::user_id_mut(self)
    }

    fn teach(&self, types: &SensitiveTypes) {
        types.learn::<P>();
    }

    fn encode(
        &self,
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
        limit: usize,
    ) -> Result<(), EncodeError> {
        MessageSerializer::encode_within(out, head, self, limit)
    }

    fn to_json(&self) -> serde_json::Result<Box<RawValue>> {
        serde_json::value::to_raw_value(self)
    }
}

/// The error of a handler that panicked; the panic hook has shown the details on our side.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> HandlerError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    HandlerError::new(format_args!("the handler panicked: {text}"))
        .with_code(ErrorCode::HandlerPanicked)
}

impl fmt::Debug for dyn ReplyPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("type", &self.message_type())
            .finish_non_exhaustive()
    }
}
