//! A locked file: held by one process at a time, until it lets go or ends.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::folder::{Folder, is_same_file};

/// The lock is let go when the handle is closed (flock(2)); the file is its holder's to remove.
#[derive(Debug)]
pub(super) struct Lock {
    _handle: OwnedFd,
    /// Which file is locked.
    pub(super) file: Stat,
}

/// Why there is no saying who holds a lock.
#[derive(Debug)]
pub(super) enum LockError {
    /// Something else has the lock file's name.
    Occupied(&'static str),
    /// An error of the operating system.
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for LockError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// What became of an attempt to lock an open file.
#[derive(Debug)]
enum Attempt {
    Taken(Lock),
    Held,
    /// The holder before removed the file after it was opened here. A lock on it means nothing: the
    /// next process would make a new file and lock that.
    Removed,
}

impl Lock {
    /// Takes the lock, making the file if need be; `None` if it is held.
    pub(super) fn take(folder: &Folder, name: &Path) -> Result<Option<Self>, LockError> {
        loop {
            match Self::attempt(folder, name, open(folder, name)?)? {
                Attempt::Taken(lock) => return Ok(Some(lock)),
                Attempt::Held => return Ok(None),
                Attempt::Removed => {}
            }
        }
    }

    fn attempt(folder: &Folder, name: &Path, handle: OwnedFd) -> Result<Attempt, LockError> {
        let file = fs::fstat(&handle)?;
        if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile {
            return Err(LockError::Occupied("is not a lock file"));
        }
        if file.st_uid != geteuid().as_raw() {
            // Its owner could hold the lock for ever.
            return Err(LockError::Occupied(FOREIGN));
        }
        match fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Attempt::Held),
            Err(error) => return Err(error.into()),
        }
        match folder.entry(name)? {
            Some(named) if is_same_file(&named, &file) => Ok(Attempt::Taken(Self {
                _handle: handle,
                file,
            })),
            _ => Ok(Attempt::Removed),
        }
    }
}

const FOREIGN: &str = "is the lock file of another account";

fn open(folder: &Folder, name: &Path) -> Result<OwnedFd, LockError> {
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(|error| match error {
        Errno::LOOP => LockError::Occupied("is a symbolic link"),
        // The file's mode, or the rule for shared folders (fs.protected_regular, proc(5)); if there
        // is no file, the folder.
        Errno::ACCESS if matches!(folder.entry(name), Ok(Some(_))) => LockError::Occupied(FOREIGN),
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "lock";

    fn folder(scratch: &tempfile::TempDir) -> Folder {
        let io_error = |action, source| panic!("{action}: {source}");
        Folder::prepare(scratch.path(), io_error).unwrap()
    }

    #[test]
    fn a_lock_is_held_once_and_let_go() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = folder(&scratch);
        let first = Lock::take(&folder, Path::new(NAME)).unwrap();
        assert!(first.is_some());
        assert!(Lock::take(&folder, Path::new(NAME)).unwrap().is_none());
        drop(first);
        assert!(Lock::take(&folder, Path::new(NAME)).unwrap().is_some());
    }

    /// Two would hold a lock otherwise: one that of the file that was removed, one that of the file
    /// in its place.
    #[test]
    fn a_file_that_was_removed_before_it_was_locked_does_not_count() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = folder(&scratch);
        let name = Path::new(NAME);
        let opened_early = open(&folder, name).unwrap();
        folder.remove(name).unwrap();
        let attempt = Lock::attempt(&folder, name, opened_early).unwrap();
        assert!(matches!(attempt, Attempt::Removed), "{attempt:?}");

        let opened_early = open(&folder, name).unwrap();
        folder.remove(name).unwrap();
        let _new_holder = Lock::take(&folder, name).unwrap().unwrap();
        let attempt = Lock::attempt(&folder, name, opened_early).unwrap();
        assert!(matches!(attempt, Attempt::Removed), "{attempt:?}");
    }
}
