//! A client's way to a service, and its check of who serves there.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;

use super::stream::SocketStream;
use super::{endpoint, folder, identity};
use crate::endpoint::Endpoint;
use crate::error::{ConnectError, FolderProblem, IdentifyError};
use crate::identity::PeerIdentity;
use crate::seam::{ConnectOptions, Stream, Trust};

const FIRST_DELAY: Duration = Duration::from_millis(1);
const LONGEST_DELAY: Duration = Duration::from_millis(100);

const TRUSTED: &str = "root, this account, an account that this client was told to trust, or the \
                       only account that can write to the folder of a named endpoint";

/// Connects; see [`crate::connect`], which bounds the time.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    options: &ConnectOptions,
) -> Result<Box<dyn Stream>, ConnectError> {
    let socket = open(endpoint).await?;
    let server = identity::of_peer(&socket).map_err(|error| {
        let action = "identifying the server";
        let source = match error {
            IdentifyError::Io { source, .. } => source,
            error => io::Error::other(error),
        };
        ConnectError::Io {
            endpoint: endpoint.clone(),
            action,
            source,
        }
    })?;
    let told = match &options.trust {
        Trust::Account(account) => account == server.account(),
        Trust::System | Trust::OwnAccount => false,
    };
    if !told && !is_trusted(endpoint.address(), &server) {
        return Err(ConnectError::Untrusted {
            endpoint: endpoint.clone(),
            server,
            trusted: TRUSTED,
        });
    }
    check_place(endpoint.address()).map_err(|(path, problem)| ConnectError::UnsafePlace {
        endpoint: endpoint.clone(),
        path,
        problem,
    })?;
    Ok(Box::new(SocketStream::new(socket, server)))
}

/// Connects, trying again while the service's queue is full, which connect(2) reports at once.
///
/// macOS reports it as it reports a socket that nobody listens on, so there it is "not running".
async fn open(endpoint: &Endpoint) -> Result<UnixStream, ConnectError> {
    let mut delay = FIRST_DELAY;
    loop {
        let source = match UnixStream::connect(endpoint.address()).await {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        let endpoint = endpoint.clone();
        return Err(match source.kind() {
            io::ErrorKind::WouldBlock => {
                sleep(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
                continue;
            }
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotADirectory => ConnectError::NotRunning { endpoint, source },
            io::ErrorKind::PermissionDenied => ConnectError::Denied { endpoint, source },
            _ => ConnectError::Io {
                endpoint,
                action: "connecting",
                source,
            },
        });
    }
}

/// Whether a client may obey this server: an agent hands over what it is asked for.
///
/// root and this process's own account could do to it whatever they like anyway. Beyond these, to
/// name an endpoint in a folder that only one account can write to is to choose that account. The
/// per-user default was chosen by nobody, and is in a place where others can make folders, so there
/// it must be this account (or root).
fn is_trusted(address: &Path, server: &PeerIdentity) -> bool {
    if server.is_operator() {
        return true;
    }
    let sole_writer = address.parent().and_then(folder::sole_writer);
    sole_writer.is_some()
        && sole_writer == identity::uid(server.account())
        && address != endpoint::per_user()
}

/// Whether only trusted accounts can have laid the way to the socket.
///
/// It is looked at after the connection is made and before anything is sent. That is not too late:
/// what passes cannot have been put in the place of another's link or socket in between, because
/// whoever could do so would fail here.
fn check_place(address: &Path) -> Result<(), (PathBuf, String)> {
    let Some(folder) = address.parent() else {
        return Ok(());
    };
    let of_folder = |problem: FolderProblem| (folder.to_owned(), problem.to_string());
    let unknown = |path: &Path, error: &io::Error| {
        let problem = format!("cannot be looked at ({error})");
        (path.to_owned(), problem)
    };
    if address == endpoint::system() {
        let about = folder.symlink_metadata();
        let about = about.map_err(|error| unknown(folder, &error))?;
        return folder::check_system(&about).map_err(of_folder);
    }
    let about = folder.metadata();
    let about = about.map_err(|error| unknown(folder, &error))?;
    if !folder::check_shared(&about).map_err(of_folder)? {
        return Ok(());
    }
    let socket = address.symlink_metadata();
    let socket = socket.map_err(|error| unknown(address, &error))?;
    check_socket(&socket, identity::own_uid()).map_err(|problem| (address.to_owned(), problem))
}

/// In a folder where everybody can put something: whether root or this account put this there.
fn check_socket(socket: &Metadata, own: u32) -> Result<(), String> {
    if socket.file_type().is_symlink() {
        return Err("is a symbolic link; name the socket that it leads to".to_owned());
    }
    if !socket.file_type().is_socket() {
        return Err("is not a socket".to_owned());
    }
    match socket.uid() {
        0 => Ok(()),
        owner if owner == own => Ok(()),
        owner => Err(format!("belongs to uid {owner}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn in_a_shared_folder_a_link_and_a_file_of_another_are_not_trusted() {
        let scratch = tempfile::tempdir().unwrap();
        let (socket, link) = (scratch.path().join("socket"), scratch.path().join("link"));
        let _listener = UnixListener::bind(&socket).unwrap();
        symlink(&socket, &link).unwrap();
        let look = |path: &Path| path.symlink_metadata().unwrap();
        let own = identity::own_uid();
        assert_eq!(check_socket(&look(&socket), own), Ok(()));
        let error = check_socket(&look(&link), own).unwrap_err();
        assert!(error.contains("symbolic link"), "{error}");
        assert!(check_socket(&look(scratch.path()), own).is_err());
        if own != 0 {
            assert!(check_socket(&look(&socket), own + 1).is_err());
        }
    }
}
