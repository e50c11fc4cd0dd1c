//! The seam between the runtime and the operating systems: two traits and two functions.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::endpoint::Endpoint;
use crate::error::{BindError, ConnectError, IdentifyError};
use crate::identity::{AccountId, PeerIdentity};
use crate::platform;
use crate::security::PipeDescriptor;

/// A boxed future: what an `async fn` of an object-safe trait returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One connection: bytes both ways, in order, and the identity of the peer.
///
/// Reads and writes go to the operating system as they come; there is no buffer in between. A read
/// of zero bytes is the end; writing after the peer is gone fails with `BrokenPipe` or the like.
/// How the peer grouped its bytes means nothing.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + Debug {
    /// When [`identify`](Stream::identify) can succeed.
    fn identify_when(&self) -> IdentifyWhen;

    /// Asks the operating system who the peer is: for an accepted stream the client, for a
    /// connected one the server.
    ///
    /// The future co-owns what it needs, so it stays sound when the stream is dropped while it
    /// runs. Call it once and keep the result, which never changes.
    ///
    /// Cancel safe: dropping the future changes nothing, and it may be called again.
    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>>;
}

/// When a stream can say who its peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdentifyWhen {
    /// At once.
    Now,
    /// Only after at least one byte was read from the peer (Windows: a pipe server has nobody to
    /// impersonate before that).
    AfterFirstRead,
}

/// A service's end of an endpoint. Dropping it ends the service there and removes what it made (the
/// socket and its lock file); streams that were accepted live on. A folder that was made for the
/// socket stays: it tells clients where the service will be again.
pub trait Listener: Send + Debug {
    /// Waits for the next client.
    ///
    /// What a client or a shortage causes (a connection aborted before it was taken, no file
    /// descriptors left, no memory) is logged and retried inside with a growing delay.
    ///
    /// Cancel safe: no connection is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// An error is final: the listener itself is broken, and further calls would fail as well.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;

    /// Where it listens.
    fn endpoint(&self) -> &Endpoint;
}

/// How an endpoint is served. The default is what production needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BindOptions {
    /// Whether the endpoint may belong to an ordinary account.
    pub mode: ServiceMode,
    /// Which accounts may connect.
    pub access: Access,
    /// Whom the endpoint is for.
    pub audience: Audience,
    /// Whether a socket that the service manager passed is served.
    pub activation: Activation,
}

impl BindOptions {
    /// The defaults: production, any local user, agents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the mode.
    #[must_use]
    pub fn mode(mut self, mode: ServiceMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets who may connect.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets whom the endpoint is for.
    #[must_use]
    pub fn audience(mut self, audience: Audience) -> Self {
        self.audience = audience;
        self
    }

    /// Sets whether a socket that the service manager passed is served.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }
}

/// Whether an endpoint may belong to an ordinary account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServiceMode {
    /// Windows: the pipe belongs to SYSTEM, and serving as anybody else is refused.
    #[default]
    Production,
    /// Windows: the pipe may belong to the account that runs the service. On Unix the folder's and
    /// the process's owner say so already, and the mode changes nothing.
    Development,
}

/// Which accounts may connect. The service's own account and administrators always may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Any account that is logged on to this machine. Where the socket's folder is private
    /// (mode 0700), that folder's owner only.
    #[default]
    AnyLocalUser,
    /// The members of any of these groups; at least one (Windows: a name or a SID; Unix: a name or a
    /// numeric id). The operating system enforces it when a client connects, but for several groups
    /// on Linux: there the service asks the kernel for the client's groups when it accepts it
    /// (`SO_PEERGROUPS`). One group on Unix: the process must be root or a member. Several: Windows
    /// and Linux only.
    Groups(Vec<String>),
    /// Whoever is logged on at the console or over remote desktop: the hardened choice, which keeps
    /// out what runs as a service or a scheduled task. Windows only.
    InteractiveUsers,
    /// This account alone. Windows only.
    User(AccountId),
    /// What a security descriptor says, which must name the account that serves as the owner
    /// (SYSTEM, outside of development). Whoever it lets in, agents that logged on over the network
    /// are refused outside of development, and so is whoever is confined to an app container or to
    /// an integrity below medium. Windows only.
    Descriptor(PipeDescriptor),
}

/// Whether a service serves a socket that the service manager made for it
/// ([systemd.socket(5)](https://man7.org/linux/man-pages/man5/systemd.socket.5.html)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// No: the endpoint is made here, whatever the environment says.
    #[default]
    Never,
    /// On Linux, if sockets were passed to this process (`LISTEN_FDS` and `LISTEN_PID`), the one
    /// among them that listens at the endpoint's path is served, and it is an error if there is
    /// none. It is neither locked nor removed in the end: it is the service manager's. If none was
    /// passed, and elsewhere, the endpoint is made here.
    ///
    /// A process can take each passed socket once.
    IfPassed,
}

/// Whom an endpoint is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Whoever [`Access`] allows.
    #[default]
    Agents,
    /// Administrators and the service's own account only, whatever [`Access`] says: the second
    /// endpoint of a service on Windows (see [`Endpoint::for_operators`]).
    Operators,
}

/// Starts to serve an endpoint.
///
/// On return clients can connect. On Windows this waits, and says so in the log, for as long as
/// another process has the pipe's name: after a crash of a service that can be one of its clients,
/// and a service that gave up would let any user keep it from starting.
///
/// Cancel safe: dropping the future leaves nothing behind.
///
/// # Errors
///
/// [`BindError`]: among others another service at this endpoint, which is named, or a folder that
/// others can change.
pub async fn bind(
    endpoint: &Endpoint,
    options: &BindOptions,
) -> Result<Box<dyn Listener>, BindError> {
    platform::bind(endpoint, options).await
}

/// How a client connects. The default is what production needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Which account may serve, beside those that always may.
    pub trust: Trust,
}

impl ConnectOptions {
    /// The defaults: only a service of the system is trusted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whom to trust beside the system.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }
}

/// Whom a client takes for the service, beside those who could do to this machine whatever they like
/// anyway. See [`connect`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trust {
    /// Nobody else.
    #[default]
    System,
    /// The account that this process runs as: a service in [development
    /// mode](ServiceMode::Development). On Unix it is trusted anyway.
    OwnAccount,
    /// This account.
    Account(AccountId),
}

/// Connects to a service, and makes sure that it is one to be trusted before it is sent anything.
///
/// A service that is there but busy is tried again until `timeout` is over; one that is not there
/// is an error at once. Cancel safe: dropping the future drops the attempt.
///
/// # Whom a client trusts
///
/// A client obeys its service, so it asks the operating system who serves before it sends anything.
///
/// * Unix: root, and the client's own account. Beyond these, to name an endpoint in a folder that
///   only one account can write to is to choose that account; in a folder that several can write
///   to (`/tmp`), and at the per-user default, which nobody named, it is not. The folder counts as
///   well: that of the system's endpoint must be root's and nobody else's to change, and in one
///   that several can write to, the socket must be a file of root's or of the client's own account
///   and no link.
/// * Windows: a pipe whose owner is SYSTEM or Administrators, and to which nobody else can add
///   instances, whose access control list nobody else can change, and whose ownership nobody else
///   can take.
///
/// [`connect_with`] adds an account to these.
///
/// # Errors
///
/// [`ConnectError`] says what was tried and what to do.
pub async fn connect(
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<Box<dyn Stream>, ConnectError> {
    connect_with(endpoint, timeout, &ConnectOptions::new()).await
}

/// As [`connect`], with options. Cancel safe: dropping the future drops the attempt.
///
/// # Errors
///
/// As [`connect`].
pub async fn connect_with(
    endpoint: &Endpoint,
    timeout: Duration,
    options: &ConnectOptions,
) -> Result<Box<dyn Stream>, ConnectError> {
    match tokio::time::timeout(timeout, platform::connect(endpoint, options)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(ConnectError::TimedOut {
            endpoint: endpoint.clone(),
            limit: timeout,
        }),
    }
}
