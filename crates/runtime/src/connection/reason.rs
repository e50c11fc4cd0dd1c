//! Why a connection ended, and the states on its way there.

use std::{fmt, io};

use migration_ipc_protocol::FrameError;
use migration_ipc_transport::IdentifyError;

/// Why a connection ended. The groups say who was at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The peer closed the connection between two frames.
    ClosedByPeer,
    /// The peer said goodbye first, with this text.
    Goodbye(String),
    /// This side closed the connection.
    ClosedLocally,
    /// This side stopped.
    Stopped,

    /// The peer vanished in the middle of a frame.
    TruncatedFrame,
    /// The peer sent a length that no frame may have.
    Framing(FrameError),
    /// The peer sent more bodies without a readable id than are tolerated.
    TooManyMalformed,
    /// The peer kept naming other accounts than its own.
    IdentityMismatch,
    /// The peer broke a rule of something that was negotiated, or used what was not.
    Violation(String),
    /// The peer asked for what its OS identity does not allow, or the service refused us.
    Refused(String),
    /// This side demands encryption, and the connection has none: the peer offers none, or the two do
    /// not have the same key. Nothing but what comes before it was sent in the clear.
    NotEncrypted(String),

    /// The operating system did not say who the peer is.
    Unidentified(String),
    /// The peer sent nothing, or no whole frame, in the time that a handshake may take.
    HandshakeTimeout,
    /// A frame began and did not arrive whole in time.
    FrameTimeout,
    /// The peer took no byte of what waited for it for too long.
    SlowReader,
    /// The peer reads, and takes messages too slowly: what waits for it filled its lane, and that
    /// was not even half empty for too long.
    SlowPeer,
    /// The peer was silent for longer than its heartbeats allow.
    Stale,
    /// The peer's account has sent more than its rates allow for too long.
    OverRate,
    /// The connections of the peer's account held as much memory as they may for too long, this one
    /// among them.
    OverMemory,

    /// The operating system reported an error.
    Io(io::ErrorKind, String),
    /// The connection's task ended without saying why: a defect of this library.
    Aborted,
}

impl DisconnectReason {
    /// A short name from a closed set, fit for a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::ClosedByPeer => "closed_by_peer",
            Self::Goodbye(_) => "goodbye",
            Self::ClosedLocally => "closed_locally",
            Self::Stopped => "stopped",
            Self::TruncatedFrame => "truncated_frame",
            Self::Framing(_) => "framing",
            Self::TooManyMalformed => "too_many_malformed",
            Self::IdentityMismatch => "identity_mismatch",
            Self::Violation(_) => "violation",
            Self::Refused(_) => "refused",
            Self::NotEncrypted(_) => "not_encrypted",
            Self::Unidentified(_) => "unidentified",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::FrameTimeout => "frame_timeout",
            Self::SlowReader => "slow_reader",
            Self::SlowPeer => "slow_peer",
            Self::Stale => "stale",
            Self::OverRate => "over_rate",
            Self::OverMemory => "over_memory",
            Self::Io(..) => "io",
            Self::Aborted => "aborted",
        }
    }

    /// Whether the connection ended as connections should end.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::ClosedByPeer | Self::Goodbye(_) | Self::ClosedLocally | Self::Stopped
        )
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedByPeer => f.write_str("the peer closed the connection"),
            Self::Goodbye(text) => write!(f, "the peer said goodbye: {}", text.escape_debug()),
            Self::ClosedLocally => f.write_str("closed by this side"),
            Self::Stopped => f.write_str("this side stopped"),
            Self::TruncatedFrame => f.write_str("the peer vanished in the middle of a frame"),
            Self::Framing(error) => write!(f, "the peer broke the framing: {error}"),
            Self::TooManyMalformed => f.write_str("too many malformed messages"),
            Self::IdentityMismatch => f.write_str("the peer kept naming another account"),
            Self::Violation(text) => {
                write!(f, "the peer broke the rules: {}", text.escape_debug())
            }
            Self::Refused(text) => write!(f, "refused: {}", text.escape_debug()),
            Self::NotEncrypted(text) => write!(f, "not encrypted: {}", text.escape_debug()),
            Self::Unidentified(text) => write!(f, "the peer could not be identified: {text}"),
            Self::HandshakeTimeout => f.write_str("no whole first frame in time"),
            Self::FrameTimeout => f.write_str("a frame did not arrive whole in time"),
            Self::SlowReader => f.write_str("the peer does not read"),
            Self::SlowPeer => f.write_str("the peer takes messages too slowly"),
            Self::Stale => f.write_str("the peer is silent"),
            Self::OverRate => f.write_str("the peer's account sends too much"),
            Self::OverMemory => f.write_str("the peer's account holds too much memory"),
            Self::Io(_, text) => write!(f, "input/output error: {text}"),
            Self::Aborted => f.write_str("the connection's task was aborted"),
        }
    }
}

impl From<io::Error> for DisconnectReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted => Self::ClosedByPeer,
            kind => Self::Io(kind, error.to_string()),
        }
    }
}

impl From<FrameError> for DisconnectReason {
    fn from(error: FrameError) -> Self {
        Self::Framing(error)
    }
}

impl From<IdentifyError> for DisconnectReason {
    fn from(error: IdentifyError) -> Self {
        Self::Unidentified(error.to_string())
    }
}

/// Where a connection is in its life. A connection never goes back.
///
/// Before `Identified` a connection is *pending*: nobody holds a handle to it, nothing is
/// dispatched and nothing sent; only [`ConnectionCounts`](crate::ConnectionCounts) shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// The operating system said who the peer is.
    Identified,
    /// The peer's announcement (`AGENT_STARTED`) was accepted: it can be addressed by user,
    /// session and broadcast.
    Announced,
    /// The connection is being wound up: nothing more is dispatched.
    Closing,
    /// The connection is gone.
    Gone(DisconnectReason),
}

impl ConnectionState {
    /// Whether it takes no more messages.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::Closing | Self::Gone(_))
    }

    /// States only ever grow.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Identified => 0,
            Self::Announced => 1,
            Self::Closing => 2,
            Self::Gone(_) => 3,
        }
    }
}
