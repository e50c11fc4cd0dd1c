//! The usual form of an envelope, read without looking at its payload.
//!
//! Deployed peers and this crate write `{"id":"…","type":"…","timestamp":"…","payload":{…}}`, without
//! white space and in this order; what peers have negotiated stands before the payload, and
//! `inReplyTo` behind it. In that form the payload is everything up to the last brace, or to
//! `inReplyTo`, so it has to be read only once: as its type. Whether the presumption holds shows then; if it does not,
//! [`Envelope::parse`](crate::Envelope::parse) says what the body really is.

use std::fmt;

use serde_json::value::RawValue;

use crate::delivery::DeliveryHead;
use crate::envelope::IpcMessage;
use crate::extensions::{RequestHead, parse_from_one, take_number};
use crate::json::{self, JsonLimits};
use crate::limits::MAX_MESSAGE_TYPE;
use crate::message_id::MessageId;
use crate::message_type::MessageType;
use crate::payload::{self, MessagePayload};
use crate::sensitive::Size;
use crate::timestamp::Timestamp;

/// The head of an envelope in its usual form, and what is presumed to be its payload.
///
/// Its `Debug` shows how long that is, and not what it says.
#[derive(Clone)]
pub struct PresumedEnvelope<'a> {
    /// The id that its sender gave it.
    pub id: MessageId,
    /// The name of its type.
    pub message_type: &'a str,
    /// When it was written, by its sender's clock.
    pub timestamp: Timestamp,
    /// The place of a durable message in its order; it means something only of a peer that
    /// negotiated it.
    pub delivery: Option<DeliveryHead<'a>>,
    /// Whether its sender wants to be told that it was handled; as the next three, of a peer that
    /// negotiated it.
    pub wants_acknowledgment: bool,
    /// What it says of the answer that it wants.
    pub request: RequestHead,
    /// Its number among the items of a streaming reply.
    pub item: Option<u64>,
    /// The message that it answers.
    pub in_reply_to: Option<MessageId>,
    /// Not validated yet: it may go on with other members of the envelope, or not be JSON at all.
    payload: &'a str,
}

impl<'a> PresumedEnvelope<'a> {
    /// Reads the head of a body; `None` when it is not in the usual form, which says nothing about
    /// whether it is an envelope.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        Self::read_within(body, JsonLimits::WIRE)
    }

    /// As [`read`](Self::read), for a receiver that needs less than the wire allows. A body beyond
    /// its limits is not read here, and [`Envelope::parse_within`](crate::Envelope::parse_within)
    /// says why.
    #[must_use]
    pub fn read_within(body: &'a [u8], limits: JsonLimits) -> Option<Self> {
        json::check_shape(body, limits).ok()?;
        let text = std::str::from_utf8(body).ok()?;
        let (id, rest) = plain_string(text.strip_prefix("{\"id\":\"")?)?;
        let (message_type, rest) = plain_string(rest.strip_prefix(",\"type\":\"")?)?;
        let (timestamp, rest) = plain_string(rest.strip_prefix(",\"timestamp\":\"")?)?;
        let (delivery, rest) = DeliveryHead::take_usual(rest)?;
        let (wants_acknowledgment, rest) = match rest.strip_prefix(",\"ack\":false") {
            Some(rest) => (false, rest),
            None => (true, rest),
        };
        let (request, rest) = RequestHead::take_usual(rest)?;
        let (item, rest) = take_number(rest, ",\"item\":", parse_from_one)?;
        let payload = rest.strip_prefix(",\"payload\":")?.strip_suffix('}')?;
        let (payload, in_reply_to) = split_reply(payload)?;
        if message_type.len() > MAX_MESSAGE_TYPE {
            return None;
        }
        Some(Self {
            id: MessageId::new(id).ok()?,
            message_type,
            timestamp: timestamp.parse().ok()?,
            delivery,
            wants_acknowledgment,
            request,
            item,
            in_reply_to,
            payload,
        })
    }

    /// Reads the payload as `T`. `Some` proves the presumption: the body is an envelope, with these
    /// members and no others. `None` proves nothing.
    #[must_use]
    pub fn payload<T: MessagePayload>(&self) -> Option<T> {
        payload::read_text(self.payload).ok()
    }

    /// Copies what is borrowed; `None` when the payload is not JSON. It proves no more than that.
    #[must_use]
    pub fn to_message(&self) -> Option<IpcMessage> {
        let payload = RawValue::from_string(self.payload.to_owned()).ok()?;
        Some(IpcMessage {
            id: self.id.clone(),
            message_type: MessageType::new(self.message_type),
            timestamp: self.timestamp,
            payload: Some(payload).filter(|payload| payload.get() != "null"),
            in_reply_to: self.in_reply_to.clone(),
        })
    }
}

impl fmt::Debug for PresumedEnvelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresumedEnvelope")
            .field("id", &self.id)
            .field("message_type", &self.message_type)
            .field("timestamp", &self.timestamp)
            .field("delivery", &self.delivery)
            .field("in_reply_to", &self.in_reply_to)
            .field("payload", &Size::of(self.payload))
            .finish_non_exhaustive()
    }
}

/// Takes `inReplyTo` off the end of what follows `"payload":`. Whether it is a member of the
/// envelope, and not the end of the payload, shows when that is read.
fn split_reply(rest: &str) -> Option<(&str, Option<MessageId>)> {
    if !rest.ends_with('"') {
        return Some((rest, None));
    }
    let Some((payload, id)) = rest.rsplit_once(",\"inReplyTo\":\"") else {
        return Some((rest, None));
    };
    let (id, end) = plain_string(id)?;
    if !end.is_empty() {
        return None;
    }
    Some((payload, Some(MessageId::new(id).ok()?)))
}

/// The text up to the closing quote, and what is behind it; `None` if anything is escaped.
fn plain_string(text: &str) -> Option<(&str, &str)> {
    let quote = memchr::memchr(b'"', text.as_bytes())?;
    let (inside, rest) = (&text[..quote], &text[quote + 1..]);
    // Every byte is looked at, so that many are looked at in one step.
    let plain = |plain, byte| plain & (byte != b'\\') & (byte >= b' ');
    inside.bytes().fold(true, plain).then_some((inside, rest))
}
