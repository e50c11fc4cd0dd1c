//! The envelope around each payload.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::delivery::{DeliveryHead, DeliveryHeadError};
use crate::extensions::{RequestHead, RequestHeadError, parse_from_one};
use crate::json::{self, Excess, JsonLimits};
use crate::limits::{MAX_ERROR_TEXT, MAX_MESSAGE_TYPE};
use crate::message_id::MessageId;
use crate::message_type::{MessageType, message_types};
use crate::payload::{self, MessagePayload, PayloadError};
use crate::sensitive::Size;
use crate::serializer::EncodeError;
use crate::timestamp::Timestamp;

/// A message read in place: the payload stays text until [`payload`](Self::payload) is called.
///
/// Its `Debug` shows how long the payload is, and not what it says.
#[derive(Clone)]
pub struct Envelope<'a> {
    /// The id that its sender gave it.
    pub id: MessageId,
    /// The name of its type; it borrows unless it was written with escapes.
    pub message_type: Cow<'a, str>,
    /// When it was written, by its sender's clock.
    pub timestamp: Timestamp,
    /// The payload as it was written; `null` counts as none.
    pub payload: Option<&'a RawValue>,
    /// The message that this one answers, between peers that negotiated it.
    pub in_reply_to: Option<MessageId>,
    /// As they were written: to a peer that did not negotiate them they mean nothing.
    seq: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    ack: Option<&'a RawValue>,
    deadline: Option<&'a RawValue>,
    items: Option<&'a RawValue>,
    item: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Reads the body of a frame. Unknown members are ignored.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`], with the id if it could be read all the same.
    pub fn parse(body: &'a [u8]) -> Result<Self, EnvelopeError> {
        Self::parse_within(body, JsonLimits::WIRE)
    }

    /// As [`parse`](Self::parse), for a receiver that needs less than the wire allows.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_within(body: &'a [u8], limits: JsonLimits) -> Result<Self, EnvelopeError> {
        Self::read(body, limits).map_err(|(kind, detail)| EnvelopeError {
            kind,
            id: recover_id(body),
            detail: payload::shorten(detail).into(),
        })
    }

    fn read(body: &'a [u8], limits: JsonLimits) -> Result<Self, (EnvelopeErrorKind, String)> {
        let text = std::str::from_utf8(body)
            .map_err(|error| (EnvelopeErrorKind::NotUtf8, error.to_string()))?;
        json::check_shape(body, limits).map_err(|excess| (excess.into(), excess.to_string()))?;
        let mut json = serde_json::Deserializer::from_str(text);
        let envelope = json.deserialize_map(EnvelopeVisitor);
        envelope
            .and_then(|envelope| json.end().map(|()| envelope))
            .map_err(|error| {
                let kind = match error.classify() {
                    // A payload alone: its type might not want it to be quoted.
                    serde_json::error::Category::Data if !is_object(text) => {
                        let detail = "not an object, expected an envelope".to_owned();
                        return (EnvelopeErrorKind::NotAnEnvelope, detail);
                    }
                    serde_json::error::Category::Data => EnvelopeErrorKind::NotAnEnvelope,
                    serde_json::error::Category::Syntax
                    | serde_json::error::Category::Eof
                    | serde_json::error::Category::Io => EnvelopeErrorKind::NotJson,
                };
                (kind, error.to_string())
            })
    }

    /// Reads the payload as `T`.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] when there is none or it does not have the members of `T`.
    pub fn payload<T: MessagePayload>(&self) -> Result<T, PayloadError> {
        payload::read(self.payload)
    }

    /// The place of a durable message in its order; `None` when it is not durable. Only of a peer
    /// that negotiated it.
    ///
    /// # Errors
    ///
    /// [`DeliveryHeadError`] when the members are there and are not what they should be.
    pub fn delivery(&self) -> Result<Option<DeliveryHead<'a>>, DeliveryHeadError> {
        DeliveryHead::read(self.seq, self.stream)
    }

    /// Whether the sender wants to be told that the message was handled. Only of a peer that
    /// negotiated that it may not.
    ///
    /// # Errors
    ///
    /// [`AckMemberError`] when the member is there and is neither `true` nor `false`.
    pub fn wants_acknowledgment(&self) -> Result<bool, AckMemberError> {
        match self.ack.map(RawValue::get) {
            None | Some("null" | "true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(AckMemberError),
        }
    }

    /// What the message says of the answer that it wants. Only of a peer that negotiated requests.
    ///
    /// # Errors
    ///
    /// [`RequestHeadError`] when the members are there and are not what they should be.
    pub fn request(&self) -> Result<RequestHead, RequestHeadError> {
        RequestHead::read(self.deadline, self.items)
    }

    /// The number of the message among the items of the streaming reply that it belongs to; `None`
    /// when it belongs to none. Only of a peer that negotiated requests.
    ///
    /// # Errors
    ///
    /// [`ItemMemberError`] when the member is there and is no whole number from 1 on.
    pub fn item(&self) -> Result<Option<u64>, ItemMemberError> {
        match self.item.map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some(text) => parse_from_one(text).map(Some).ok_or(ItemMemberError),
        }
    }

    /// Whether the message may be one of a batch.
    pub(crate) fn may_be_in_a_batch(&self) -> bool {
        let given = |member: Option<&RawValue>| member.is_some_and(|value| value.get() != "null");
        let alone = message_types::is_control(&self.message_type)
            || self.message_type == message_types::BATCH
            || self.in_reply_to.is_some()
            || [self.ack, self.items, self.item].into_iter().any(given);
        !alone
    }

    /// Copies what is borrowed.
    #[must_use]
    pub fn to_message(&self) -> IpcMessage {
        IpcMessage {
            id: self.id.clone(),
            message_type: MessageType::new(&self.message_type),
            timestamp: self.timestamp,
            payload: self.payload.map(RawValue::to_owned),
            in_reply_to: self.in_reply_to.clone(),
        }
    }
}

/// The member `ack` of an envelope is neither `true` nor `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`ack` is neither `true` nor `false`")]
pub struct AckMemberError;

/// The member `item` of an envelope is no whole number from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`item` is no whole number from 1 on")]
pub struct ItemMemberError;

/// A message that owns its parts.
///
/// Its `Debug` shows how long the payload is, and not what it says.
#[derive(Clone)]
pub struct IpcMessage {
    /// The id that its sender gave it.
    pub id: MessageId,
    /// Its type.
    pub message_type: MessageType,
    /// When it was written, by its sender's clock.
    pub timestamp: Timestamp,
    /// The payload as JSON text.
    pub payload: Option<Box<RawValue>>,
    /// The message that this one answers, between peers that negotiated it.
    pub in_reply_to: Option<MessageId>,
}

impl IpcMessage {
    /// A message with this payload, which answers none.
    ///
    /// # Errors
    ///
    /// [`EncodeError::Json`] when the payload cannot be written as JSON. Its size is checked when
    /// the message is encoded.
    pub fn new<T: MessagePayload>(
        id: MessageId,
        timestamp: Timestamp,
        payload: &T,
    ) -> Result<Self, EncodeError> {
        let payload = serde_json::value::to_raw_value(payload).map_err(EncodeError::Json)?;
        Ok(Self {
            id,
            message_type: MessageType::of::<T>(),
            timestamp,
            payload: Some(payload),
            in_reply_to: None,
        })
    }

    /// Reads the payload as `T`.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] when there is none or it does not have the members of `T`.
    pub fn payload<T: MessagePayload>(&self) -> Result<T, PayloadError> {
        payload::read(self.payload.as_deref())
    }
}

impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("id", &self.id)
            .field("message_type", &self.message_type)
            .field("timestamp", &self.timestamp)
            .field(
                "payload",
                &self.payload.map(|payload| Size::of(payload.get())),
            )
            .field("in_reply_to", &self.in_reply_to)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IpcMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = self.payload.as_deref();
        f.debug_struct("IpcMessage")
            .field("id", &self.id)
            .field("message_type", &self.message_type)
            .field("timestamp", &self.timestamp)
            .field("payload", &payload.map(|payload| Size::of(payload.get())))
            .field("in_reply_to", &self.in_reply_to)
            .finish()
    }
}

impl From<Envelope<'_>> for IpcMessage {
    fn from(envelope: Envelope<'_>) -> Self {
        envelope.to_message()
    }
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EnvelopeErrorKind {
    /// It is not UTF-8.
    NotUtf8,
    /// It is nested deeper than [`MAX_JSON_DEPTH`](crate::limits::MAX_JSON_DEPTH), or than the
    /// receiver allows.
    TooDeep,
    /// It holds more than [`MAX_JSON_VALUES`](crate::limits::MAX_JSON_VALUES) values, or than the
    /// receiver allows.
    TooManyValues,
    /// It is not one JSON value.
    NotJson,
    /// It is JSON, with members missing, given twice, or of another form.
    NotAnEnvelope,
}

impl EnvelopeErrorKind {
    /// A short name for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::TooDeep => "too_deep",
            Self::TooManyValues => "too_many_values",
            Self::NotJson => "not_json",
            Self::NotAnEnvelope => "not_an_envelope",
        }
    }
}

impl From<Excess> for EnvelopeErrorKind {
    fn from(excess: Excess) -> Self {
        match excess {
            Excess::Depth(_) => Self::TooDeep,
            Excess::Values(_) => Self::TooManyValues,
        }
    }
}

/// Why a body is no message. The peer is at fault; its next frame can be read.
///
/// The text is what goes into an error acknowledgment; it is at most [`MAX_ERROR_TEXT`] bytes, and
/// may quote the peer: escape it where control characters do harm, as in logs.
#[derive(Debug, thiserror::Error)]
#[error("Malformed message: {detail}")]
pub struct EnvelopeError {
    /// What is wrong.
    pub kind: EnvelopeErrorKind,
    /// The id of the message, if it could be read, so that an error acknowledgment can name it.
    pub id: Option<MessageId>,
    detail: Box<str>,
}

/// The members of an envelope.
enum Member {
    Id,
    Type,
    Timestamp,
    Payload,
    InReplyTo,
    Seq,
    Stream,
    Ack,
    Deadline,
    Items,
    Item,
    Unknown,
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a member")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Member, E> {
                Ok(match name {
                    "id" => Member::Id,
                    "type" => Member::Type,
                    "timestamp" => Member::Timestamp,
                    "payload" => Member::Payload,
                    "inReplyTo" => Member::InReplyTo,
                    "seq" => Member::Seq,
                    "stream" => Member::Stream,
                    "ack" => Member::Ack,
                    "deadline" => Member::Deadline,
                    "items" => Member::Items,
                    "item" => Member::Item,
                    _ => Member::Unknown,
                })
            }
        }

        deserializer.deserialize_identifier(Visitor)
    }
}

/// The name of a type, borrowed if it can be.
struct TypeName<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for TypeName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TypeName<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "the name of a message type of at most {MAX_MESSAGE_TYPE} bytes"
                )
            }

            fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Self::Value, E> {
                check_length(name)?;
                Ok(TypeName(Cow::Borrowed(name)))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                check_length(name)?;
                Ok(TypeName(Cow::Owned(name.to_owned())))
            }
        }

        fn check_length<E: de::Error>(name: &str) -> Result<(), E> {
            if name.len() > MAX_MESSAGE_TYPE {
                return Err(E::invalid_length(name.len(), &Visitor));
            }
            Ok(())
        }

        deserializer.deserialize_str(Visitor)
    }
}

struct EnvelopeVisitor;

impl<'de> de::Visitor<'de> for EnvelopeVisitor {
    type Value = Envelope<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an envelope")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope<'de>, A::Error> {
        let mut id = None;
        let mut message_type = None;
        let mut timestamp = None;
        let mut payload = None;
        let mut in_reply_to = None;
        let (mut seq, mut stream) = (None, None);
        let (mut ack, mut deadline, mut items, mut item) = (None, None, None, None);
        while let Some(member) = map.next_key()? {
            match member {
                Member::Id => once(&mut id, "id", &mut map)?,
                Member::Type => once(&mut message_type, "type", &mut map)?,
                Member::Timestamp => once(&mut timestamp, "timestamp", &mut map)?,
                Member::Payload => once(&mut payload, "payload", &mut map)?,
                Member::InReplyTo => once(&mut in_reply_to, "inReplyTo", &mut map)?,
                Member::Seq => once(&mut seq, "seq", &mut map)?,
                Member::Stream => once(&mut stream, "stream", &mut map)?,
                Member::Ack => once(&mut ack, "ack", &mut map)?,
                Member::Deadline => once(&mut deadline, "deadline", &mut map)?,
                Member::Items => once(&mut items, "items", &mut map)?,
                Member::Item => once(&mut item, "item", &mut map)?,
                Member::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let missing = <A::Error as de::Error>::missing_field;
        let TypeName(message_type) = message_type.ok_or_else(|| missing("type"))?;
        Ok(Envelope {
            id: id.ok_or_else(|| missing("id"))?,
            message_type,
            timestamp: timestamp.ok_or_else(|| missing("timestamp"))?,
            payload: payload.filter(|payload: &&RawValue| payload.get() != "null"),
            in_reply_to: in_reply_to.flatten(),
            seq,
            stream,
            ack,
            deadline,
            items,
            item,
        })
    }
}

/// Whether a JSON text is an object.
fn is_object(text: &str) -> bool {
    text.trim_start_matches([' ', '\t', '\n', '\r'])
        .starts_with('{')
}

/// Reads a member that may be there only once.
fn once<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    slot: &mut Option<T>,
    name: &'static str,
    map: &mut A,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(de::Error::duplicate_field(name));
    }
    *slot = Some(map.next_value()?);
    Ok(())
}

/// The id in a body that is no envelope: the text of its only member `id`, as far as the body can
/// be read.
fn recover_id(body: &[u8]) -> Option<MessageId> {
    /// What was found so far; a second id makes both useless.
    #[derive(Default)]
    struct Ids {
        first: Option<MessageId>,
        ambiguous: bool,
    }

    impl<'de> de::Visitor<'de> for &mut Ids {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(member) = map.next_key()? {
                match member {
                    Member::Id if self.first.is_none() => self.first = Some(map.next_value()?),
                    Member::Id => {
                        self.ambiguous = true;
                        return Ok(());
                    }
                    Member::Type
                    | Member::Timestamp
                    | Member::Payload
                    | Member::InReplyTo
                    | Member::Seq
                    | Member::Stream
                    | Member::Ack
                    | Member::Deadline
                    | Member::Items
                    | Member::Item
                    | Member::Unknown => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(())
        }
    }

    let mut ids = Ids::default();
    // Whatever stops the search, what was found before it counts.
    let _stopped = serde_json::Deserializer::from_slice(body).deserialize_map(&mut ids);
    ids.first.filter(|_| !ids.ambiguous)
}

// The text of an error is cut to fit an acknowledgment together with its introduction.
const _: () = assert!(payload::MAX_DETAIL + 64 <= MAX_ERROR_TEXT);
