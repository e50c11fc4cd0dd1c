//! Messages to frames, and bodies to messages.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use serde_json::value::RawValue;

use crate::envelope::{Envelope, EnvelopeError, IpcMessage};
use crate::frame::{BodyTooLarge, encode_frame};
use crate::json;
use crate::limits::MAX_JSON_DEPTH;
use crate::message_id::MessageId;
use crate::timestamp::Timestamp;

/// Everything of an envelope but its payload.
#[derive(Clone, Copy, Debug)]
pub struct EnvelopeHead<'a> {
    /// The id of the message.
    pub id: &'a MessageId,
    /// The name of its type.
    pub message_type: &'a str,
    /// When it is sent.
    pub timestamp: Timestamp,
    /// The message that it answers; only for peers that negotiated it.
    pub in_reply_to: Option<&'a MessageId>,
}

/// Why a message was not written. The caller is at fault, and nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The envelope is longer than a peer accepts.
    #[error("a message of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// The size of the envelope in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The envelope is nested deeper than a peer accepts.
    #[error("a message is nested deeper than {MAX_JSON_DEPTH} levels")]
    TooDeep,
    /// The payload cannot be written as JSON.
    #[error("the payload cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

impl From<BodyTooLarge> for EncodeError {
    fn from(BodyTooLarge { size, limit }: BodyTooLarge) -> Self {
        Self::TooLarge { size, limit }
    }
}

/// Turns messages into frames and bodies into messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageSerializer;

impl MessageSerializer {
    /// Appends a message as one whole frame to `out`. On an error `out` is as it was.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] when the message is too large or too deep for its receiver, or the payload cannot be written.
    pub fn encode<T: Serialize + ?Sized>(
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
        payload: &T,
    ) -> Result<(), EncodeError> {
        Self::write(
            out,
            &Outgoing {
                head,
                payload: Some(payload),
            },
        )
    }

    /// Appends a message that owns its parts, as [`encode`](Self::encode) does.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_message(out: &mut Vec<u8>, message: &IpcMessage) -> Result<(), EncodeError> {
        let head = EnvelopeHead {
            id: &message.id,
            message_type: &message.message_type,
            timestamp: message.timestamp,
            in_reply_to: message.in_reply_to.as_ref(),
        };
        let payload: Option<&RawValue> = message.payload.as_deref();
        Self::write(out, &Outgoing { head, payload })
    }

    /// Reads the body of a frame into a message that owns its parts; [`Envelope::parse`] borrows instead.
    ///
    /// # Errors
    ///
    /// As [`Envelope::parse`].
    pub fn decode(body: &[u8]) -> Result<IpcMessage, EnvelopeError> {
        Envelope::parse(body).map(IpcMessage::from)
    }

    fn write<T: Serialize + ?Sized>(
        out: &mut Vec<u8>,
        message: &Outgoing<'_, T>,
    ) -> Result<(), EncodeError> {
        encode_frame(out, |body| {
            serde_json::to_writer(&mut *body, message).map_err(EncodeError::Json)?;
            if json::depth_is_bounded(body.written()) {
                Ok(())
            } else {
                Err(EncodeError::TooDeep)
            }
        })
    }
}

struct Outgoing<'a, T: ?Sized> {
    head: EnvelopeHead<'a>,
    payload: Option<&'a T>,
}

impl<T: Serialize + ?Sized> Serialize for Outgoing<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut envelope = serializer.serialize_struct("Envelope", 5)?;
        envelope.serialize_field("id", self.head.id)?;
        envelope.serialize_field("type", self.head.message_type)?;
        envelope.serialize_field("timestamp", &self.head.timestamp)?;
        if let Some(payload) = self.payload {
            envelope.serialize_field("payload", payload)?;
        }
        if let Some(in_reply_to) = self.head.in_reply_to {
            envelope.serialize_field("inReplyTo", in_reply_to)?;
        }
        envelope.end()
    }
}
