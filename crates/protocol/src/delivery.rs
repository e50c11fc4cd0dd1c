//! What a durable message says of its delivery: whose it is, and its place in the order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::extensions::parse_from_one;
use crate::limits::MAX_STREAM_NAME;

/// The id of an outbox: 128 random bits, made once with its store. On the wire 32 hexadecimal
/// digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxId(Uuid);

/// A text is no [`OutboxId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of an outbox is 32 hexadecimal digits in lower case")]
pub struct ParseOutboxIdError;

impl OutboxId {
    /// The id with these bits.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Its bits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for OutboxId {
    type Err = ParseOutboxIdError;

    fn from_str(text: &str) -> Result<Self, ParseOutboxIdError> {
        let canonical = text.len() == 32 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let id = Uuid::try_parse(text).map_err(|_| ParseOutboxIdError)?;
        canonical.then_some(Self(id)).ok_or(ParseOutboxIdError)
    }
}

impl fmt::Display for OutboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.as_simple(), f)
    }
}

impl fmt::Debug for OutboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutboxId({self})")
    }
}

impl Serialize for OutboxId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OutboxId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The name of an order within an outbox: 1 to [`MAX_STREAM_NAME`] of the characters `A` to `Z`,
/// `a` to `z`, `0` to `9`, `.`, `_` and `-`. Messages without one are in the unnamed stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(Box<str>);

/// A text is no [`StreamName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a stream has 1 to {MAX_STREAM_NAME} of the characters A-Z, a-z, 0-9, `.`, `_` and `-`"
)]
pub struct InvalidStreamName;

impl StreamName {
    /// The name with this text.
    ///
    /// # Errors
    ///
    /// [`InvalidStreamName`] when it is too long, empty, or has other characters.
    pub fn new(name: &str) -> Result<Self, InvalidStreamName> {
        Self::check(name).map(|name| Self(name.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(name: &str) -> Result<&str, InvalidStreamName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let valid = (1..=MAX_STREAM_NAME).contains(&name.len()) && name.bytes().all(allowed);
        valid.then_some(name).ok_or(InvalidStreamName)
    }
}

/// The place of a durable message in the order of its outbox. Only between peers that negotiated
/// [`Durable`](crate::hello::Capability::Durable).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryHead<'a> {
    /// The number of the message in its outbox; the first is 1.
    pub seq: u64,
    /// The name of its stream, which is a [`StreamName`]; `None` for the unnamed one.
    pub stream: Option<&'a str>,
}

/// The members `seq` and `stream` of an envelope are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryHeadError {
    /// `seq` is not a whole number from 1 to 2^64 - 1.
    #[error("`seq` is no whole number from 1 on")]
    Seq,
    /// `stream` is no name.
    #[error("`stream`: {0}")]
    Stream(#[from] InvalidStreamName),
    /// `stream` without `seq`.
    #[error("`stream` without `seq`")]
    StreamAlone,
}

impl<'a> DeliveryHead<'a> {
    /// Reads the two members as they were written.
    pub(crate) fn read(
        seq: Option<&'a RawValue>,
        stream: Option<&'a RawValue>,
    ) -> Result<Option<Self>, DeliveryHeadError> {
        let given = |value: &&RawValue| value.get() != "null";
        let (seq, stream) = (seq.filter(given), stream.filter(given));
        let stream = match stream.map(RawValue::get) {
            None => None,
            Some(text) => {
                let name = text
                    .strip_prefix('"')
                    .and_then(|text| text.strip_suffix('"'))
                    .ok_or(InvalidStreamName)?;
                Some(StreamName::check(name)?)
            }
        };
        match seq.map(RawValue::get) {
            Some(text) => {
                let seq = parse_from_one(text).ok_or(DeliveryHeadError::Seq)?;
                Ok(Some(Self { seq, stream }))
            }
            None if stream.is_some() => Err(DeliveryHeadError::StreamAlone),
            None => Ok(None),
        }
    }

    /// Takes the members off the front of a text in the usual form, if they are there.
    pub(crate) fn take_usual(text: &'a str) -> Option<(Option<Self>, &'a str)> {
        let Some(text) = text.strip_prefix(",\"seq\":") else {
            return Some((None, text));
        };
        let (seq, mut text) = text.split_at(text.find(',')?);
        let mut stream = None;
        if let Some(rest) = text.strip_prefix(",\"stream\":\"") {
            let (name, rest) = rest.split_once('"')?;
            stream = Some(StreamName::check(name).ok()?);
            text = rest;
        }
        let seq = parse_from_one(seq)?;
        Some((Some(Self { seq, stream }), text))
    }
}
