//! Latencies of the last minute or two.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use metrics::HistogramFn;
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart.
const MAX_NANOS: u64 = 60_000_000_000;

/// Digits that count: within 1%.
const DIGITS: u8 = 2;

/// What half, and 99 of 100, were faster than.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Latencies in two windows: the present one and the one before. Memory is taken by the first
/// value.
#[derive(Debug, Default)]
pub(crate) struct Latency(Mutex<Windows>);

#[derive(Debug, Default)]
struct Windows {
    present: Option<Histogram<u64>>,
    before: Option<Histogram<u64>>,
}

impl Latency {
    /// Begins a new window.
    pub(crate) fn rotate(&self) {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.before = windows.present.take();
    }

    /// Adds both windows to `sum`.
    pub(crate) fn add_to(&self, sum: &mut Option<Histogram<u64>>) {
        let windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for window in [&windows.present, &windows.before].into_iter().flatten() {
            match sum {
                None => *sum = Some(window.clone()),
                // Both have the same bounds, so nothing can be out of range.
                Some(sum) => drop(sum.add(window)),
            }
        }
    }
}

impl HistogramFn for Latency {
    fn record(&self, seconds: f64) {
        let latency = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.present.is_none() {
            windows.present = Histogram::new_with_bounds(1, MAX_NANOS, DIGITS).ok();
        }
        if let Some(present) = &mut windows.present {
            present.saturating_record(nanos);
        }
    }
}

/// The quantiles of a sum; `None` of nothing.
pub(crate) fn quantiles(sum: Option<&Histogram<u64>>) -> Option<Quantiles> {
    let sum = sum.filter(|sum| !sum.is_empty())?;
    let millis =
        |quantile| Duration::from_nanos(sum.value_at_quantile(quantile)).as_secs_f64() * 1e3;
    Some(Quantiles {
        count: sum.len(),
        p50_ms: millis(0.5),
        p99_ms: millis(0.99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantiles_of(latency: &Latency) -> Option<Quantiles> {
        let mut sum = None;
        latency.add_to(&mut sum);
        quantiles(sum.as_ref())
    }

    #[test]
    fn quantiles_are_within_a_percent() {
        let latency = Latency::default();
        (1..=100).for_each(|millis| latency.record(f64::from(millis) / 1e3));
        let quantiles = quantiles_of(&latency).unwrap();
        assert_eq!(quantiles.count, 100);
        assert!((quantiles.p50_ms - 50.0).abs() < 0.6, "{quantiles:?}");
        assert!((quantiles.p99_ms - 99.0).abs() < 1.1, "{quantiles:?}");
    }

    #[test]
    fn values_are_forgotten_after_two_windows() {
        let latency = Latency::default();
        assert_eq!(quantiles_of(&latency), None);
        latency.record(0.001);
        latency.rotate();
        assert_eq!(quantiles_of(&latency).unwrap().count, 1);
        latency.rotate();
        assert_eq!(quantiles_of(&latency), None);
    }

    #[test]
    fn absurd_values_do_no_harm() {
        let latency = Latency::default();
        [f64::NAN, -1.0, f64::INFINITY, 1e300]
            .into_iter()
            .for_each(|value| latency.record(value));
        assert_eq!(quantiles_of(&latency).unwrap().count, 4);
    }
}
