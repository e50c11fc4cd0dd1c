//! Messages to frames, and bodies to messages.

use serde::Serialize;

use crate::delivery::DeliveryHead;
use crate::envelope::{Envelope, EnvelopeError, IpcMessage};
use crate::extensions::RequestHead;
use crate::frame::{BodyTooLarge, BodyWriter, encode_frame, encode_frame_within};
use crate::json::{self, Excess, JsonLimits};
use crate::limits::{MAX_JSON_DEPTH, MAX_JSON_VALUES};
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
    /// The place of a durable message in its order; only for peers that negotiated it.
    pub delivery: Option<DeliveryHead<'a>>,
    /// Whether its sender wants to be told that it was handled; `false` only for peers that
    /// negotiated it.
    pub wants_acknowledgment: bool,
    /// What it says of the answer that it wants; only for peers that negotiated it.
    pub request: RequestHead,
    /// Its number among the items of a streaming reply, from 1 on; only for peers that negotiated it.
    pub item: Option<u64>,
    /// The message that it answers; only for peers that negotiated it.
    pub in_reply_to: Option<&'a MessageId>,
}

impl<'a> EnvelopeHead<'a> {
    /// The head of a message that every peer understands.
    #[must_use]
    pub const fn new(id: &'a MessageId, message_type: &'a str, timestamp: Timestamp) -> Self {
        Self {
            id,
            message_type,
            timestamp,
            delivery: None,
            wants_acknowledgment: true,
            request: RequestHead::NONE,
            item: None,
            in_reply_to: None,
        }
    }
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
    /// The envelope holds more values than a peer accepts.
    #[error("a message has more than {MAX_JSON_VALUES} values for each mebibyte")]
    TooManyValues,
    /// The payload cannot be written as JSON.
    #[error("the payload cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}

impl From<BodyTooLarge> for EncodeError {
    fn from(BodyTooLarge { size, limit }: BodyTooLarge) -> Self {
        Self::TooLarge { size, limit }
    }
}

impl From<Excess> for EncodeError {
    fn from(excess: Excess) -> Self {
        match excess {
            Excess::Depth(_) => Self::TooDeep,
            Excess::Values(_) => Self::TooManyValues,
        }
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
    /// [`EncodeError`] when the message is more than its receiver takes, or the payload
    /// cannot be written.
    pub fn encode<T: Serialize + ?Sized>(
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
        payload: &T,
    ) -> Result<(), EncodeError> {
        Self::write(out, head, Some(payload))
    }

    /// Appends a message without a payload, as [`encode`](Self::encode) does.
    pub(crate) fn encode_empty(
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
    ) -> Result<(), EncodeError> {
        Self::write::<()>(out, head, None)
    }

    /// Appends a message that owns its parts, as [`encode`](Self::encode) does.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_message(out: &mut Vec<u8>, message: &IpcMessage) -> Result<(), EncodeError> {
        let head = EnvelopeHead {
            in_reply_to: message.in_reply_to.as_ref(),
            ..EnvelopeHead::new(&message.id, &message.message_type, message.timestamp)
        };
        Self::write(out, head, message.payload.as_deref())
    }

    /// Appends a message as [`encode`](Self::encode) does, with a body of at most `limit` bytes, which
    /// holds at most [`MAX_JSON_VALUES`] values for each mebibyte begun. No peer takes a frame with a
    /// body over [`MAX_BODY`](crate::limits::MAX_BODY): such a body is sent in pieces.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_within<T: Serialize + ?Sized>(
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
        payload: &T,
        limit: usize,
    ) -> Result<(), EncodeError> {
        encode_frame_within(out, limit, |body| write_envelope(body, head, Some(payload)))
    }

    /// Reads the body of a frame into a message that owns its parts; [`Envelope::parse`] borrows
    /// instead.
    ///
    /// # Errors
    ///
    /// As [`Envelope::parse`].
    pub fn decode(body: &[u8]) -> Result<IpcMessage, EnvelopeError> {
        Envelope::parse(body).map(IpcMessage::from)
    }

    fn write<T: Serialize + ?Sized>(
        out: &mut Vec<u8>,
        head: EnvelopeHead<'_>,
        payload: Option<&T>,
    ) -> Result<(), EncodeError> {
        encode_frame(out, |body| write_envelope(body, head, payload))
    }
}

/// The members in front of the payload. They are put together here, which takes half the time of a
/// derived writer.
pub(crate) fn write_head(
    body: &mut BodyWriter<'_>,
    head: EnvelopeHead<'_>,
) -> Result<(), EncodeError> {
    member(body, b"{\"id\":", head.id)?;
    member(body, b",\"type\":", head.message_type)?;
    member(body, b",\"timestamp\":", &head.timestamp)?;
    if let Some(DeliveryHead { seq, stream }) = head.delivery {
        member(body, b",\"seq\":", &seq)?;
        if let Some(stream) = stream {
            member(body, b",\"stream\":", stream)?;
        }
    }
    if !head.wants_acknowledgment {
        body.append(b",\"ack\":false");
    }
    if let Some(deadline) = head.request.deadline_ms() {
        member(body, b",\"deadline\":", &deadline)?;
    }
    if let Some(items) = head.request.items {
        member(body, b",\"items\":", &items)?;
    }
    if let Some(item) = head.item {
        member(body, b",\"item\":", &item)?;
    }
    Ok(())
}

fn write_envelope<T: Serialize + ?Sized>(
    body: &mut BodyWriter<'_>,
    head: EnvelopeHead<'_>,
    payload: Option<&T>,
) -> Result<(), EncodeError> {
    write_head(body, head)?;
    if let Some(payload) = payload {
        member(body, b",\"payload\":", payload)?;
    }
    if let Some(in_reply_to) = head.in_reply_to {
        member(body, b",\"inReplyTo\":", in_reply_to)?;
    }
    body.append(b"}");
    let written = body.written();
    let limits = JsonLimits::WIRE.for_body(written.len());
    Ok(json::check_shape(written, limits)?)
}

fn member<T: Serialize + ?Sized>(
    body: &mut BodyWriter<'_>,
    name: &[u8],
    value: &T,
) -> Result<(), EncodeError> {
    body.append(name);
    serde_json::to_writer(body, value).map_err(EncodeError::Json)
}
