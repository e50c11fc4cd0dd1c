//! The real disk: a folder that this process holds by a lock file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::held::retry_held;
use super::os;
use super::{Disk, DiskFile};

/// The file whose lock says who uses the folder. It stays when the folder is let go: a lock on a
/// file that somebody removed in the meantime would hold nothing.
const LOCK_FILE: &str = ".lock";

/// Made and removed at once when the folder is opened, to see whether it can be written to.
const PROBE_FILE: &str = ".probe";

/// A folder of the file system, used by this process alone.
///
/// Only those that take the same lock are kept out (flock(2), `LockFileEx`); it is let go when the
/// value is dropped, and when the process ends in whatever way. On Windows an operation that another
/// program holds up (codes 5 and 32, often a virus scanner) is tried again for 0.4 s.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

/// Why a folder cannot be used. Each says what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Something that is not a folder has the name.
    #[error("{} is not a folder: remove it, or choose another data folder", .0.display())]
    NotAFolder(PathBuf),
    /// A link has the name: whoever made it decides where it leads, now and later.
    #[error("{} is a link: name the folder that it leads to, or choose another data folder", .0.display())]
    Link(PathBuf),
    /// Another process holds it.
    #[error("{} is in use by another process: stop that one, or choose another data folder", .0.display())]
    Locked(PathBuf),
    /// It belongs to another account, which could change anything in it.
    #[error("{} belongs to another account ({owner}): choose a data folder of your own", .path.display())]
    ForeignOwner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// It cannot be written to.
    #[error("{} cannot be written to ({source}): make it writable for this account, or choose another data folder", .path.display())]
    ReadOnly {
        /// The folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another error of the operating system.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was to be done with it.
        action: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl Folder {
    /// Takes a folder, making it if there is none: for this account alone on Unix, with what it
    /// inherits on Windows.
    ///
    /// # Errors
    /// When it is held by another process, is not a folder or is a link to one, belongs to another
    /// account (looked at on Unix only), or cannot be written to.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        // With a slash at its end, a link would be looked through and not at (path_resolution(7)).
        let path: PathBuf = path.into().components().collect();
        make(&path)?;
        let failed = |action| {
            let path = path.clone();
            move |source| FolderError::Io {
                action,
                path,
                source,
            }
        };
        let about = fs::symlink_metadata(&path).map_err(failed("look at"))?;
        if about.is_symlink() {
            return Err(FolderError::Link(path));
        }
        if let Some(owner) = os::foreign_owner(&about) {
            return Err(FolderError::ForeignOwner { path, owner });
        }
        let not_writable = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                FolderError::ReadOnly {
                    path: path.clone(),
                    source,
                }
            }
            _ => failed("write to")(source),
        };
        let lock =
            opened(&path.join(LOCK_FILE), OpenOptions::new().create(true)).map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FolderError::Locked(path)),
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        let probe = path.join(PROBE_FILE);
        opened(&probe, OpenOptions::new().create(true))
            .and_then(|_| retry_held(|| fs::remove_file(&probe)))
            .map_err(not_writable)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in this folder; a name is never a way out of it.
    fn file(&self, name: &str) -> io::Result<PathBuf> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(part)), None)
                if part == name && ![LOCK_FILE, PROBE_FILE].contains(&name) =>
            {
                Ok(self.path.join(name))
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{name}` is not the name of a file in the folder"),
            )),
        }
    }
}

fn make(path: &Path) -> Result<(), FolderError> {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_symlink() => return Err(FolderError::Link(path.to_owned())),
        Ok(about) if about.is_dir() => return Ok(()),
        Ok(_) => return Err(FolderError::NotAFolder(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(FolderError::Io {
                action: "look at",
                path: path.to_owned(),
                source,
            });
        }
    }
    let made = os::make_folder(path).and_then(|()| match path.parent() {
        Some(parent) if parent != Path::new("") => os::sync_names(parent),
        _ => Ok(()),
    });
    made.map_err(|source| FolderError::Io {
        action: "make the folder",
        path: path.to_owned(),
        source,
    })
}

fn opened(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.read(true).write(true);
    os::harden(options);
    retry_held(|| options.open(path))
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // A name that is no text, a folder, or a link was not made through here.
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_file()
                && ![LOCK_FILE, PROBE_FILE].contains(&name.as_str())
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = opened(&self.file(name)?, &mut OpenOptions::new())?;
        Ok(Box::new(FolderFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = opened(&self.file(name)?, OpenOptions::new().create_new(true))?;
        Ok(Box::new(FolderFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        os::replace(&from, &to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let file = self.file(name)?;
        retry_held(|| fs::remove_file(&file))
    }

    fn sync(&self) -> io::Result<()> {
        os::sync_names(&self.path)
    }
}

#[derive(Debug)]
struct FolderFile(File);

impl DiskFile for FolderFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        os::read_at(&self.0, offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        os::write_at(&self.0, offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
