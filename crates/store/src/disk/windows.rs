//! What a folder needs of Windows.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::FileExt;
use std::path::Path;

use super::held::retry_held;

/// Makes a folder and those above it; who may use it is inherited, which in a user's profile means
/// that user, the system and the administrators.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Not looked at: the folder's access list decides, and a folder that an administrator makes may
/// belong to the group of all administrators.
pub(super) fn foreign_owner(_folder: &Metadata) -> Option<String> {
    None
}

/// Files inherit from their folder.
pub(super) fn harden(_options: &mut OpenOptions) {}

/// Renames, and flushes the file under its new name: NTFS writes the journal of names with it, up to
/// this rename.
pub(super) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    retry_held(|| fs::rename(from, to))?;
    retry_held(|| OpenOptions::new().write(true).open(to))?.sync_all()
}

/// Nothing to do: NTFS keeps names in a journal, in order, which `FlushFileBuffers` of a file
/// writes out, and [`replace`] flushes the file that it renamed.
pub(super) fn sync_names(_folder: &Path) -> io::Result<()> {
    Ok(())
}

pub(super) fn read_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = match file.seek_read(buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        buffer = &mut buffer[read..];
        offset = advanced(offset, read)?;
    }
    Ok(())
}

pub(super) fn write_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = match file.seek_write(bytes, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => written,
        };
        bytes = &bytes[written..];
        offset = advanced(offset, written)?;
    }
    Ok(())
}

fn advanced(offset: u64, by: usize) -> io::Result<u64> {
    u64::try_from(by)
        .ok()
        .and_then(|by| offset.checked_add(by))
        .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}
