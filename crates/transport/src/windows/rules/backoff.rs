//! Growing delays between tries.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Delays that double from a first one up to a longest one.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// How long to wait before the next try.
    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        delay
    }

    /// As [`Backoff::delay`], between half of it and all of it at random, so that many who began
    /// together do not try again together.
    pub(crate) fn jittered(&mut self) -> Duration {
        let delay = self.delay();
        // Each RandomState has other keys, so the hash of a constant is a random number.
        let random = RandomState::new().hash_one(()) % 1024;
        let random = u32::try_from(random).unwrap_or(0);
        delay / 2 + delay / 2 * random / 1024
    }

    /// After a success: begins again with the first delay.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        let delays: Vec<_> = (0..4).map(|_| backoff.delay().as_millis()).collect();
        assert_eq!(delays, [10, 20, 35, 35]);
        backoff.reset();
        assert_eq!(backoff.delay().as_millis(), 10);
    }

    #[test]
    fn jitter_keeps_at_least_half_of_the_delay() {
        let longest = Duration::from_millis(100);
        let mut backoff = Backoff::new(longest, longest);
        for _ in 0..100 {
            let delay = backoff.jittered();
            assert!(longest / 2 <= delay && delay <= longest, "{delay:?}");
        }
    }
}
