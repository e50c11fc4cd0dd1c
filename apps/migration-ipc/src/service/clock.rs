//! The service's clock, which notices when the system's is set.

use std::time::{Duration, Instant, SystemTime};

use migration_ipc::Timestamp;

/// Differences up to this are the usual drift and correction of a clock.
const TOLERANCE: Duration = Duration::from_secs(5);

/// Tells the time, and logs jumps of the system's clock: deadlines come nearer or go away by them.
#[derive(Debug)]
pub(crate) struct Clock {
    wall: SystemTime,
    steady: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    pub(crate) fn now(&mut self) -> Timestamp {
        let (wall, steady) = (SystemTime::now(), Instant::now());
        let expected = self.wall + steady.duration_since(self.steady);
        match jump(expected, wall) {
            Some(Jump::Ahead(by)) => {
                tracing::warn!(?by, "the system's clock jumped ahead, or the system slept")
            }
            Some(Jump::Back(by)) => tracing::warn!(?by, "the system's clock jumped back"),
            None => {}
        }
        (self.wall, self.steady) = (wall, steady);
        wall.into()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Jump {
    Ahead(Duration),
    Back(Duration),
}

fn jump(expected: SystemTime, actual: SystemTime) -> Option<Jump> {
    let jump = match actual.duration_since(expected) {
        Ok(by) => Jump::Ahead(by),
        Err(error) => Jump::Back(error.duration()),
    };
    let (Jump::Ahead(by) | Jump::Back(by)) = jump;
    (by > TOLERANCE).then_some(jump)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_no_jump() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let minute = Duration::from_secs(60);
        assert_eq!(jump(expected, expected + TOLERANCE), None);
        assert_eq!(jump(expected, expected - TOLERANCE), None);
        assert_eq!(jump(expected, expected + minute), Some(Jump::Ahead(minute)));
        assert_eq!(jump(expected, expected - minute), Some(Jump::Back(minute)));
    }
}
