//! Names of users and sessions as payloads carry them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::MAX_NAME;

/// The name of a user as a payload spells it: a SID, an account name, a uid; empty when the member
/// was absent. One over [`MAX_NAME`] is refused when read. It is what somebody wrote and proves nothing. Clones share the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

/// The session that an agent says it runs in. Read from a text of at most [`MAX_NAME`] or an
/// integer, written as a text; empty when absent. Clones share the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

/// What both names can do: they are texts.
macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether there is no text.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<Arc<str>> for $name {
            fn from(text: Arc<str>) -> Self {
                Self(text)
            }
        }

        impl From<$name> for Arc<str> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                *self.0 == *other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                *self.0 == **other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

text_newtype!(UserId);
text_newtype!(SessionId);

fn bounded<'a, T: From<&'a str>, E: de::Error>(
    text: &'a str,
    expected: &dyn de::Expected,
) -> Result<T, E> {
    if text.len() > MAX_NAME {
        return Err(E::invalid_length(text.len(), expected));
    }
    Ok(text.into())
}

impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = UserId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the name of a user of at most {MAX_NAME} bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<UserId, E> {
                bounded(text, &self)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = SessionId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "a session as text of at most {MAX_NAME} bytes, or integer"
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SessionId, E> {
                bounded(text, &self)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<SessionId, E> {
                Ok(number.to_string().into())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<SessionId, E> {
                Ok(number.to_string().into())
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
