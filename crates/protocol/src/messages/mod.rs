//! The payloads of the fourteen types that every peer knows.
//!
//! Reading is as lenient as deployed peers are: unknown members are ignored, and a text, list, map
//! or number that is absent or `null` counts as empty or zero, unless the message means nothing
//! without it. Writing leaves absent members out. Values of enumerations that this version does not
//! know are kept as they came.

mod agent;
mod control;
mod names;
mod numbers;
mod open_enum;
mod service;

pub use agent::{
    AgentStarted, BackupCompleted, BackupProgress, BackupStarted, Category, CategoryResult,
    DelayReason, DelayRequest, ErrorReport, UserAction,
};
pub use control::{Acknowledgment, ErrorCode, Heartbeat};
pub use names::{SessionId, UserId};
pub use numbers::{Percent, Seconds};
pub(crate) use open_enum::open_enum;
pub use service::{
    BackupRequest, ConfigurationScope, ConfigurationUpdate, EscalationNotice, EscalationReason,
    OverallStatus, Priority, ShutdownRequest, StatusUpdate,
};

use serde::{Deserialize, Deserializer};

/// Reads a member whose `null` means the same as its absence.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
