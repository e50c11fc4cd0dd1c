//! When to try again. Pure: the time and the randomness are arguments.

use std::num::NonZeroU32;
use std::time::Duration;

use fastrand::Rng;
use migration_ipc_store::planted::{PlantedBug, is_planted};
use tokio::time::Instant;

use crate::config::{ConfigError, MAX_TIMEOUT};

/// How often a client tries to connect before it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempts {
    /// This often in a row, connections that did not stay up included.
    AtMost(NonZeroU32),
    /// For ever.
    Unlimited,
}

/// How long a client waits before it connects again.
///
/// Exponential with full jitter: the wait before try `n + 1` is anything between nothing and
/// `base` times 2 to the power of `n - 1`, `cap` at most. All delays between are equally likely,
/// so that clients which lost their service at one moment do not come back at one moment
/// ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). The first try after the loss of
/// a connection that had stayed up comes sooner, within `first`: most restarts take no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after one failed try; 5 s unless set. Too low hammers a service that has
    /// trouble to start; too high keeps users waiting.
    pub base: Duration,
    /// The longest wait of all; 5 min unless set.
    pub cap: Duration,
    /// The longest wait after the loss of a connection that had stayed up; 1 s unless set.
    pub first: Duration,
    /// For how long a connection has to stay up for its loss to count as the first one; 30 s unless
    /// set. A service that takes connections and drops them again would be hammered if the mere
    /// connection counted.
    pub stable_after: Duration,
    /// How many tries there are; 10 unless set.
    pub attempts: Attempts,
}

const DEFAULT_ATTEMPTS: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(5),
            cap: Duration::from_secs(300),
            first: Duration::from_secs(1),
            stable_after: Duration::from_secs(30),
            attempts: Attempts::AtMost(DEFAULT_ATTEMPTS),
        }
    }
}

impl Backoff {
    /// The same without an end to the tries.
    #[must_use]
    pub fn unlimited(self) -> Self {
        Self {
            attempts: Attempts::Unlimited,
            ..self
        }
    }

    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// Names the first value that cannot work, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("base", self.base),
            ("cap", self.cap),
            ("first", self.first),
            ("stable_after", self.stable_after),
        ] {
            if value > MAX_TIMEOUT {
                return Err(ConfigError::new(name, "at most a year"));
            }
        }
        if self.base.is_zero() {
            return Err(ConfigError::new("base", "longer than zero"));
        }
        if self.base > self.cap {
            return Err(ConfigError::new("base", "at most `cap`"));
        }
        Ok(())
    }

    /// The longest wait after this many tries in a row.
    fn longest(&self, tries: u32) -> Duration {
        match tries {
            0 => self.first,
            _ => 2_u32
                .checked_pow(tries - 1)
                .and_then(|factor| self.base.checked_mul(factor))
                .map_or(self.cap, |longest| longest.min(self.cap)),
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another try, after this long.
    TryAfter(Duration),
    GiveUp,
}

/// Counts the tries of one client.
#[derive(Debug)]
pub(crate) struct Tries {
    backoff: Backoff,
    /// Tries since the last connection that stayed up.
    count: u32,
}

impl Tries {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, count: 0 }
    }

    /// A try begins. Returns the how many-th in a row it is.
    pub(crate) fn handle_try(&mut self) -> u32 {
        self.count = self.count.saturating_add(1);
        self.count
    }

    /// A try failed.
    pub(crate) fn handle_failed(&self, rng: &mut Rng) -> Next {
        self.next(rng)
    }

    /// A connection was lost that had been there since `connected_at`.
    pub(crate) fn handle_lost(
        &mut self,
        connected_at: Instant,
        now: Instant,
        rng: &mut Rng,
    ) -> Next {
        let stable = now.saturating_duration_since(connected_at) >= self.backoff.stable_after;
        if stable || is_planted(PlantedBug::BackoffResetOnConnect) {
            self.count = 0;
        }
        self.next(rng)
    }

    fn next(&self, rng: &mut Rng) -> Next {
        match self.backoff.attempts {
            Attempts::AtMost(most) if self.count >= most.get() => Next::GiveUp,
            Attempts::AtMost(_) | Attempts::Unlimited => {
                Next::TryAfter(any_up_to(self.backoff.longest(self.count), rng))
            }
        }
    }
}

/// Any time from nothing to this, all equally likely.
pub(crate) fn any_up_to(longest: Duration, rng: &mut Rng) -> Duration {
    longest.mul_f64(rng.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints the seed, so that a failure can be had again.
    fn seeded() -> Rng {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        Rng::with_seed(seed)
    }

    fn delays(backoff: Backoff, tries: u32, rng: &mut Rng) -> Vec<Duration> {
        let state = Tries {
            backoff: backoff.unlimited(),
            count: tries,
        };
        let delay = |next| match next {
            Next::TryAfter(delay) => delay,
            Next::GiveUp => panic!("gave up"),
        };
        (0..10_000)
            .map(|_| delay(state.handle_failed(rng)))
            .collect()
    }

    /// Full jitter: within every tenth of the span lies about a tenth of the delays.
    #[test]
    fn delays_are_spread_evenly_from_nothing_to_a_doubling_limit() {
        let mut rng = seeded();
        let backoff = Backoff::default();
        let limits = [1, 5, 10, 20, 40, 80, 160, 300, 300, 300].map(Duration::from_secs);
        for (tries, limit) in (0..).zip(limits) {
            let mut tenths = [0_u32; 10];
            for delay in delays(backoff, tries, &mut rng) {
                assert!(delay <= limit, "{delay:?} after {tries} tries");
                let tenth = delay.as_nanos() * 10 / limit.as_nanos();
                tenths[usize::try_from(tenth).unwrap().min(9)] += 1;
            }
            // 1,000 expected, with a standard deviation of 30.
            assert!(
                tenths.iter().all(|count| (800..1200).contains(count)),
                "{tenths:?} after {tries} tries"
            );
        }
    }

    #[test]
    fn the_limit_never_overflows() {
        let mut rng = seeded();
        for tries in [31, 32, 33, 64, u32::MAX] {
            let longest = delays(Backoff::default(), tries, &mut rng)
                .into_iter()
                .max();
            assert!(longest.unwrap() <= Duration::from_secs(300));
        }
    }

    #[test]
    fn a_seed_gives_the_same_delays_again() {
        let run = || delays(Backoff::default(), 3, &mut Rng::with_seed(7));
        assert_eq!(run(), run());
    }

    #[test]
    fn it_gives_up_after_the_last_attempt() {
        let mut rng = seeded();
        let mut tries = Tries::new(Backoff::default());
        for number in 1..=10 {
            assert_eq!(tries.handle_try(), number);
            let next = tries.handle_failed(&mut rng);
            assert_eq!(next == Next::GiveUp, number == 10, "after try {number}");
        }
    }

    /// A service that takes connections and drops them again must not be hammered.
    #[test]
    fn only_a_connection_that_stayed_up_begins_anew() {
        let mut rng = seeded();
        let start = Instant::now();
        let stable = Backoff::default().stable_after;
        let mut tries = Tries::new(Backoff::default());
        for _ in 0..9 {
            tries.handle_try();
            let just_under = start + stable - Duration::from_millis(1);
            assert_ne!(tries.handle_lost(start, just_under, &mut rng), Next::GiveUp);
        }
        tries.handle_try();
        match tries.handle_lost(start, start + stable, &mut rng) {
            Next::TryAfter(delay) => assert!(delay <= Backoff::default().first),
            Next::GiveUp => panic!("gave up"),
        }
        assert_eq!(tries.handle_try(), 1);
    }

    #[test]
    fn values_that_cannot_work_are_named() {
        Backoff::default().validate().unwrap();
        let inverted = Backoff {
            base: Duration::from_secs(10),
            cap: Duration::from_secs(9),
            ..Backoff::default()
        };
        assert_eq!(
            inverted.validate().unwrap_err().to_string(),
            "base must be at most `cap`"
        );
    }
}
