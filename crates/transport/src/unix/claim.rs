//! The exclusive right to a socket's path.
//!
//! A lock file beside the socket (`<socket>.lock`, held with flock(2)) decides which service serves
//! there. The kernel lets go of it when its holder ends, however it ends. So the holder of the lock
//! knows that a socket which refuses connections was left behind by a service that is gone, and may
//! remove it; without the lock, two services that start together could each remove the other's.
//! A service that does not take the lock, such as one of .NET, is noticed by connecting to it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Gid, Mode, Stat};
use rustix::process::geteuid;
use tokio::net::UnixStream;

use super::folder::{Folder, is_same_file};
use super::identity;
use super::lock::{Lock, LockError};
use crate::endpoint::Endpoint;
use crate::error::{BindError, FolderProblem};
use crate::identity::PeerIdentity;

/// Held while a service runs. Dropping it removes the socket that was made under it and the lock
/// file, but never a file that somebody put in their place.
#[derive(Debug)]
pub(super) struct Claim {
    endpoint: Endpoint,
    folder: Folder,
    socket_name: PathBuf,
    /// What was made under `socket_name`, once it is.
    socket: Option<Stat>,
    lock_name: PathBuf,
    lock: Lock,
}

impl Claim {
    /// Takes the lock of an endpoint, and clears away what a service that is gone left there.
    pub(super) async fn take(endpoint: &Endpoint) -> Result<Self, BindError> {
        let address = endpoint.address();
        let (Some(folder), Some(socket_name)) = (address.parent(), address.file_name()) else {
            let problem =
                "it is not a path to a socket; bind what `Endpoint::parse` gives".to_owned();
            return Err(BindError::Unsupported {
                endpoint: endpoint.clone(),
                problem,
            });
        };
        let folder = Folder::prepare(folder, |action, source| io_error(endpoint, action, source))?;
        let mut lock_name = OsString::from(socket_name);
        lock_name.push(".lock");
        let lock_name = PathBuf::from(lock_name);
        let lock = Lock::take(&folder, &lock_name).map_err(|error| match error {
            LockError::Occupied(problem) => BindError::Occupied {
                path: folder.path().join(&lock_name),
                problem,
            },
            LockError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let path = folder.path().to_owned();
                BindError::UnsuitableFolder {
                    path,
                    problem: FolderProblem::ReadOnly,
                }
            }
            LockError::Io(source) => io_error(endpoint, "locking the file beside it", source),
        })?;
        let Some(lock) = lock else {
            let holder = listening(address).await.unwrap_or_default();
            return Err(BindError::InUse {
                endpoint: endpoint.clone(),
                holder,
            });
        };
        let claim = Self {
            endpoint: endpoint.clone(),
            folder,
            socket_name: socket_name.into(),
            socket: None,
            lock_name,
            lock,
        };
        claim.clear().await?;
        Ok(claim)
    }

    /// Removes a socket that nobody listens on.
    async fn clear(&self) -> Result<(), BindError> {
        let entry = self.folder.entry(&self.socket_name);
        let Some(stat) = entry.map_err(|error| self.io_error("looking for a socket", error))?
        else {
            return Ok(());
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(self.occupied("is not a socket"));
        }
        if let Some(holder) = listening(self.endpoint.address()).await {
            return Err(BindError::InUse {
                endpoint: self.endpoint.clone(),
                holder,
            });
        }
        if !may_remove(&stat) {
            return Err(self.occupied("is the socket of another account"));
        }
        tracing::info!(endpoint = %self.endpoint, "removing the socket of a service that is gone");
        self.folder
            .remove(&self.socket_name)
            .map_err(|error| self.io_error("removing a socket that nobody serves", error))
    }

    /// Takes note of the socket that was bound, and gives it its group and mode.
    ///
    /// The path that was bound is looked up through the folder that was checked, and what is there
    /// must be this process's socket: so the folder was not exchanged in between.
    pub(super) fn adopt_socket(&mut self, mode: Mode, group: Option<Gid>) -> Result<(), BindError> {
        let entry = self.folder.entry(&self.socket_name);
        let stat = entry.map_err(|error| self.io_error("checking the socket", error))?;
        let ours = stat.filter(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::Socket
                && stat.st_uid == geteuid().as_raw()
        });
        let Some(stat) = ours else {
            return Err(self.occupied("was exchanged while the service started"));
        };
        self.socket = Some(stat);
        if let Some(group) = group {
            let flags = fs::AtFlags::SYMLINK_NOFOLLOW;
            fs::chownat(&self.folder, &self.socket_name, None, Some(group), flags)
                .map_err(|error| self.io_error("giving the socket to the group", error.into()))?;
        }
        fs::chmodat(&self.folder, &self.socket_name, mode, fs::AtFlags::empty())
            .map_err(|error| self.io_error("setting the socket's mode", error.into()))
    }

    pub(super) fn io_error(&self, action: &'static str, source: io::Error) -> BindError {
        io_error(&self.endpoint, action, source)
    }

    /// Removes a file if it is still the one that this process made.
    fn remove_own(&self, name: &Path, made: &Stat) {
        let removed = self.folder.entry(name).and_then(|entry| match entry {
            Some(stat) if is_same_file(&stat, made) => self.folder.remove(name),
            _ => Ok(()),
        });
        if let Err(error) = removed {
            let (endpoint, name) = (&self.endpoint, name.display());
            tracing::warn!(%endpoint, %name, %error, "could not remove a file of the service");
        }
    }

    fn occupied(&self, problem: &'static str) -> BindError {
        BindError::Occupied {
            path: self.endpoint.address().to_owned(),
            problem,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            self.remove_own(&self.socket_name, socket);
        }
        // While the lock is still held: afterwards the file could be that of the next holder.
        self.remove_own(&self.lock_name, &self.lock.file);
    }
}

fn io_error(endpoint: &Endpoint, action: &'static str, source: io::Error) -> BindError {
    BindError::Io {
        endpoint: endpoint.clone(),
        action,
        source,
    }
}

/// root removes what anybody left; others only their own.
fn may_remove(stat: &Stat) -> bool {
    let own = geteuid();
    own.is_root() || stat.st_uid == own.as_raw()
}

/// Whether somebody listens at a path, and who, as far as it can be told; `None` if nobody does.
///
/// The credentials of a connected socket's other end are those of the process that called `listen`.
/// The attempt is over at once: a full queue of a Unix socket is an error, not a wait (connect(2)).
/// On macOS that error is the one of a socket that nobody listens on; there only the lock tells a
/// service with a full queue from a dead one.
async fn listening(address: &Path) -> Option<Option<PeerIdentity>> {
    match UnixStream::connect(address).await {
        Ok(stream) => Some(identity::of_peer(&stream).ok()),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => None,
            // It cannot be connected to (queue full, no right to): somebody's, and perhaps alive.
            _ => Some(None),
        },
    }
}
