//! Files as a backup meets them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use migration_ipc::storage::disk::retry_held;

use crate::os::make_way;

// File attributes: https://learn.microsoft.com/windows/win32/fileio/file-attribute-constants
const OFFLINE: u32 = 0x1000;
const REPARSE_POINT: u32 = 0x400;
const RECALL_ON_OPEN: u32 = 0x4_0000;
const RECALL_ON_DATA_ACCESS: u32 = 0x40_0000;

/// `FILE_FLAG_OPEN_REPARSE_POINT`: open the link, not what it points to.
const OPEN_LINK_ITSELF: u32 = 0x20_0000;

// https://learn.microsoft.com/windows/win32/debug/system-error-codes--0-499-
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_LOCK_VIOLATION: i32 = 33;

/// Opens a file for reading, not through a link.
///
/// A placeholder that was chosen to be fetched is opened like any other file: the provider fetches
/// its content when it is read.
pub(crate) fn open_source(path: &Path) -> io::Result<File> {
    if is_cloud_placeholder(&path.symlink_metadata()?) {
        return File::open(path);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OPEN_LINK_ITSELF)
        .open(path)?;
    if is_reparse_point(&file.metadata()?) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file any more",
        ));
    }
    Ok(file)
}

/// Whether another program's lock is what stands in the way.
pub(crate) fn is_locked(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION)
    )
}

/// Whether the content would have to be fetched from a cloud provider or slower storage.
pub(crate) fn is_cloud_placeholder(metadata: &Metadata) -> bool {
    metadata.file_attributes() & (OFFLINE | RECALL_ON_OPEN | RECALL_ON_DATA_ACCESS) != 0
}

/// Whether this is a junction, a mount point or another redirection.
pub(crate) fn is_reparse_point(metadata: &Metadata) -> bool {
    metadata.file_attributes() & REPARSE_POINT != 0
}

/// Makes one file of a backup survive a power cut.
pub(crate) fn flush_file(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Windows flushes no folder; [`flush_file`] has done what can be done.
pub(crate) fn flush_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Creates a folder, and those that lead to it; below a user's profile they inherit that it is
/// for this user alone.
pub(crate) fn create_private_folders(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Creates a file in place of one that may be there; it inherits from its folder for whom it is.
/// While somebody has the old one open, it is gone and its name is not free yet.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    retry_held(|| {
        make_way(path)?;
        File::create_new(path).map_err(|error| match error.kind() {
            // What Wine says of such a name.
            io::ErrorKind::AlreadyExists => io::Error::from_raw_os_error(ERROR_SHARING_VIOLATION),
            _ => error,
        })
    })
}

pub(crate) fn remove_file_or_link(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.file_type().is_symlink_dir() {
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// An agent that went on with its backup replaced its manifest and its half-made files at moments at
    /// which somebody looked at them: a virus scanner, or whoever wanted to know how far the backup was.
    /// Windows refuses that for as long as they look, and the backup ended there, "not complete".
    #[test]
    fn a_file_that_somebody_looks_at_is_replaced_when_they_have_seen_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half-made");
        fs::write(&path, "old").unwrap();
        let looking = File::open(&path).unwrap();
        let (about_to_replace, told) = mpsc::channel();
        let looker = thread::spawn(move || {
            told.recv().unwrap();
            drop(looking);
        });
        about_to_replace.send(()).unwrap();
        drop(create_private_file(&path).unwrap());
        looker.join().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
