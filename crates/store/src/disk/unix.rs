//! What a folder needs of Unix.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// Makes a folder and those above it, for this account alone.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The account that a folder belongs to, if that is not this process's.
pub(super) fn foreign_owner(folder: &Metadata) -> Option<String> {
    (folder.uid() != geteuid().as_raw()).then(|| format!("uid {}", folder.uid()))
}

/// Files are for this account alone, and never opened through a symbolic link.
pub(super) fn harden(options: &mut OpenOptions) {
    options
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
}

pub(super) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// A name is durable when its folder is (fsync(2), "Calling fsync() does not necessarily ensure
/// that the entry in the directory containing the file has also reached disk").
pub(super) fn sync_names(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub(super) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

pub(super) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}
