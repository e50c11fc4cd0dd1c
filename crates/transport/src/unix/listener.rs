//! A service's listening socket.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::{Instant, sleep_until};

use super::admission::{Admission, Check};
use super::claim::Claim;
use super::folder::Folder;
use super::stream::SocketStream;
use super::{identity, passed};
use crate::endpoint::Endpoint;
use crate::error::BindError;
use crate::identity::PeerIdentity;
use crate::seam::{Activation, BindOptions, BoxFuture, Listener, Stream};

/// How many connections may wait to be accepted. Linux cuts it down to `net.core.somaxconn` (4096
/// unless configured). Too few makes clients retry when a thousand of them start at once.
const BACKLOG: u32 = 4096;

const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// Serves an endpoint; see [`crate::bind`].
///
/// The file operations here are a handful, once, on a local folder, and are made where they stand.
pub(crate) async fn bind(
    endpoint: &Endpoint,
    options: &BindOptions,
) -> Result<Box<dyn Listener>, BindError> {
    if options.activation == Activation::IfPassed
        && let Some(socket) = passed::socket_for(endpoint)?
    {
        return Ok(Box::new(serve_passed(endpoint, options, socket)?));
    }
    let admission = Admission::of_own_socket(endpoint, options)?;
    let mut claim = Claim::take(endpoint).await?;
    let failed = |claim: &Claim, action, error| claim.io_error(action, error);
    let socket =
        UnixSocket::new_stream().map_err(|error| failed(&claim, "making a socket", error))?;
    socket
        .bind(endpoint.address())
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse {
                endpoint: endpoint.clone(),
                holder: None,
            },
            _ => failed(&claim, "binding the socket", error),
        })?;
    // `bind` gives the file a mode that depends on the process's umask, which belongs to all
    // threads and is left alone. Until `listen` every connection is refused, so nobody can use a
    // mode that is not yet right.
    claim.adopt_socket(admission.mode, admission.group)?;
    let listener = socket
        .listen(BACKLOG)
        .map_err(|error| failed(&claim, "listening", error))?;
    Ok(Box::new(SocketListener {
        listener,
        endpoint: endpoint.clone(),
        _claim: Some(claim),
        check: admission.check,
        turned_away: 0,
        shortage: None,
    }))
}

/// Serves a socket that the service manager made. Its file, with mode and owner, is that one's to
/// keep and to remove; who may connect is decided at accept. No lock is taken: the service manager
/// has passed the socket to this process and to no other.
fn serve_passed(
    endpoint: &Endpoint,
    options: &BindOptions,
    socket: StdListener,
) -> Result<SocketListener, BindError> {
    let check = Check::of(endpoint, options)?;
    let failed = |action, source| BindError::Io {
        endpoint: endpoint.clone(),
        action,
        source,
    };
    if let Some(folder) = endpoint.address().parent() {
        Folder::prepare(folder, failed)?;
    }
    let listener = socket
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(socket))
        .map_err(|error| failed("taking the socket that was passed", error))?;
    tracing::info!(%endpoint, "serving the socket that the service manager passed");
    Ok(SocketListener {
        listener,
        endpoint: endpoint.clone(),
        _claim: None,
        check,
        turned_away: 0,
        shortage: None,
    })
}

/// The socket is closed first, and its files are removed after that (fields are dropped in order).
#[derive(Debug)]
struct SocketListener {
    listener: UnixListener,
    endpoint: Endpoint,
    /// The right to the socket's path; none where the socket is the service manager's.
    _claim: Option<Claim>,
    check: Check,
    /// How many clients were not admitted.
    turned_away: u64,
    /// While the system is short of something. Here and not in the future that `accept` returns,
    /// so that dropping the future does not shorten the delay.
    shortage: Option<Shortage>,
}

#[derive(Debug)]
struct Shortage {
    delay: Duration,
    retry_at: Instant,
    attempts: u32,
}

impl Listener for SocketListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            loop {
                if let Some(shortage) = &self.shortage {
                    sleep_until(shortage.retry_at).await;
                }
                // The accepted socket is closed on exec: mio uses accept4 with SOCK_CLOEXEC, or
                // sets it right after where there is no accept4 (macOS).
                match self.listener.accept().await {
                    Ok((socket, _unnamed)) => {
                        self.recovered();
                        if let Some(peer) = self.admit(&socket) {
                            let stream = SocketStream::new(socket, peer);
                            return Ok(Box::new(stream) as Box<dyn Stream>);
                        }
                    }
                    Err(error) => match Remedy::of(&error) {
                        Remedy::TryAgain => {}
                        Remedy::Wait => self.short_of_something(&error),
                        Remedy::None => return Err(error),
                    },
                }
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl SocketListener {
    /// Who a client is, if it may stay. Whatever goes wrong with that means that it may not.
    fn admit(&mut self, socket: &UnixStream) -> Option<PeerIdentity> {
        let endpoint = &self.endpoint;
        let peer = identity::of_client(socket)
            .inspect_err(|error| tracing::warn!(%endpoint, %error, "refusing a client"))
            .ok()?;
        let admitted = self.check.admits(socket, &peer).unwrap_or_else(|error| {
            tracing::warn!(%endpoint, %peer, %error, "the groups of a client are not known");
            false
        });
        if admitted {
            return Some(peer);
        }
        // A client that tries again and again does not fill the log.
        self.turned_away = self.turned_away.saturating_add(1);
        if self.turned_away.is_power_of_two() {
            let turned_away = self.turned_away;
            tracing::warn!(
                target: "migration_ipc::audit",
                %endpoint,
                %peer,
                turned_away,
                "a client was not admitted: it is in none of the groups that may connect",
            );
        }
        None
    }

    fn short_of_something(&mut self, error: &io::Error) {
        let (delay, attempts) = match &self.shortage {
            None => (FIRST_DELAY, 1),
            Some(before) => (
                (before.delay * 2).min(LONGEST_DELAY),
                before.attempts.saturating_add(1),
            ),
        };
        // Each delay is logged once: a shortage that lasts does not fill the log.
        if self
            .shortage
            .as_ref()
            .is_none_or(|before| before.delay != delay)
        {
            let endpoint = &self.endpoint;
            tracing::warn!(%endpoint, %error, ?delay, "cannot accept a client, waiting");
        }
        self.shortage = Some(Shortage {
            delay,
            retry_at: Instant::now() + delay,
            attempts,
        });
    }

    fn recovered(&mut self) {
        if let Some(shortage) = self.shortage.take() {
            let endpoint = &self.endpoint;
            tracing::info!(%endpoint, attempts = shortage.attempts, "accepting clients again");
        }
    }
}

/// What to do about an error of accept(2).
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// That one client is gone.
    TryAgain,
    /// Something has run out, or cannot be known: later it may go.
    Wait,
    /// The socket itself is unusable.
    None,
}

impl Remedy {
    fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN | Errno::PROTO) => Self::TryAgain,
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT) => {
                Self::None
            }
            _ => Self::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(errno: Errno) -> Remedy {
        Remedy::of(&errno.into())
    }

    #[test]
    fn only_a_broken_socket_ends_the_listener() {
        assert_eq!(remedy(Errno::CONNABORTED), Remedy::TryAgain);
        for shortage in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::PERM,
        ] {
            assert_eq!(remedy(shortage), Remedy::Wait, "{shortage}");
        }
        assert_eq!(Remedy::of(&io::Error::other("no number")), Remedy::Wait);
        for broken in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
            assert_eq!(remedy(broken), Remedy::None, "{broken}");
        }
    }
}
