//! Files with secrets.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::folder;
use crate::secrets::{ProtectError, ProtectScope, SecretFileProblem, split};

/// What to do about a file of another account.
pub(crate) const TAKE_OVER: &str =
    "it must belong to root or to the account that uses it (chown), or copy it";

/// What to do about a file that others may read or change.
pub(crate) const CLOSE: &str = "take their rights away (chmod 600), and replace the secret if \
                                somebody may have read it";

const PERMISSIONS: u32 = 0o7777;

/// Everything of the group and of others, and what lets a file run as its owner.
const CLOSED_TO: u32 = 0o7077;

const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// Opens a file that passes all checks.
pub(crate) fn open(path: &Path) -> Result<File, SecretFileProblem> {
    let (folder_path, name) = split(path)?;
    let folder = open_folder(&folder_path)?;
    // Not through a link, and without waiting for the writer of a pipe.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match fs::openat(&folder, &name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Err(SecretFileProblem::Missing),
        // Of a link the error is LOOP, or MLINK on FreeBSD; of a socket NXIO or OPNOTSUPP.
        Err(error) => return Err(shape_problem(&folder, &name).unwrap_or_else(|| opening(error))),
    };
    let about = file.metadata().map_err(|source| SecretFileProblem::Io {
        action: "looking at it",
        source,
    })?;
    if !about.is_file() {
        return Err(SecretFileProblem::NotAFile);
    }
    let own = geteuid().as_raw();
    if about.uid() != 0 && about.uid() != own {
        return Err(SecretFileProblem::ForeignOwner {
            owner: format!("uid {}", about.uid()),
        });
    }
    let mode = about.mode() & PERMISSIONS;
    if mode & CLOSED_TO != 0 {
        return Err(SecretFileProblem::OpenToOthers {
            how: format!("its mode is {mode:04o}"),
        });
    }
    Ok(file)
}

/// Makes a file under a name of the moment, and gives it its own when all of it is on the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), SecretFileProblem> {
    let (folder_path, name) = split(path)?;
    let folder = match open_folder(&folder_path) {
        Err(SecretFileProblem::Missing) => {
            return Err(SecretFileProblem::UnsafeFolder {
                folder: folder_path,
                problem: "does not exist; make it first".to_owned(),
            });
        }
        opened => opened?,
    };
    let moment = momentary(&name);
    let result = write_and_link(&folder, &moment, &name, bytes);
    let removed = fs::unlinkat(&folder, &moment, AtFlags::empty());
    result?;
    removed.map_err(|error| io_problem("removing its first name", error))?;
    fs::fsync(&folder).map_err(|error| io_problem("writing its name to the disk", error))
}

fn write_and_link(
    folder: &File,
    moment: &Path,
    name: &Path,
    bytes: &[u8],
) -> Result<(), SecretFileProblem> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = || fs::openat(folder, moment, flags, PRIVATE);
    let made = match create() {
        // No process that lives has this one's id: a crash left it behind.
        Err(Errno::EXIST) => fs::unlinkat(folder, moment, AtFlags::empty()).and_then(|()| create()),
        made => made,
    };
    let mut file = File::from(made.map_err(|error| io_problem("making it", error))?);
    let io = |action| move |source| SecretFileProblem::Io { action, source };
    // The process's umask took away what it liked.
    fs::fchmod(file.as_fd(), PRIVATE).map_err(|error| io_problem("setting its mode", error))?;
    file.write_all(bytes).map_err(io("writing it"))?;
    file.sync_all().map_err(io("writing it to the disk"))?;
    // Unlike a rename, this never replaces anything (link(2)).
    match fs::linkat(folder, moment, folder, name, AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(SecretFileProblem::Exists),
        Err(error) => Err(io_problem("giving it its name", error)),
    }
}

/// A name in the same folder that no other process and no other call uses.
fn momentary(name: &Path) -> PathBuf {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut moment = std::ffi::OsString::from(".");
    moment.push(name);
    moment.push(format!(".{}-{call}.new", process::id()));
    moment.into()
}

fn open_folder(path: &Path) -> Result<File, SecretFileProblem> {
    folder::open_closed(path)?.map_err(|problem| SecretFileProblem::UnsafeFolder {
        folder: path.to_owned(),
        problem,
    })
}

/// Why a name does not open as a file, if that is due to what it is.
fn shape_problem(folder: &File, name: &Path) -> Option<SecretFileProblem> {
    let stat = fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    match fs::FileType::from_raw_mode(stat.st_mode) {
        fs::FileType::RegularFile => None,
        fs::FileType::Symlink => Some(SecretFileProblem::Link),
        _ => Some(SecretFileProblem::NotAFile),
    }
}

fn opening(error: Errno) -> SecretFileProblem {
    io_problem("opening it", error)
}

fn io_problem(action: &'static str, error: Errno) -> SecretFileProblem {
    SecretFileProblem::Io {
        action,
        source: io::Error::from(error),
    }
}

pub(crate) fn usual_scope() -> Option<ProtectScope> {
    None
}

pub(crate) fn protect(_: &[u8], _: ProtectScope) -> Result<Vec<u8>, ProtectError> {
    Err(ProtectError::NotSupported)
}

pub(crate) fn unprotect(_: &[u8]) -> Result<Vec<u8>, ProtectError> {
    Err(ProtectError::NotSupported)
}
