//! Why a secret cannot be read, kept, protected or opened, and what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::platform;

/// A file with a secret is not usable.
#[derive(Debug, Error)]
#[error("the secret file {} {problem}", .path.display())]
pub struct SecretFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, to be read after the path.
    pub problem: SecretFileProblem,
}

impl SecretFileError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.problem, SecretFileProblem::Missing)
    }
}

/// What is wrong with a file that has, or is to have, a secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SecretFileProblem {
    /// There is none.
    #[error("does not exist; make it, or name the one that is there")]
    Missing,
    /// The name is that of a link: whoever made it decides where it leads, now and later.
    #[error("is a link; name the file that it leads to")]
    Link,
    /// It is a folder, a pipe, a device, or has no name.
    #[error("is not a regular file; name one that holds the secret")]
    NotAFile,
    /// It belongs to an account that could change it at any time.
    #[error(
        "belongs to {owner}, who can read and change it; {}",
        platform::secrets::TAKE_OVER
    )]
    ForeignOwner {
        /// Its owner.
        owner: String,
    },
    /// Others may read or change it.
    #[error("is open to others: {how}; {}", platform::secrets::CLOSE)]
    OpenToOthers {
        /// To whom, and how.
        how: String,
    },
    /// Others can replace it.
    #[error("is in the folder {}, which {problem}", .folder.display())]
    UnsafeFolder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it, and what would put it right; to be read after the folder.
        problem: String,
    },
    /// It is larger than a secret of its kind can be.
    #[error("has {length} bytes and can have {limit}; is it the right file?")]
    TooLong {
        /// Its length in bytes.
        length: u64,
        /// The longest that is read, in bytes.
        limit: u64,
    },
    /// Nothing is in it.
    #[error("is empty; remove it and make it anew")]
    Empty,
    /// Its length changed while it was read.
    #[error("was changed while it was read; try again when nobody writes to it")]
    Changed,
    /// Something has the name of a file that was to be made. It is never replaced.
    #[error("exists already and is not replaced; choose another name, or move it away first")]
    Exists,
    /// Any other error of the operating system.
    #[error("cannot be used: {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A secret could not be protected, or what was protected could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// Only Windows has it.
    #[error(
        "this system has no data protection of its own (only Windows has DPAPI); keep the secret \
         in a file that only its account can read (mode 0600)"
    )]
    NotSupported,
    /// The operating system does not open it.
    #[error(
        "what is protected cannot be opened ({source}): another machine or account protected it, \
         or it was changed; open it where it was made, or make a new one"
    )]
    Unopened {
        /// The operating system's error.
        source: io::Error,
    },
    /// The operating system does not protect it.
    #[error("the secret cannot be protected: {source}")]
    Io {
        /// The operating system's error.
        source: io::Error,
    },
}
