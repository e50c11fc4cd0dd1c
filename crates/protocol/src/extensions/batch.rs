//! Many messages in one frame.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::message_type::message_types;
use crate::messages::ErrorCode;
use crate::payload::{MessagePayload, Sender};

/// `BATCH`: messages that travel, and are answered, together. Only between peers that negotiated
/// [`Batch`](crate::hello::Capability::Batch).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Their envelopes as they were written, at most [`MAX_BATCH`](crate::limits::MAX_BATCH).
    pub messages: Vec<Box<RawValue>>,
}

impl MessagePayload for Batch {
    const TYPE: &'static str = message_types::BATCH;
    const SENDER: Sender = Sender::Any;
    /// What is in it may be.
    const SENSITIVE: bool = true;
}

/// What came of one message of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it was handled.
    pub success: bool,
    /// What went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What went wrong, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Whether a reply to it was sent before, as a message of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replied: bool,
}

/// `BATCH_OUTCOMES`: what came of the messages of a batch, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOutcomes {
    /// One for each message.
    pub outcomes: Vec<Outcome>,
}

impl MessagePayload for BatchOutcomes {
    const TYPE: &'static str = message_types::BATCH_OUTCOMES;
    const SENDER: Sender = Sender::Any;
}
