//! The seam to the file system: one folder, and the files in it.
//!
//! What a file holds, and which files there are, is durable only after the matching `sync`; a
//! crash may lose any part of what was not. The stores are written against this, and a simulated
//! disk takes it at its word.

mod folder;
mod held;
#[cfg(unix)]
#[path = "unix.rs"]
mod os;
#[cfg(windows)]
#[path = "windows.rs"]
mod os;

use std::fmt::Debug;
use std::io;

pub use folder::{Folder, FolderError};
pub use held::retry_held;

/// One folder that belongs to this process alone.
pub trait Disk: Debug + Send + Sync {
    /// The names of the files in it, in no order.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when there is none; otherwise when it cannot be opened.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Creates an empty file for reading and writing; its name is durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// `AlreadyExists` when there is one; otherwise when it cannot be created.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Renames a file, replacing one of the new name; durable after [`sync`](Self::sync), and
    /// before that either the old state or the new one.
    ///
    /// # Errors
    /// When it cannot be renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names of the files durable.
    ///
    /// # Errors
    /// When the file system cannot.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// When the file system cannot say.
    fn len(&self) -> io::Result<u64>;

    /// Whether it is empty.
    ///
    /// # Errors
    /// When the file system cannot say.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills the buffer from this place on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; otherwise when it cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of the bytes to this place, which may be at the end.
    ///
    /// # Errors
    /// `StorageFull` when the disk is; part of the bytes may have been written then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or lengthens it with zeros.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the content and the length durable (`fdatasync`, `FlushFileBuffers`).
    ///
    /// # Errors
    /// When the disk cannot. What was written since the last success may be lost or not, and a
    /// later success says nothing about it (fsync(2)).
    fn sync(&self) -> io::Result<()>;
}
