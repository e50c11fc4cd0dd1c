//! A service's listening socket.

use std::io;
use std::time::Duration;

use nix::unistd::Group;
use rustix::fs::{Gid, Mode};
use rustix::io::Errno;
use tokio::net::{UnixListener, UnixSocket};
use tokio::time::{Instant, sleep_until};

use super::claim::Claim;
use super::identity;
use super::stream::SocketStream;
use crate::endpoint::Endpoint;
use crate::error::BindError;
use crate::seam::{Access, Audience, BindOptions, BoxFuture, Listener, Stream};

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
    let (mode, group) = permissions(endpoint, options)?;
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
    claim.adopt_socket(mode, group)?;
    let listener = socket
        .listen(BACKLOG)
        .map_err(|error| failed(&claim, "listening", error))?;
    Ok(Box::new(SocketListener {
        listener,
        claim,
        shortage: None,
    }))
}

/// The socket's mode and group. To connect, a client needs the right to write (unix(7)).
fn permissions(
    endpoint: &Endpoint,
    options: &BindOptions,
) -> Result<(Mode, Option<Gid>), BindError> {
    match (&options.audience, &options.access) {
        (Audience::Operators, _) => Ok((Mode::from_raw_mode(0o600), None)),
        (Audience::Agents, Access::AnyLocalUser) => Ok((Mode::from_raw_mode(0o666), None)),
        (Audience::Agents, Access::Group(name)) => {
            let group = find_group(name).map_err(|problem| BindError::Unsupported {
                endpoint: endpoint.clone(),
                problem: format!("the group {name:?} {problem}"),
            })?;
            Ok((Mode::from_raw_mode(0o660), Some(group)))
        }
        (Audience::Agents, Access::InteractiveUsers | Access::User(_) | Access::Descriptor(_)) => {
            Err(BindError::Unsupported {
                endpoint: endpoint.clone(),
                problem: "a socket is for any local user or for a group, and has no security \
                      descriptor; let a group in that has the right members"
                    .to_owned(),
            })
        }
    }
}

fn find_group(name: &str) -> Result<Gid, String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = name.parse().ok().filter(|&id| id != u32::MAX);
        return id
            .map(Gid::from_raw)
            .ok_or_else(|| "is no group id".to_owned());
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Gid::from_raw(group.gid.as_raw())),
        Ok(None) => Err("does not exist".to_owned()),
        Err(error) => Err(format!("cannot be looked up: {error}")),
    }
}

/// The socket is closed first, and its files are removed after that (fields are dropped in order).
#[derive(Debug)]
struct SocketListener {
    listener: UnixListener,
    claim: Claim,
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
                        match identity::of_peer(&socket) {
                            Ok(peer) => {
                                return Ok(
                                    Box::new(SocketStream::new(socket, peer)) as Box<dyn Stream>
                                );
                            }
                            Err(error) => {
                                let endpoint = self.claim.endpoint();
                                tracing::warn!(%endpoint, %error, "refusing a client");
                            }
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
        self.claim.endpoint()
    }
}

impl SocketListener {
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
            let endpoint = self.claim.endpoint();
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
            let endpoint = self.claim.endpoint();
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
