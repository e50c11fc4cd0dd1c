//! A log of the messages that handlers began, outside of the store: what tests of the whole compare
//! the store with.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use migration_ipc::{ErrorCode, HandlerError, MessageInfo};

/// Where entries are logged, if they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct EntryLog(Option<Arc<Mutex<File>>>);

impl EntryLog {
    /// Appends to a file, which is made if there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Some(Arc::new(Mutex::new(file)))))
    }

    /// A handler begins. The line is with the operating system when this returns.
    pub(crate) fn enter(&self, message: &MessageInfo) -> Result<(), HandlerError> {
        let Some(file) = &self.0 else {
            return Ok(());
        };
        let line = format!("{} {}\n", message.id, message.message_type);
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).map_err(|error| {
            HandlerError::new(format_args!("the entry cannot be logged: {error}"))
                .with_code(ErrorCode::Busy)
        })
    }
}
