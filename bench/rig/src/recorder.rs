//! A recorder of metrics: what the framework reports is counted, as an exporter would count it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// Installs a recorder for this process.
pub(crate) fn install() -> anyhow::Result<()> {
    Ok(metrics::set_global_recorder(Atomics::default())?)
}

/// Every series as atomics, found by its key, so that reporting takes no lock.
#[derive(Debug, Default)]
struct Atomics {
    counters: Series<AtomicU64>,
    gauges: Series<AtomicU64>,
    histograms: Series<Buckets>,
}

#[derive(Debug)]
struct Series<T>(Mutex<HashMap<Key, Arc<T>>>);

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Series<T> {
    fn get(&self, key: &Key) -> Arc<T> {
        let mut series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(series.entry(key.clone()).or_default())
    }
}

impl Recorder for Atomics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.counters.get(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.gauges.get(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.histograms.get(key))
    }
}

/// A histogram with four buckets for each doubling, from 2^-32 (a quarter of a nanosecond, where
/// values are seconds) up to 2^32.
#[derive(Debug)]
struct Buckets([AtomicU64; 256]);

impl Default for Buckets {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 256])
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        self.0[bucket(value)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Bits of a number of double precision below its exponent and the first two of its mantissa.
const BELOW_BUCKET: u32 = 50;

fn bucket(value: f64) -> usize {
    // Positive numbers sort as their bits do.
    let first = 2_f64.powi(-32).to_bits() >> BELOW_BUCKET;
    let bits = value.max(0.0).to_bits() >> BELOW_BUCKET;
    usize::try_from(bits.saturating_sub(first)).map_or(255, |bucket| bucket.min(255))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_four_buckets_for_each_doubling() {
        assert_eq!(bucket(1e-6 * 2.0), bucket(1e-6) + 4);
        assert!(bucket(1e-6) < bucket(1e-6 * 1.3));
    }

    #[test]
    fn every_value_has_a_bucket() {
        for (value, expected) in [(-1.0, 0), (0.0, 0), (f64::NAN, 0), (f64::INFINITY, 255)] {
            assert_eq!(bucket(value), expected, "{value}");
        }
    }
}
