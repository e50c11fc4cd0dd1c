//! What a folder needs of Windows.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use windows_sys::Win32::Foundation::{ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION};
use windows_sys::Win32::Storage::FileSystem::{
    MOVEFILE_REPLACE_EXISTING, MOVEFILE_WRITE_THROUGH, MoveFileExW,
};

/// How long to wait before each further attempt at what another program holds up: 0.4 s in all. A
/// virus scanner or an indexer looks at a new file for some milliseconds.
const DELAYS: [Duration; 8] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(60),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

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

/// Tries again, for a moment, what failed because another program had the file open.
pub(super) fn retried<T>(operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    retry(operation, thread::sleep)
}

fn retry<T>(
    mut operation: impl FnMut() -> io::Result<T>,
    mut wait: impl FnMut(Duration),
) -> io::Result<T> {
    for delay in DELAYS {
        match operation() {
            Err(error) if is_held_up(&error) => wait(delay),
            result => return result,
        }
    }
    operation()
}

/// `ERROR_ACCESS_DENIED` is also what a file gives that was removed and is still open somewhere.
fn is_held_up(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .and_then(|code| u32::try_from(code).ok())
        .is_some_and(|code| matches!(code, ERROR_ACCESS_DENIED | ERROR_SHARING_VIOLATION))
}

/// Renames with `MOVEFILE_WRITE_THROUGH`: "The function does not return until the file is actually
/// moved on the disk" (Win32, `MoveFileExW`). `std::fs::rename` does not ask for that, and a folder
/// has nothing that could be flushed afterwards.
#[expect(
    unsafe_code,
    reason = "the standard library has no rename that writes through"
)]
pub(super) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| {
        let mut wide: Vec<u16> = path.as_os_str().encode_wide().collect();
        wide.push(0);
        wide
    });
    let flags = MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH;
    // SAFETY: both are texts that end in a zero and outlive the call.
    match unsafe { MoveFileExW(from.as_ptr(), to.as_ptr(), flags) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Nothing to do: NTFS keeps names in a journal, in order, which `FlushFileBuffers` of a file
/// writes out, and [`replace`] writes through.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: u32) -> io::Error {
        io::Error::from_raw_os_error(code.cast_signed())
    }

    #[test]
    fn a_file_that_is_held_for_a_moment_is_waited_for() {
        let mut codes = vec![ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION];
        let mut waited = Duration::ZERO;
        let result = retry(
            || codes.pop().map_or(Ok(7), |code| Err(failure(code))),
            |delay| waited += delay,
        );
        assert_eq!(result.unwrap(), 7);
        assert_eq!(waited, DELAYS[0] + DELAYS[1]);
    }

    #[test]
    fn a_file_that_stays_held_is_given_up() {
        let mut attempts = 0;
        let result = retry(
            || {
                attempts += 1;
                Err::<(), _>(failure(ERROR_SHARING_VIOLATION))
            },
            |_| {},
        );
        assert!(is_held_up(&result.unwrap_err()));
        assert_eq!(attempts, DELAYS.len() + 1);
    }

    #[test]
    fn other_failures_are_not_repeated() {
        let mut attempts = 0;
        let result = retry(
            || {
                attempts += 1;
                Err::<(), _>(io::ErrorKind::NotFound.into())
            },
            |_| panic!("waited"),
        );
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(attempts, 1);
    }
}
