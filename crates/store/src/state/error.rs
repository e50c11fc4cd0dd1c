//! Why the store cannot be read or written.

use std::fmt;
use std::io;

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder or a file in it cannot be used: it is missing, read-only, somebody else's.
    #[error("cannot {action} `{name}`: {error}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The name of the file.
        name: Box<str>,
        /// The failure.
        error: io::Error,
    },
    /// The file is damaged, or it is no store. It was not changed beyond what a crash leaves to
    /// repair.
    #[error(
        "cannot read the store in `{name}`: {problem}; restore the file from a backup, or move it \
         away to start with an empty store"
    )]
    Damaged {
        /// The name of the file.
        name: Box<str>,
        /// What is wrong with it.
        problem: String,
    },
    /// A commit, or a read, failed: nothing of the commit is to be taken as stored. The next one
    /// opens the database again, so it may succeed when there is room on the disk once more.
    #[error("cannot use the store in `{name}`: {error}")]
    Failed {
        /// The name of the file.
        name: Box<str>,
        /// The failure.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(super) fn disk(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Disk {
            action,
            name: name.into(),
            error,
        }
    }

    pub(super) fn damaged(name: &str, problem: &dyn fmt::Display) -> Self {
        Self::Damaged {
            name: name.into(),
            problem: problem.to_string(),
        }
    }
}

/// A failure inside of a transaction, before it is known which file it was.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database failed.
    Database(redb::Error),
    /// A row is not what was written.
    Row { table: String, problem: String },
    /// A value cannot be written as JSON.
    Json(serde_json::Error),
}

impl Fault {
    pub(super) fn row(table: &str, problem: &dyn fmt::Display) -> Self {
        Self::Row {
            table: table.into(),
            problem: problem.to_string(),
        }
    }

    pub(super) fn in_file(self, name: &str) -> StoreError {
        match self {
            Self::Database(redb::Error::Corrupted(problem)) => StoreError::damaged(name, &problem),
            Self::Database(error) => StoreError::Failed {
                name: name.into(),
                error: error.into(),
            },
            Self::Row { table, problem } => {
                StoreError::damaged(name, &format!("a row of `{table}`: {problem}"))
            }
            Self::Json(error) => StoreError::Failed {
                name: name.into(),
                error: error.into(),
            },
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}
