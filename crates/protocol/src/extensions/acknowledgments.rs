//! One acknowledgment for many messages, which are named by the numbers of their frames.

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use crate::limits::MAX_ACK_RANGES;
use crate::message_type::message_types;
use crate::messages::ErrorCode;
use crate::payload::{MessagePayload, Sender};

/// Frames of one direction of a connection, counted from 1, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct FrameRange {
    first: u64,
    last: u64,
}

impl FrameRange {
    /// From `first` to `last`; `None` when that is no range of frames.
    #[must_use]
    pub fn new(first: u64, last: u64) -> Option<Self> {
        (1..=last).contains(&first).then_some(Self { first, last })
    }

    /// The first frame.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The last frame.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.last
    }
}

impl TryFrom<(u64, u64)> for FrameRange {
    type Error = &'static str;

    fn try_from((first, last): (u64, u64)) -> Result<Self, &'static str> {
        Self::new(first, last).ok_or("a range of frames begins at 1 or later, and ends no earlier")
    }
}

impl From<FrameRange> for (u64, u64) {
    fn from(FrameRange { first, last }: FrameRange) -> Self {
        (first, last)
    }
}

/// A frame whose message was not handled, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedFrame {
    /// The number of the frame.
    pub frame: u64,
    /// What went wrong, for people.
    #[serde(default)]
    pub error: String,
    /// What went wrong, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
}

/// `ACKNOWLEDGMENTS`: what came of many messages. Only between peers that negotiated
/// [`AckRanges`](crate::hello::Capability::AckRanges).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgments {
    /// Whatever waits for an acknowledgment in these was handled.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "at_most"
    )]
    pub handled: Vec<FrameRange>,
    /// These were not handled.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "at_most"
    )]
    pub failed: Vec<FailedFrame>,
}

/// Reads a list of at most [`MAX_ACK_RANGES`].
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.len() > MAX_ACK_RANGES {
        let limit = format!("at most {MAX_ACK_RANGES}");
        return Err(de::Error::invalid_length(list.len(), &limit.as_str()));
    }
    Ok(list)
}

impl MessagePayload for Acknowledgments {
    const TYPE: &'static str = message_types::ACKNOWLEDGMENTS;
    const SENDER: Sender = Sender::Any;
}
