//! The time of day: the only place that reads the wall clock.

use std::fmt;
use std::time::SystemTime;

use migration_ipc_protocol::Timestamp;

/// Where the time of day comes from: the operating system, unless a simulation has its own.
///
/// It dates messages and ends their time to live. Timeouts and intervals are not its business:
/// those are measured with tokio's clock, which nobody sets.
#[derive(Clone, Copy)]
pub struct Clock(fn() -> SystemTime);

impl Clock {
    /// A clock that shows what this function returns.
    #[must_use]
    pub const fn from_fn(now: fn() -> SystemTime) -> Self {
        Self(now)
    }

    /// What it shows.
    #[must_use]
    pub fn now(self) -> Timestamp {
        Timestamp::from(self.system_time())
    }

    pub(crate) fn system_time(self) -> SystemTime {
        (self.0)()
    }
}

/// The operating system's.
impl Default for Clock {
    fn default() -> Self {
        Self(SystemTime::now)
    }
}

impl PartialEq for Clock {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

impl Eq for Clock {}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").finish_non_exhaustive()
    }
}
