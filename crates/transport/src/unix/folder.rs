//! The folder of a socket: made safely, and checked before anything is put into it.
//!
//! Whoever may write to the folder can replace the socket by another. So the folder must belong to
//! root or to this process's user, and only they may write to it; or it is a shared one with the
//! sticky bit, like `/tmp`, where nobody can remove what another made. The check is of the open
//! folder, and everything after it goes through that handle: a folder that is exchanged in the
//! meantime gains nothing. What is above the folder is its owner's affair.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{BindError, FolderProblem};
use crate::secrets::SecretFileProblem;

const PERMISSIONS: u32 = 0o7777;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// An open folder that passed the checks.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: File,
}

impl Folder {
    /// Opens a folder, after making it if it is not there (its parent must be): with mode 0755 if
    /// this is root, whose sockets are for everybody, else 0700.
    ///
    /// `io_error` names what failed in terms of the endpoint.
    pub(super) fn prepare(
        path: &Path,
        io_error: impl Fn(&'static str, io::Error) -> BindError,
    ) -> Result<Self, BindError> {
        let unsuitable = |problem| BindError::UnsuitableFolder {
            path: path.to_owned(),
            problem,
        };
        let opened = match open(path) {
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(if geteuid().is_root() { 0o755 } else { 0o700 });
                make(path, mode).map_err(|error| io_error("making its folder", error.into()))?;
                open(path)
            }
            opened => opened,
        };
        let handle = opened.map_err(|error| match shape_problem(path) {
            Some(problem) => unsuitable(problem),
            None => io_error("opening its folder", error.into()),
        })?;
        let metadata = handle
            .metadata()
            .map_err(|error| io_error("checking its folder", error))?;
        check(&metadata, geteuid().as_raw()).map_err(unsuitable)?;
        Ok(Self {
            path: path.to_owned(),
            handle,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at an entry without following a link; `None` if it is not there.
    pub(super) fn entry(&self, name: &Path) -> io::Result<Option<Stat>> {
        match fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an entry; one that is gone already is as good.
    pub(super) fn remove(&self, name: &Path) -> io::Result<()> {
        match fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Whether two looks at a name found one file, and not one in the place of the other.
pub(super) fn is_same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// The owner of a folder that nobody else can write to; `None` for any other folder, and where it
/// cannot be told.
pub(super) fn sole_writer(path: &Path) -> Option<u32> {
    let folder = open(path).ok()?.metadata().ok()?;
    (folder.mode() & WRITABLE_BY_OTHERS == 0).then(|| folder.uid())
}

/// Whether a folder can be the system's, as a client sees it (without following a link): root's,
/// and nobody else's to change.
pub(super) fn check_system(folder: &Metadata) -> Result<(), FolderProblem> {
    if folder.is_symlink() {
        return Err(FolderProblem::SymbolicLink);
    }
    check(folder, 0)?;
    // In a shared one anybody could be first with the socket's name.
    let mode = folder.mode() & PERMISSIONS;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(FolderProblem::WritableByOthers { mode });
    }
    Ok(())
}

/// Whether others can put something into a folder. One where they can also replace what is not
/// theirs is an error.
pub(super) fn check_shared(folder: &Metadata) -> Result<bool, FolderProblem> {
    check(folder, folder.uid())?;
    Ok(folder.mode() & WRITABLE_BY_OTHERS != 0)
}

/// Opens a folder in which nobody but root and this account can replace a file: the outer error is
/// that of a folder that does not open, the inner one says what is wrong with it and what to do.
pub(super) fn open_closed(path: &Path) -> Result<Result<File, String>, SecretFileProblem> {
    let io = |source| SecretFileProblem::Io {
        action: "opening its folder",
        source,
    };
    let handle = match open(path) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Err(SecretFileProblem::Missing),
        Err(error) => match shape_problem(path) {
            Some(problem) => return Ok(Err(problem.to_string())),
            None => return Err(io(error.into())),
        },
    };
    let metadata = handle.metadata().map_err(io)?;
    Ok(match check(&metadata, geteuid().as_raw()) {
        Ok(()) => Ok(handle),
        Err(FolderProblem::WritableByOthers { mode }) => Err(format!(
            "has mode {mode:04o}, so that others can replace what is in it; remove their right to \
             write (chmod go-w)"
        )),
        Err(problem) => Err(problem.to_string()),
    })
}

fn open(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Makes a folder with exactly this mode. One that somebody made just now is as good: it is checked
/// like any other.
fn make(path: &Path, mode: Mode) -> Result<(), Errno> {
    match fs::mkdir(path, mode) {
        // The process's umask took away what it liked.
        Ok(()) => fs::fchmod(open(path)?, mode),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Why a path does not open as a folder, if that is due to what it is.
fn shape_problem(path: &Path) -> Option<FolderProblem> {
    let kind = path.symlink_metadata().ok()?.file_type();
    if kind.is_symlink() {
        Some(FolderProblem::SymbolicLink)
    } else if kind.is_dir() {
        None
    } else {
        Some(FolderProblem::NotAFolder)
    }
}

fn check(folder: &Metadata, own_uid: u32) -> Result<(), FolderProblem> {
    let owner = folder.uid();
    if owner != 0 && owner != own_uid {
        return Err(FolderProblem::ForeignOwner {
            owner,
            expected: own_uid,
        });
    }
    let mode = folder.mode() & PERMISSIONS;
    if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        return Err(FolderProblem::WritableByOthers { mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn a_client_takes_only_a_closed_folder_of_roots_for_the_systems() {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: only root can make a folder of root's");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let (folder, link) = (scratch.path().join("folder"), scratch.path().join("link"));
        create_dir(&folder).unwrap();
        symlink(&folder, &link).unwrap();
        let look = |path: &Path| check_system(&path.symlink_metadata().unwrap());
        let set_mode = |mode| set_permissions(&folder, Permissions::from_mode(mode)).unwrap();

        set_mode(0o755);
        assert_eq!(look(&folder), Ok(()));
        assert_eq!(look(&link), Err(FolderProblem::SymbolicLink));
        for mode in [0o775, 0o757, 0o1777] {
            set_mode(mode);
            assert_eq!(look(&folder), Err(FolderProblem::WritableByOthers { mode }));
        }
        set_mode(0o755);
        chown(&folder, Some(60_001), None).unwrap();
        let foreign = FolderProblem::ForeignOwner {
            owner: 60_001,
            expected: 0,
        };
        assert_eq!(look(&folder), Err(foreign));
    }
}
