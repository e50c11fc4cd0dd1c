//! What differs between operating systems, in two mirrored folders with the same names.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use migration_ipc::storage::disk::retry_held;

/// Why a folder is not safe to keep the service's state in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateFolderError {
    #[error("the data folder `{}` is a link or another redirection; name the folder itself", .0.display())]
    Redirected(PathBuf),
    #[error("the data folder `{}` is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("the data folder `{}` belongs to {owner}; it must belong to this account or an administrator", path.display())]
    ForeignOwner { path: PathBuf, owner: String },
    #[cfg_attr(
        windows,
        expect(dead_code, reason = "Windows has an access control list instead")
    )]
    #[error("others can use the data folder `{}` (mode {mode:04o}); close it with `chmod 700`, or choose another", path.display())]
    OpenToOthers { path: PathBuf, mode: u32 },
    #[cfg_attr(
        windows,
        expect(dead_code, reason = "Windows has an access control list instead")
    )]
    #[error("others can exchange what is in `{}` ({problem}), the data folder included; choose a place that is not theirs", path.display())]
    UnsafeParent { path: PathBuf, problem: String },
    #[error("cannot use the data folder `{}`: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// A folder that has no default because the environment does not say where it would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable {0} is not set, so there is no default folder; name one")]
pub(crate) struct NoDefaultFolder(&'static str);

fn folder_from(variable: &'static str) -> Result<PathBuf, NoDefaultFolder> {
    match std::env::var_os(variable) {
        Some(value) if !value.is_empty() => Ok(value.into()),
        _ => Err(NoDefaultFolder(variable)),
    }
}

/// Puts a file in the place of another in one step, also when somebody looks at one of them.
pub(crate) fn replace_file(from: &Path, to: &Path) -> io::Result<()> {
    retry_held(|| fs::rename(from, to))
}

/// Removes a file or a link, if there is one.
fn make_way(path: &Path) -> io::Result<()> {
    match remove_file_or_link(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
