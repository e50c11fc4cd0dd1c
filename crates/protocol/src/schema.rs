//! A fingerprint of the payload types that a side was built with.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::limits::MAX_SCHEMA;

/// What a peer says of its payload types: a text of at most [`MAX_SCHEMA`] bytes that means nothing
/// but itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Schema(Box<str>);

/// A text is no [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fingerprint of a schema has at most {MAX_SCHEMA} bytes")]
pub struct SchemaTooLong;

impl Schema {
    /// The fingerprint with this text.
    ///
    /// # Errors
    ///
    /// [`SchemaTooLong`].
    pub fn new(text: &str) -> Result<Self, SchemaTooLong> {
        if text.len() > MAX_SCHEMA {
            return Err(SchemaTooLong);
        }
        Ok(Self(text.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

/// What this side was built with, as it tells its peers. Both sides of an application make it from
/// the same text; whoever has types of its own adds a text that is changed with them.
///
/// ```
/// use migration_ipc_protocol::SchemaFingerprint;
///
/// const SCHEMA: SchemaFingerprint = SchemaFingerprint::BUILT_IN.with("disk space, version 2");
/// assert_ne!(SCHEMA, SchemaFingerprint::BUILT_IN);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SchemaFingerprint(u64);

impl SchemaFingerprint {
    /// That of the fourteen built-in types: their names, each with the names of its members.
    pub const BUILT_IN: Self = Self(0xb5bf_58f3_b68c_0da7);

    /// With this text too.
    #[must_use]
    pub const fn with(self, text: &str) -> Self {
        // FNV-1a: short, and a constant; nobody gains anything by finding two texts with one
        // fingerprint.
        let (bytes, mut hash, mut at) = (text.as_bytes(), self.0, 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        Self(hash)
    }
}

impl Default for SchemaFingerprint {
    fn default() -> Self {
        Self::BUILT_IN
    }
}

impl fmt::Display for SchemaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SchemaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<SchemaFingerprint> for Schema {
    fn from(fingerprint: SchemaFingerprint) -> Self {
        Self(fingerprint.to_string().into())
    }
}
