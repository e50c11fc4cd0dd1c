//! Rates from counters that only grow.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Over how long a rate is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// The values of all counters at moments of the last seconds.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    samples: VecDeque<(Instant, BTreeMap<K, u64>)>,
}

impl<K: Ord> Rates<K> {
    pub(crate) fn new() -> Self {
        Self {
            samples: VecDeque::new(),
        }
    }

    /// Takes a sample, about once a second.
    pub(crate) fn handle_sample(&mut self, now: Instant, values: BTreeMap<K, u64>) {
        self.samples.push_back((now, values));
        while self.samples.len() > 1 && now.duration_since(self.samples[0].0) > WINDOW {
            self.samples.pop_front();
        }
    }

    /// How fast a counter grew to `value` in the last seconds.
    pub(crate) fn per_second(&self, now: Instant, key: &K, value: u64) -> f64 {
        let Some((then, values)) = self.samples.front() else {
            return 0.0;
        };
        let seconds = now.duration_since(*then).as_secs_f64();
        let grown = value.saturating_sub(values.get(key).copied().unwrap_or(0));
        if seconds > 0.0 {
            f64_of(grown) / seconds
        } else {
            0.0
        }
    }
}

/// A count as a number; exact below 2^53, which no counter reaches.
fn f64_of(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_taken_over_the_last_seconds() {
        let mut rates = Rates::new();
        let start = Instant::now();
        let second = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rates.per_second(start, &"a", 7).to_string(), "0");
        for at in 0..=60 {
            let value = if at <= 30 { 0 } else { (at - 30) * 100 };
            rates.handle_sample(second(at), BTreeMap::from([("a", value)]));
        }
        assert_eq!(rates.per_second(second(60), &"a", 3000).to_string(), "100");
        assert_eq!(rates.per_second(second(60), &"never", 0).to_string(), "0");
        assert!(rates.samples.len() <= 12);
    }

    #[test]
    fn large_counts_are_exact() {
        assert_eq!(f64_of((1 << 52) + 1).to_string(), "4503599627370497");
    }
}
