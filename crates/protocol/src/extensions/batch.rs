//! Many messages in one frame.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::envelope::{Envelope, EnvelopeError};
use crate::frame::encode_frame;
use crate::json::{self, JsonLimits};
use crate::limits::{
    LENGTH_PREFIX, MAX_BATCH, MAX_BODY, MAX_ERROR_TEXT, MAX_JSON_DEPTH, MAX_JSON_VALUES,
    MAX_MESSAGE_ID,
};
use crate::message_id::MessageId;
use crate::message_type::{MessageType, message_types};
use crate::messages::ErrorCode;
use crate::payload::{MessagePayload, Sender};
use crate::serializer::{EncodeError, EnvelopeHead, MessageSerializer, write_head};
use crate::timestamp::Timestamp;

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

impl Batch {
    /// The messages of a batch that was received, none of which has been looked at before. All of
    /// them are read before any is handed out.
    ///
    /// # Errors
    ///
    /// [`MalformedBatch`] when nothing of it may be handled.
    pub fn read<'a>(
        batch: &Envelope<'a>,
        limits: JsonLimits,
    ) -> Result<Vec<Enclosed<'a>>, MalformedBatch> {
        let payload = batch.payload.ok_or(MalformedBatch::NoMessages)?.get();
        // A derived reader would take an array for a struct.
        if !payload.starts_with('{') {
            return Err(MalformedBatch::NoMessages);
        }
        let Messages {
            messages: Listed(listed),
        } = serde_json::from_str(payload).map_err(|_| MalformedBatch::NoMessages)?;
        let mut messages = Vec::with_capacity(listed.len());
        for (place, text) in (1..).zip(listed) {
            let envelope = Envelope::parse_within(text.get().as_bytes(), limits)
                .map_err(|error| MalformedBatch::NotAnEnvelope { place, error })?;
            if !envelope.may_be_in_a_batch() {
                return Err(MalformedBatch::Forbidden { place });
            }
            messages.push(Enclosed {
                envelope,
                bytes: text.get().len(),
            });
        }
        let mut ids = HashSet::from([&batch.id]);
        let mut different = messages.iter().map(|message| &message.envelope.id);
        match different.all(|id| ids.insert(id)) {
            true => Ok(messages),
            false => Err(MalformedBatch::SameId),
        }
    }
}

/// A message of a batch that was received.
#[derive(Clone, Debug)]
pub struct Enclosed<'a> {
    /// The message.
    pub envelope: Envelope<'a>,
    /// The length of its envelope.
    pub bytes: usize,
}

/// Why nothing of a batch is handled. The peer is at fault; its next frame can be read.
///
/// The text is what goes into an error acknowledgment. It may quote the peer, as that of an
/// [`EnvelopeError`] does.
#[derive(Debug, thiserror::Error)]
pub enum MalformedBatch {
    /// There is no list of messages, or not of as many as a batch may have.
    #[error("Malformed message: a batch has a list `messages` of 1 to {MAX_BATCH} of them")]
    NoMessages,
    /// One of them is no envelope.
    #[error("{error} (message {place} of the batch)")]
    NotAnEnvelope {
        /// Which one, from 1 on.
        place: usize,
        /// What it is.
        error: EnvelopeError,
    },
    /// One of them must not be in a batch.
    #[error(
        "Malformed message: message {place} of the batch is of a type, or has a member, that must \
         not be in one"
    )]
    Forbidden {
        /// Which one, from 1 on.
        place: usize,
    },
    /// An id comes twice: an answer to it could be for either.
    #[error("Malformed message: two messages of the batch, or one and the batch, have the same id")]
    SameId,
}

/// The payload of a batch, read in place.
#[derive(Deserialize)]
struct Messages<'a> {
    #[serde(borrow)]
    messages: Listed<'a>,
}

/// From 1 to [`MAX_BATCH`] values; what is beyond is not read.
struct Listed<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Listed<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Listed<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "1 to {MAX_BATCH} messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Listed<'de>, A::Error> {
                let mut list = Vec::new();
                while let Some(message) = seq.next_element()? {
                    if list.len() == MAX_BATCH {
                        return Err(de::Error::invalid_length(MAX_BATCH + 1, &self));
                    }
                    list.push(message);
                }
                match list.is_empty() {
                    true => Err(de::Error::invalid_length(0, &self)),
                    false => Ok(Listed(list)),
                }
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}

/// Levels around a message of a batch: the batch, its payload, and the list.
const LEVELS_AROUND: usize = 3;

/// Values around the messages of a batch: three that open, and the commas between the four members
/// of the envelope.
const VALUES_AROUND: usize = 6;

/// Bytes around the messages of a batch, at most: members and times take less than half of it, an
/// id of this side the rest.
const BYTES_AROUND: usize = 256;

/// Messages that are collected to be sent in one frame, within what a frame may hold.
///
/// Each is written when it is added, as it would be in a frame of its own. The `Debug` shows how
/// many there are, and nothing of them.
#[derive(Clone, Default)]
pub struct BatchWriter {
    messages: Vec<Box<str>>,
    /// Invariant: of all of them, with the comma behind each.
    bytes: usize,
    /// Invariant: the same.
    values: usize,
}

/// Why a message was not added to a batch, which is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// There are as many messages in it as it may have.
    #[error("a batch has at most {MAX_BATCH} messages: send it, and begin another one")]
    TooMany,
    /// With the message the batch would be longer than a frame, or have more values.
    #[error("a message of {size} bytes has no room in the batch: send it, and begin another one")]
    NoRoom {
        /// The size of the message in bytes.
        size: usize,
    },
    /// The message fits a frame of its own and not one that a batch takes a part of.
    #[error("the message is too deep, or too long, for any batch: send it alone")]
    Alone,
    /// Messages of this type, or with what this one says of itself, are sent in frames of their own.
    #[error("a {0} like this must not be in a batch: send it alone")]
    Forbidden(MessageType),
    /// A message with its id is in the batch already.
    #[error("a message with the same id is in the batch already")]
    SameId,
    /// The message cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl BatchWriter {
    /// A batch without messages.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many messages it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The envelopes, in order.
    pub fn messages(&self) -> impl ExactSizeIterator<Item = &str> {
        self.messages.iter().map(|message| &**message)
    }

    /// Adds a message. That no other one has its id is for the caller to know.
    ///
    /// # Errors
    ///
    /// [`BatchError`]; the batch is as it was then.
    pub fn push<T: Serialize + ?Sized>(
        &mut self,
        head: EnvelopeHead<'_>,
        payload: Option<&T>,
    ) -> Result<(), BatchError> {
        let forbidden = message_types::is_control(head.message_type)
            || head.message_type == message_types::BATCH
            || !head.wants_acknowledgment
            || head.request.items.is_some()
            || head.item.is_some()
            || head.in_reply_to.is_some();
        if forbidden {
            let message_type = MessageType::new(head.message_type);
            return Err(BatchError::Forbidden(message_type));
        }
        if self.messages.len() >= MAX_BATCH {
            return Err(BatchError::TooMany);
        }
        let mut frame = Vec::new();
        match payload {
            Some(payload) => MessageSerializer::encode(&mut frame, head, payload)?,
            None => MessageSerializer::encode_empty(&mut frame, head)?,
        }
        let shape = json::measure(&frame[LENGTH_PREFIX..]);
        let size = frame.len() - LENGTH_PREFIX;
        let (bytes, values) = (size + 1, shape.values + 1);
        if shape.depth + LEVELS_AROUND > MAX_JSON_DEPTH || !fits(bytes, values) {
            return Err(BatchError::Alone);
        }
        if !fits(self.bytes + bytes, self.values + values) {
            return Err(BatchError::NoRoom { size });
        }
        frame.drain(..LENGTH_PREFIX);
        let text = String::from_utf8(frame).map_err(|_| BatchError::Alone)?;
        self.messages.push(text.into());
        self.bytes += bytes;
        self.values += values;
        Ok(())
    }

    /// Appends the batch as one whole frame to `out`, under this id. On an error `out` is as it was.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] when the id is so long that the frame is over its limit.
    pub fn encode(
        &self,
        out: &mut Vec<u8>,
        id: &MessageId,
        timestamp: Timestamp,
    ) -> Result<(), EncodeError> {
        encode_frame(out, |body| {
            let head = EnvelopeHead::new(id, Batch::TYPE, timestamp);
            write_head(body, head)?;
            body.append(b",\"payload\":{\"messages\":[");
            for (place, message) in self.messages.iter().enumerate() {
                if place > 0 {
                    body.append(b",");
                }
                body.append(message.as_bytes());
            }
            body.append(b"]}}");
            Ok(json::check_shape(body.written(), JsonLimits::WIRE)?)
        })
    }
}

fn fits(bytes: usize, values: usize) -> bool {
    bytes + BYTES_AROUND <= MAX_BODY && values + VALUES_AROUND <= MAX_JSON_VALUES
}

impl fmt::Debug for BatchWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchWriter")
            .field("messages", &self.messages.len())
            .field("bytes", &self.bytes)
            .finish()
    }
}

/// The longest code in bytes that an outcome carries; a longer one is left out, and so counts as
/// final, as an unknown one does.
const MAX_OUTCOME_CODE: usize = 64;

/// What of a frame is for the texts of errors; the rest is for the ids and what is around the texts.
const TEXTS_OF_OUTCOMES: usize = MAX_BODY - 256 * 1024;

/// JSON writes one byte as six at worst.
const WORST_ESCAPE: usize = 6;

impl Outcome {
    /// The message was handled.
    pub const HANDLED: Self = Self {
        success: true,
        error: None,
        code: None,
        replied: false,
    };

    /// The message was handled, and a reply to it was sent.
    pub const REPLIED: Self = Self {
        replied: true,
        ..Self::HANDLED
    };

    /// The message was not handled. The text is cut so that the outcomes of `messages` messages fit
    /// a frame, whatever is in them.
    #[must_use]
    pub fn failure(error: &str, code: Option<ErrorCode>, messages: usize) -> Self {
        let share = TEXTS_OF_OUTCOMES / WORST_ESCAPE / messages.max(1);
        let end = error.floor_char_boundary(share.min(MAX_ERROR_TEXT));
        Self {
            success: false,
            error: Some(error[..end].to_owned()),
            code: code.filter(|code| code.as_str().len() <= MAX_OUTCOME_CODE),
            replied: false,
        }
    }
}

const _: () = {
    // The longest outcomes fit: texts, codes, ids, and the names of the members.
    let outcome = WORST_ESCAPE * MAX_OUTCOME_CODE + 64;
    let around = 2 * WORST_ESCAPE * MAX_MESSAGE_ID + BYTES_AROUND;
    assert!(TEXTS_OF_OUTCOMES + MAX_BATCH * outcome + around <= MAX_BODY);
    // A message of the usual size fits as often as a batch may have it.
    assert!(MAX_BATCH * 1024 + BYTES_AROUND < MAX_BODY);
};
