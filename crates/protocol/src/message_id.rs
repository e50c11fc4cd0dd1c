//! The id of a message.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::limits::MAX_MESSAGE_ID;

/// The id of a message: any text of at most [`MAX_MESSAGE_ID`] bytes, kept exactly as it was
/// written.
///
/// An id in the form of the ones made here, a UUID in lower case with hyphens, takes no memory of
/// its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MessageId(Repr);

/// Invariant: a text that is a UUID in lower case with hyphens is always `Uuid`, so that equal
/// texts are equal ids.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Uuid(Uuid),
    Text(Box<str>),
}

/// An id is longer than [`MAX_MESSAGE_ID`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message id of {length} bytes is over the limit of {MAX_MESSAGE_ID}")]
pub struct MessageIdTooLong {
    /// The length of the refused id in bytes.
    pub length: usize,
}

impl MessageId {
    /// An id with this text.
    ///
    /// # Errors
    ///
    /// [`MessageIdTooLong`] over [`MAX_MESSAGE_ID`] bytes.
    pub fn new(text: &str) -> Result<Self, MessageIdTooLong> {
        if let Some(uuid) = parse_canonical(text) {
            return Ok(Self(Repr::Uuid(uuid)));
        }
        if text.len() > MAX_MESSAGE_ID {
            return Err(MessageIdTooLong { length: text.len() });
        }
        Ok(Self(Repr::Text(text.into())))
    }

    fn with_str<R>(&self, run: impl FnOnce(&str) -> R) -> R {
        match &self.0 {
            Repr::Uuid(uuid) => run(uuid
                .as_hyphenated()
                .encode_lower(&mut [0; Hyphenated::LENGTH])),
            Repr::Text(text) => run(text),
        }
    }
}

/// Reads a UUID only if writing it gives the same text again.
fn parse_canonical(text: &str) -> Option<Uuid> {
    // The hyphenated form is the only one of this length, and upper case its only variation.
    if text.len() != Hyphenated::LENGTH || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    Uuid::try_parse(text).ok()
}

impl From<Uuid> for MessageId {
    fn from(uuid: Uuid) -> Self {
        Self(Repr::Uuid(uuid))
    }
}

impl FromStr for MessageId {
    type Err = MessageIdTooLong;

    fn from_str(text: &str) -> Result<Self, MessageIdTooLong> {
        Self::new(text)
    }
}

impl PartialEq<str> for MessageId {
    fn eq(&self, other: &str) -> bool {
        self.with_str(|text| text == other)
    }
}

impl PartialEq<&str> for MessageId {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_str(|text| f.pad(text))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_str(|text| fmt::Debug::fmt(text, f))
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_str(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = MessageId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a message id of at most {MAX_MESSAGE_ID} bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MessageId, E> {
                MessageId::new(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}
