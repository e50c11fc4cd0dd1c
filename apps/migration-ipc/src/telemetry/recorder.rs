//! Keeps what the framework reports through the `metrics` facade, for `status`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, SetRecorderError, SharedString, Unit,
};
use serde::{Deserialize, Serialize};

use super::latency::{Latency, Quantiles, quantiles};
use super::rates::Rates;

/// How often counters are sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// How many samples a window of latencies has: status tells of the last one to two minutes.
const SAMPLES_PER_WINDOW: u32 = 60;

/// A recorder of metrics in this process. Clones share what was recorded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(Arc<Registry>);

#[derive(Debug, Default)]
struct Registry {
    counters: Mutex<HashMap<Key, Arc<AtomicU64>>>,
    gauges: Mutex<HashMap<Key, Arc<AtomicU64>>>,
    latencies: Mutex<HashMap<Key, Arc<Latency>>>,
    rates: Mutex<Option<Rates<Key>>>,
}

/// What was sent and received, and how fast it was handled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Traffic {
    pub(crate) messages_per_second: f64,
    /// From arrival to the end of the handler, over all types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) handling: Option<Quantiles>,
    /// From acceptance to the answer, over all types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) round_trips: Option<Quantiles>,
    /// Per type, those that occurred.
    pub(crate) types: BTreeMap<String, TypeTraffic>,
    /// What was refused, by reason.
    pub(crate) refusals: BTreeMap<String, u64>,
}

/// The traffic of one type of messages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TypeTraffic {
    pub(crate) received: Flow,
    pub(crate) sent: Flow,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) handling: Option<Quantiles>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) round_trips: Option<Quantiles>,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Flow {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) messages_per_second: f64,
}

impl Recorder {
    /// Makes this the recorder of the process; to be done before anything is counted.
    pub(crate) fn install(&self) -> Result<(), SetRecorderError<Self>> {
        metrics::set_global_recorder(self.clone())
    }

    /// Samples for ever; rates are right once this runs.
    pub(crate) async fn sample(self) {
        let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            for _ in 0..SAMPLES_PER_WINDOW {
                interval.tick().await;
                self.handle_sample(Instant::now());
            }
            lock(&self.0.latencies)
                .values()
                .for_each(|latency| latency.rotate());
        }
    }

    fn handle_sample(&self, now: Instant) {
        let counters = lock(&self.0.counters);
        let values = counters
            .iter()
            .map(|(key, value)| (key.clone(), value.load(Ordering::Relaxed)));
        lock(&self.0.rates)
            .get_or_insert_with(Rates::new)
            .handle_sample(now, values.collect());
    }

    pub(crate) fn traffic(&self, now: Instant) -> Traffic {
        let mut traffic = Traffic::default();
        self.add_counters(now, &mut traffic);
        self.add_latencies(&mut traffic);
        traffic
    }

    fn add_counters(&self, now: Instant, traffic: &mut Traffic) {
        let rates = lock(&self.0.rates);
        for (key, value) in lock(&self.0.counters).iter() {
            let value = value.load(Ordering::Relaxed);
            if value == 0 {
                continue;
            }
            if key.name() == "ipc_refusals_total" {
                traffic
                    .refusals
                    .insert(label(key, "reason").to_owned(), value);
                continue;
            }
            let of_type = || label(key, "type").to_owned();
            let flow = |of: &mut TypeTraffic, set: &dyn Fn(&mut Flow)| {
                set(if label(key, "direction") == "in" {
                    &mut of.received
                } else {
                    &mut of.sent
                });
            };
            match key.name() {
                "ipc_messages_total" => {
                    let rate = rates
                        .as_ref()
                        .map_or(0.0, |rates| rates.per_second(now, key, value));
                    traffic.messages_per_second += rate;
                    flow(traffic.types.entry(of_type()).or_default(), &|flow| {
                        flow.messages = value;
                        flow.messages_per_second = rate;
                    });
                }
                "ipc_bytes_total" => {
                    flow(traffic.types.entry(of_type()).or_default(), &|flow| {
                        flow.bytes = value
                    });
                }
                _ => {}
            }
        }
    }

    fn add_latencies(&self, traffic: &mut Traffic) {
        let (mut handling, mut round_trips) = (None, None);
        for (key, latency) in lock(&self.0.latencies).iter() {
            let mut own = None;
            latency.add_to(&mut own);
            let Some(own) = quantiles(own.as_ref()) else {
                continue;
            };
            let of_type = traffic
                .types
                .entry(label(key, "type").to_owned())
                .or_default();
            match key.name() {
                "ipc_handler_seconds" => {
                    latency.add_to(&mut handling);
                    of_type.handling = Some(own);
                }
                "ipc_round_trip_seconds" => {
                    latency.add_to(&mut round_trips);
                    of_type.round_trips = Some(own);
                }
                _ => {}
            }
        }
        traffic.handling = quantiles(handling.as_ref());
        traffic.round_trips = quantiles(round_trips.as_ref());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn label<'a>(key: &'a Key, name: &str) -> &'a str {
    key.labels()
        .find(|label| label.key() == name)
        .map_or("", |label| label.value())
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = lock(&self.0.counters);
        Counter::from_arc(Arc::clone(counters.entry(key.clone()).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let mut gauges = lock(&self.0.gauges);
        Gauge::from_arc(Arc::clone(gauges.entry(key.clone()).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let mut latencies = lock(&self.0.latencies);
        Histogram::from_arc(Arc::clone(latencies.entry(key.clone()).or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_facade_is_told_is_in_the_traffic() {
        let recorder = Recorder::default();
        let start = Instant::now();
        recorder.handle_sample(start);
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("ipc_messages_total", "type" => "A", "direction" => "in")
                .increment(50);
            metrics::counter!("ipc_bytes_total", "type" => "A", "direction" => "in").increment(999);
            metrics::counter!("ipc_messages_total", "type" => "B", "direction" => "out")
                .increment(5);
            metrics::counter!("ipc_refusals_total", "reason" => "framing").increment(1);
            metrics::histogram!("ipc_handler_seconds", "type" => "A").record(0.25);
        });
        let traffic = recorder.traffic(start + Duration::from_secs(5));
        let a = &traffic.types["A"];
        assert_eq!(
            (a.received.messages, a.received.bytes, a.sent.messages),
            (50, 999, 0)
        );
        assert_eq!(a.received.messages_per_second.to_string(), "10");
        assert_eq!(traffic.messages_per_second.to_string(), "11");
        assert_eq!(traffic.refusals["framing"], 1);
        assert_eq!(traffic.handling, a.handling);
        assert_eq!(a.handling.unwrap().count, 1);
        assert_eq!(traffic.types["B"].handling, None);
    }
}
