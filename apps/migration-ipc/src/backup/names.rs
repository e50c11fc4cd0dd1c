//! Names that become folders, and the categories that carry them.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::os;

/// The longest name in bytes; a Windows account id (a SID) has at most 184.
const MAX_NAME: usize = 200;

/// A name that is safe as one component of a path on every system: ASCII letters, digits, `-`, `_`
/// and `.`, not starting with a dot and not ending with one (Windows drops trailing dots).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct FolderName(String);

impl FolderName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest safe name: every other character becomes `_`, and nothing becomes `data`.
    pub(crate) fn from_any(text: &str) -> Self {
        let safe = |c: char| if is_safe(c) { c } else { '_' };
        let name: String = text.chars().take(MAX_NAME).map(safe).collect();
        let name = name.trim_matches('.');
        Self(if name.is_empty() { "data" } else { name }.to_owned())
    }
}

fn is_safe(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

impl FromStr for FolderName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = !text.is_empty() && text.len() <= MAX_NAME;
        if fits && text.chars().all(is_safe) && !text.starts_with('.') && !text.ends_with('.') {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for FolderName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<FolderName> for String {
    fn from(name: FolderName) -> Self {
        name.0
    }
}

impl fmt::Display for FolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that cannot name a folder on every system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name that every system can store; use at most {MAX_NAME} letters, digits, \
     `-`, `_` and `.`, with no dot at either end"
)]
pub(crate) struct NameError(String);

/// A named part of a user's data and the place where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Category {
    pub(crate) name: FolderName,
    pub(crate) source: PathBuf,
}

impl Category {
    /// Reads `NAME=PATH`, where the path may be any path of the system.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, CategoryError> {
        let malformed = || CategoryError::Malformed(text.to_string_lossy().into_owned());
        let (name, path) = os::split_at_equals(text).ok_or_else(malformed)?;
        if path.is_empty() {
            return Err(malformed());
        }
        let name = name.to_str().ok_or_else(malformed)?.parse()?;
        Ok(Self {
            name,
            source: Path::new(&path).to_owned(),
        })
    }
}

/// Why a text is not a category.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CategoryError {
    #[error("`{0}` is not NAME=PATH, for example files=/home/alice/Documents")]
    Malformed(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_category_is_split_at_the_first_equals_sign() {
        let category = Category::parse(OsStr::new("files=/a=b")).unwrap();
        assert_eq!(category.name.as_str(), "files");
        assert_eq!(category.source, Path::new("/a=b"));
    }

    #[test]
    fn what_is_not_a_category_says_what_one_is() {
        for text in ["files", "files=", ""] {
            let error = Category::parse(OsStr::new(text)).unwrap_err().to_string();
            assert!(error.contains("NAME=PATH"), "{error}");
        }
        assert!(matches!(
            Category::parse(OsStr::new("a/b=/x")),
            Err(CategoryError::Name(_))
        ));
    }

    #[test]
    fn unsafe_names_are_refused_or_made_safe() {
        for text in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\\b",
            "a:b",
            "trailing.",
            "é",
        ] {
            assert!(text.parse::<FolderName>().is_err(), "{text}");
            assert!(
                FolderName::from_any(text)
                    .as_str()
                    .parse::<FolderName>()
                    .is_ok(),
                "{text}"
            );
        }
        assert_eq!(
            FolderName::from_any("DOMAIN\\alice").as_str(),
            "DOMAIN_alice"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_not_utf8_is_kept() {
        use std::os::unix::ffi::OsStrExt;
        let category = Category::parse(OsStr::from_bytes(b"files=/tmp/\xff")).unwrap();
        assert_eq!(category.source.as_os_str().as_bytes(), b"/tmp/\xff");
    }
}
