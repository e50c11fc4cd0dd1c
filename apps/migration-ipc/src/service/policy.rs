//! How often, and for how long, a user may put a backup off.

use std::time::Duration;

use migration_ipc::messages::Seconds;

/// The most delays that any configuration may grant.
pub(crate) const MAX_DELAYS: u32 = 3;

/// The longest delay that any configuration may grant.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(72 * 60 * 60);

/// The delays that a user has per backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DelayPolicy {
    pub(crate) delays: u32,
    pub(crate) longest: Duration,
}

impl Default for DelayPolicy {
    fn default() -> Self {
        Self {
            delays: MAX_DELAYS,
            longest: MAX_DELAY,
        }
    }
}

/// What the policy says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ruling {
    Granted,
    /// Every delay was used before.
    UsedUp,
    /// Longer than one delay may be.
    TooLong,
    /// A delay of nothing is not a delay.
    Nothing,
}

impl DelayPolicy {
    pub(crate) fn rule(self, used: u32, requested: Seconds) -> Ruling {
        if requested.as_duration().is_zero() {
            Ruling::Nothing
        } else if used >= self.delays {
            Ruling::UsedUp
        } else if requested.as_duration() > self.longest {
            Ruling::TooLong
        } else {
            Ruling::Granted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_delays_of_three_days_each() {
        let hours = |hours: u64| Seconds(hours * 3600);
        let cases = [
            (0, hours(1), Ruling::Granted),
            (2, hours(72), Ruling::Granted),
            (0, Seconds(72 * 3600 + 1), Ruling::TooLong),
            (0, Seconds(u64::MAX), Ruling::TooLong),
            (3, hours(1), Ruling::UsedUp),
            (3, hours(73), Ruling::UsedUp),
            (u32::MAX, hours(1), Ruling::UsedUp),
            (0, Seconds(0), Ruling::Nothing),
        ];
        for (used, requested, ruling) in cases {
            assert_eq!(
                DelayPolicy::default().rule(used, requested),
                ruling,
                "{used} {requested}"
            );
        }
    }
}
