//! What can go wrong, each with what would put it right.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::endpoint::Endpoint;
use crate::identity::{AccountId, PeerIdentity};
use crate::platform;
use crate::security::IntegrityLevel;

/// A text that is no endpoint of this operating system. The caller's mistake.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointError {
    /// There is no text.
    #[error("the endpoint is empty; give {}", platform::endpoint::EXPECTED)]
    Empty,
    /// The text contains a NUL byte, which no path or pipe name can.
    #[error(
        "the endpoint {endpoint:?} contains a NUL byte; give {}",
        platform::endpoint::EXPECTED
    )]
    NulByte {
        /// The text as it was given.
        endpoint: String,
    },
    /// The operating system's limit of addresses is exceeded.
    #[error("the endpoint {endpoint:?} is {length} {unit} long and this system takes {limit}; choose a shorter one", unit = platform::endpoint::LENGTH_UNIT)]
    TooLong {
        /// The whole address.
        endpoint: String,
        /// Its length in the operating system's unit (bytes; UTF-16 units on Windows).
        length: usize,
        /// The longest one that is possible, in the same unit.
        limit: usize,
    },
    /// Anything else that is wrong with the text.
    #[error(
        "the endpoint {endpoint:?} {problem}; give {}",
        platform::endpoint::EXPECTED
    )]
    Invalid {
        /// The text as it was given.
        endpoint: String,
        /// What is wrong with it, to be read after the text.
        problem: &'static str,
    },
}

/// A service could not start to listen.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another service is there, or is just starting there.
    #[error(
        "{endpoint} is already served by {}; stop that service or choose another endpoint",
        .holder.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string)
    )]
    InUse {
        /// The endpoint.
        endpoint: Endpoint,
        /// Who serves it, where the operating system says so.
        holder: Option<PeerIdentity>,
    },
    /// The folder of the socket is not one that the right accounts, and only they, can change.
    #[error("the folder {} {problem}", .path.display())]
    UnsuitableFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: FolderProblem,
    },
    /// Something that is not a socket of this service has the endpoint's path, or that of the lock
    /// file beside it. It is never removed.
    #[error("{} {problem}; remove it if nobody needs it, or choose another endpoint", .path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What is there.
        problem: &'static str,
    },
    /// The options ask for what this operating system, or this account, cannot do.
    #[error("{endpoint} cannot be served as asked: {problem}")]
    Unsupported {
        /// The endpoint.
        endpoint: Endpoint,
        /// Why not, and what would do.
        problem: String,
    },
    /// Any other error of the operating system.
    #[error("cannot serve {endpoint}: {action}: {source}")]
    Io {
        /// The endpoint.
        endpoint: Endpoint,
        /// What was tried.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

/// Why a folder is no place for a socket.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderProblem {
    /// The last component is a symbolic link.
    #[error("is a symbolic link; name the folder that it leads to")]
    SymbolicLink,
    /// It exists and is no folder.
    #[error("is not a folder")]
    NotAFolder,
    /// It belongs to an account that is neither root nor this process's.
    #[error("belongs to uid {owner}; it must belong to root or to uid {expected}")]
    ForeignOwner {
        /// Who owns it.
        owner: u32,
        /// This process's user.
        expected: u32,
    },
    /// This account may not create files in it.
    #[error(
        "cannot be written to by this account; run the service as its owner, or choose another endpoint"
    )]
    ReadOnly,
    /// Others may create and remove files in it.
    #[error(
        "has mode {mode:04o}, so that others can replace the socket; remove their right to write (chmod go-w)"
    )]
    WritableByOthers {
        /// Its permission bits.
        mode: u32,
    },
}

/// A client could not connect.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no service is running at {endpoint}; start it, or name its endpoint ({source})")]
    NotRunning {
        /// The endpoint.
        endpoint: Endpoint,
        /// The operating system's error.
        source: io::Error,
    },
    /// The operating system does not let this account connect.
    #[error(
        "this account may not connect to {endpoint} ({source}); ask whoever runs the service to admit it, or use another endpoint"
    )]
    Denied {
        /// The endpoint.
        endpoint: Endpoint,
        /// The operating system's error.
        source: io::Error,
    },
    /// The service did not take the connection in time.
    #[error(
        "{endpoint} did not accept the connection within {limit:?}; its service is overloaded or stuck"
    )]
    TimedOut {
        /// The endpoint.
        endpoint: Endpoint,
        /// The time that was allowed.
        limit: Duration,
    },
    /// Somebody serves the endpoint whom this client has no reason to trust. Nothing was sent.
    #[error(
        "{endpoint} is served by {server}, but is trusted only if served by {trusted}; nothing was sent"
    )]
    Untrusted {
        /// The endpoint.
        endpoint: Endpoint,
        /// Who serves it.
        server: PeerIdentity,
        /// Who might have served it.
        trusted: &'static str,
    },
    /// The service's pipe belongs to a trusted account, but somebody else could make themselves its
    /// second master, and take this connection. Nothing was sent.
    #[error(
        "{endpoint} is served by {server}, but is not protected: {problem}; nothing was sent. \
         Whoever runs the service must change the security descriptor of its pipe"
    )]
    Unprotected {
        /// The endpoint.
        endpoint: Endpoint,
        /// Who serves it.
        server: PeerIdentity,
        /// Who else could do so, and how.
        problem: String,
    },
    /// The server could be trusted, but not the place: somebody else can change what is there.
    /// Nothing was sent.
    #[error("{endpoint} is not trusted: {} {problem}; nothing was sent", .path.display())]
    UnsafePlace {
        /// The endpoint.
        endpoint: Endpoint,
        /// The folder, or the socket.
        path: PathBuf,
        /// What is wrong with it, to be read after the path.
        problem: String,
    },
    /// Any other error of the operating system.
    #[error("cannot connect to {endpoint}: {action}: {source}")]
    Io {
        /// The endpoint.
        endpoint: Endpoint,
        /// What was tried.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

/// The operating system did not say who a peer is. Such a peer must be refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentifyError {
    /// The stream identifies its peer only [after the first
    /// read](crate::IdentifyWhen::AfterFirstRead), and nothing was read yet. The caller's mistake.
    #[error("the peer cannot be identified before the first byte was read from it")]
    TooEarly,
    /// The peer hides its identity: an anonymous token.
    #[error("the peer is anonymous")]
    Anonymous,
    /// The operating system says who the peer is, and this endpoint is not for such peers.
    #[error("the peer, account {account}, is refused: {reason}")]
    Refused {
        /// Who it is.
        account: AccountId,
        /// Why it is refused.
        reason: ClientRefusal,
    },
    /// An error of the operating system, the peer's disappearance included.
    #[error("the operating system did not identify the peer: {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

/// Why a client whose identity is known is refused all the same.
#[derive(Debug, Clone, Copy, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientRefusal {
    /// It logged on over the network, and the endpoint is one for agents of this machine.
    #[error("it logged on over the network, and agents run on this machine")]
    NetworkLogon,
    /// It is a sandbox: its integrity is below medium.
    #[error("its integrity level is {0}, below that of what a user starts")]
    LowIntegrity(IntegrityLevel),
    /// It is in an app container.
    #[error("it runs in an app container")]
    AppContainer,
}

/// An account's name could not be looked up; whether it exists is not known.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The account database did not answer in time.
    #[error("looking up the account {name:?} took more than {limit:?}")]
    TimedOut {
        /// What was looked up.
        name: String,
        /// The time that was allowed.
        limit: Duration,
    },
    /// The account database failed.
    #[error("looking up the account {name:?} failed: {source}")]
    Io {
        /// What was looked up.
        name: String,
        /// The operating system's error.
        source: io::Error,
    },
}
