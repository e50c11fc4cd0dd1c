//! The names of keys.

use std::fmt;
use std::str::FromStr;

use migration_ipc_protocol::limits::MAX_KEY_NAME;

/// The name of a key: 1 to [`MAX_KEY_NAME`] printable characters of ASCII, without spaces. It is on
/// the wire in the clear, and in logs, so it must say nothing of the key itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(Box<str>);

/// A text is no [`KeyName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a key has 1 to {MAX_KEY_NAME} printable ASCII characters, and no spaces")]
pub struct InvalidKeyName;

impl KeyName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = InvalidKeyName;

    fn from_str(text: &str) -> Result<Self, InvalidKeyName> {
        let fits = (1..=MAX_KEY_NAME).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidKeyName)
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_printable() {
        for name in ["2026-11", "a", &"k".repeat(MAX_KEY_NAME)] {
            assert_eq!(name.parse::<KeyName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            "a b",
            "a\n",
            "ä",
            "\u{7f}",
            &"k".repeat(MAX_KEY_NAME + 1),
        ] {
            assert_eq!(name.parse::<KeyName>(), Err(InvalidKeyName), "{name:?}");
        }
    }
}
