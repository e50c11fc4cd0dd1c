//! Named pipes and Unix sockets behind one small seam, with the peer's identity taken from the
//! operating system.
//!
//! ```text
//!            bind ──> Listener ──accept──┐
//! Endpoint ──┤                           ├──> Stream: bytes, and `identify` ──> PeerIdentity
//!            connect ────────────────────┘
//! ```
//!
//! This crate moves bytes and says who is at the other end. It knows nothing of frames, messages
//! or handlers, and it is the only one of the workspace that calls the operating system's own
//! interfaces:
//!
//! * `unix` — stream sockets in a folder that was checked; identity is `SO_PEERCRED`, frozen by the
//!   kernel when the connection was made.
//! * `windows` — named pipes with an explicit security descriptor; identity comes from one
//!   impersonation after the first read.
//! * [`secrets`] — files with keys, whose owner and access list are checked on the open file, and the
//!   data protection of Windows.
//! * [`memory`] — both ends in this process with identities of the caller's choice, for tests and
//!   virtual time.
//!
//! # What a caller may rely on
//!
//! * Identity comes from the operating system alone, is frozen once, and an error while it is
//!   established is never taken for permission: the connection is refused.
//! * A [`Listener`] survives every error that a peer or a shortage can cause.
//! * Two services never both serve one endpoint, and a service removes at its end what it made.
//! * A client has checked that the server is one that it may trust before it gets a stream.
//!
//! Process ids are for logs: they are recycled, so no decision rests on them.

mod accounts;
mod endpoint;
mod error;
mod identity;
pub mod memory;
mod seam;
pub mod secrets;
pub mod security;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;
/// The rules of the Windows side see the operating system only as codes, and are tested everywhere.
#[cfg(all(test, not(windows)))]
#[path = "windows/rules/mod.rs"]
mod windows_rules;

#[cfg(unix)]
use unix as platform;
#[cfg(windows)]
use windows as platform;

pub use accounts::{account_name, resolve_account};
pub use endpoint::Endpoint;
pub use error::{
    BindError, ClientRefusal, ConnectError, EndpointError, FolderProblem, IdentifyError,
    ResolveError,
};
pub use identity::{
    AccountId, Confinement, Elevation, LogonId, OsSession, PeerIdentity, Privilege, TokenFacts,
};
pub use seam::{
    Access, Activation, Audience, BindOptions, BoxFuture, ConnectOptions, IdentifyWhen, Listener,
    ServiceMode, Stream, Trust, bind, connect, connect_with,
};
#[cfg(windows)]
pub use windows::sys as win32;
