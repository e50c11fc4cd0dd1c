//! Files as a backup meets them.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::os::make_way;

/// Opens a file for reading: not through a link, and without waiting for the writer of a pipe that
/// took the file's place since it was seen.
pub(crate) fn open_source(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file any more",
        ))
    }
}

/// Whether another program's lock is what stands in the way.
pub(crate) fn is_locked(error: &io::Error) -> bool {
    use io::ErrorKind::{ExecutableFileBusy, ResourceBusy, WouldBlock};
    matches!(error.kind(), ExecutableFileBusy | ResourceBusy | WouldBlock)
}

/// Unix has no such attribute.
pub(crate) fn is_cloud_placeholder(_: &Metadata) -> bool {
    false
}

/// Unix has no reparse points other than symbolic links, which `Metadata` tells by itself.
pub(crate) fn is_reparse_point(_: &Metadata) -> bool {
    false
}

/// Makes one file of a backup survive a power cut, where [`flush_folder`] cannot do it for all.
pub(crate) fn flush_file(file: &File) -> io::Result<()> {
    if cfg!(target_os = "linux") {
        Ok(())
    } else {
        file.sync_all()
    }
}

/// Makes all that was written below a folder survive a power cut: on Linux with one `syncfs(2)`,
/// which is far cheaper than a flush for each of many small files.
#[cfg(target_os = "linux")]
pub(crate) fn flush_folder(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// Makes the names in a folder survive a power cut.
#[cfg(not(target_os = "linux"))]
pub(crate) fn flush_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Creates a folder, and those that lead to it, for this user alone.
pub(crate) fn create_private_folders(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates a file for this user alone, in place of one that may be there.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    make_way(path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

pub(crate) fn remove_file_or_link(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}
