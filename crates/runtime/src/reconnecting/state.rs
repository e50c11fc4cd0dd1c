//! Where a reconnecting client is.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::client::{ConnectError, ServiceKind};
use crate::connection::{ConnectionId, DisconnectReason};

/// Where a [`ReconnectingIpcClient`](crate::ReconnectingIpcClient) is.
///
/// A watcher sees the present state, and may miss one that has passed; each connection has an id of
/// its own, so a new one is never taken for the one before.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ReconnectState {
    /// It tries to connect.
    Connecting {
        /// The how many-th try since the last connection that stayed up.
        attempt: u32,
    },
    /// It is connected, hello and announcement are said, and messages go out.
    Connected {
        /// The connection's number.
        connection: ConnectionId,
        /// What the service is.
        service: ServiceKind,
    },
    /// It waits before it tries again.
    Waiting {
        /// When it will.
        next_try: Instant,
        /// The tries so far since the last connection that stayed up.
        attempts: u32,
        /// Why it is not connected.
        error: ConnectionTrouble,
    },
    /// It tries no more; see [`ReconnectingIpcClient::retry`](crate::ReconnectingIpcClient::retry).
    GaveUp {
        /// Why the last try failed.
        error: ConnectionTrouble,
    },
    /// It was stopped.
    Stopped,
}

impl ReconnectState {
    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

/// Why there is no connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionTrouble {
    /// There never was one, or not again.
    Failed(Arc<ConnectError>),
    /// There was one, and it ended.
    Lost(DisconnectReason),
    /// There was one, on which the service refused the announcement with this text.
    AnnouncementRefused(String),
}

impl fmt::Display for ConnectionTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "connecting failed: {error}"),
            Self::Lost(reason) => write!(f, "the connection was lost: {reason}"),
            Self::AnnouncementRefused(text) => {
                write!(
                    f,
                    "the service refused the announcement: {}",
                    text.escape_debug()
                )
            }
        }
    }
}
