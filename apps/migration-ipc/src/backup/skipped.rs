//! What a backup left out, and why.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::relative_path::RelativePath;
use crate::os;

/// Something of the source that is not in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    #[serde(flatten)]
    pub(crate) path: RelativePath,
    #[serde(flatten)]
    pub(crate) why: Reason,
}

/// A cause with what the operating system said about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) cause: Cause,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

/// Why something is not in the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// A symbolic link, junction or other reparse point; never followed.
    Link,
    /// A socket, pipe or device; it has no content.
    SpecialFile,
    /// The content lies with a cloud provider, and fetching it was not asked for.
    CloudPlaceholder,
    /// It was there when the source was scanned and is not any more.
    Vanished,
    /// Another program holds it.
    Locked,
    /// The operating system did not let it be read.
    Unreadable,
    /// It changed during every attempt to copy it.
    Changed,
    /// The destination cannot hold it, for example for its name.
    Unwritable,
}

impl Cause {
    /// Whether data that the user has now is missing from the backup against the rules.
    pub(crate) fn is_failure(self) -> bool {
        match self {
            Self::Link | Self::SpecialFile | Self::CloudPlaceholder | Self::Vanished => false,
            Self::Locked | Self::Unreadable | Self::Changed | Self::Unwritable => true,
        }
    }
}

impl Reason {
    /// What an error while reading the source means.
    pub(crate) fn unreadable(error: &io::Error) -> Self {
        let cause = if error.kind() == io::ErrorKind::NotFound {
            Cause::Vanished
        } else if os::is_locked(error) {
            Cause::Locked
        } else {
            Cause::Unreadable
        };
        Self {
            cause,
            detail: Some(error.to_string()),
        }
    }

    pub(crate) fn unwritable(error: &io::Error) -> Self {
        Self {
            cause: Cause::Unwritable,
            detail: Some(error.to_string()),
        }
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Self {
        Self {
            cause,
            detail: None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "it is a link",
            Self::SpecialFile => "it is not a regular file",
            Self::CloudPlaceholder => "its content is in the cloud",
            Self::Vanished => "it is gone",
            Self::Locked => "another program holds it",
            Self::Unreadable => "it cannot be read",
            Self::Changed => "it kept changing",
            Self::Unwritable => "the backup folder cannot hold it",
        })
    }
}
