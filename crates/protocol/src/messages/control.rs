//! What both sides send to keep a connection and its messages in order.

use serde::{Deserialize, Serialize};

use super::{open_enum, or_default};
use crate::limits::MAX_ERROR_TEXT;
use crate::message_id::MessageId;
use crate::message_type::message_types;
use crate::payload::{MessagePayload, Sender};
use crate::timestamp::Timestamp;

/// `HEARTBEAT`: the sender is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Who sends it, in its own words.
    #[serde(default, deserialize_with = "or_default")]
    pub sender_id: String,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
    /// How many heartbeats the sender has sent on this connection before.
    #[serde(default, deserialize_with = "or_default")]
    pub sequence_number: u64,
    /// For how long the oldest message that the sender has received and not handled has been
    /// waiting, in milliseconds; absent when there is none. Only between peers that negotiated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_unhandled_ms: Option<u64>,
}

impl Heartbeat {
    /// The heartbeat after `sequence_number` others.
    #[must_use]
    pub fn new(sender_id: impl Into<String>, timestamp: Timestamp, sequence_number: u64) -> Self {
        Self {
            sender_id: sender_id.into(),
            timestamp,
            sequence_number,
            oldest_unhandled_ms: None,
        }
    }
}

impl MessagePayload for Heartbeat {
    const TYPE: &'static str = message_types::HEARTBEAT;
    const SENDER: Sender = Sender::Any;
}

open_enum! {
    /// What kind of failure an acknowledgment reports, for programs; its text is for people.
    pub enum ErrorCode {
        /// Nobody handles the type.
        NoHandler = "no_handler",
        /// The payload is not that of the type.
        BadPayload = "bad_payload",
        /// The handler failed.
        HandlerFailed = "handler_failed",
        /// The handler panicked.
        HandlerPanicked = "handler_panicked",
        /// The sender may not send this type.
        NotPermitted = "not_permitted",
        /// The payload names another account than the sender's.
        IdentityMismatch = "identity_mismatch",
        /// The body is no envelope.
        Malformed = "malformed",
        /// The receiver has no room at the moment.
        Busy = "busy",
        /// The receiver is about to stop.
        Stopping = "stopping",
        /// The request's deadline has passed.
        Deadline = "deadline",
        /// The request was cancelled by its sender.
        Cancelled = "cancelled",
    }
}

impl ErrorCode {
    /// Whether the same message may succeed later. A code that this version does not know is final.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Busy | Self::Stopping => true,
            Self::NoHandler
            | Self::BadPayload
            | Self::HandlerFailed
            | Self::HandlerPanicked
            | Self::NotPermitted
            | Self::IdentityMismatch
            | Self::Malformed
            | Self::Deadline
            | Self::Cancelled
            | Self::Other(_) => false,
        }
    }
}

/// `ACKNOWLEDGMENT`: a message was handled, or why it was not. It is never acknowledged itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgment {
    /// The message that it is about.
    pub original_message_id: MessageId,
    /// Whether that was handled.
    pub success: bool,
    /// What went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
    /// What went wrong, for programs; only between peers that negotiated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
}

impl Acknowledgment {
    /// The message was handled.
    #[must_use]
    pub const fn success(original_message_id: MessageId, timestamp: Timestamp) -> Self {
        Self {
            original_message_id,
            success: true,
            error: None,
            timestamp,
            code: None,
        }
    }

    /// The message was not handled. A text over [`MAX_ERROR_TEXT`] is cut.
    #[must_use]
    pub fn failure(
        original_message_id: MessageId,
        timestamp: Timestamp,
        error: impl Into<String>,
    ) -> Self {
        let mut error = error.into();
        error.truncate(error.floor_char_boundary(MAX_ERROR_TEXT));
        Self {
            original_message_id,
            success: false,
            error: Some(error),
            timestamp,
            code: None,
        }
    }

    /// The same with a code, for a peer that negotiated codes.
    #[must_use]
    pub fn with_code(self, code: ErrorCode) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }
}

impl MessagePayload for Acknowledgment {
    const TYPE: &'static str = message_types::ACKNOWLEDGMENT;
    const SENDER: Sender = Sender::Any;
}
