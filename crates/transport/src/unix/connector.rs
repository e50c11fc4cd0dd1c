//! A client's way to a service, and its check of who serves there.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;

use super::stream::SocketStream;
use super::{endpoint, folder, identity};
use crate::endpoint::Endpoint;
use crate::error::{ConnectError, IdentifyError};
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
