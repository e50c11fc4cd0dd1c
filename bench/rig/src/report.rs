//! The figures of one measurement.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::system::{self, CpuTime};

/// One line of JSON. What a mode or a system does not tell is left out.
///
/// Processor time is that of both processes, in seconds for a million messages, which is the same
/// number as microseconds for one.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// Half of the round trips were faster, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p999: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mean: Option<f64>,
    /// Half of the broadcasts reached everybody faster, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_ms: Option<f64>,
    /// Messages per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<f64>,
    /// The most memory that the server ever had resident, in KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rss: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<f64>,
    /// The part of `cpu` that was spent in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sys: Option<f64>,
    /// The part of `cpu` that was spent by the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_srv: Option<f64>,
    /// Syncs of the sender's disk for one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) syncs: Option<f64>,
}

/// Measures time and processor time of a number of messages.
#[derive(Debug)]
pub(crate) struct Meter {
    server: Option<u32>,
    client_before: Option<CpuTime>,
    server_before: Option<CpuTime>,
    start: Instant,
}

impl Meter {
    /// Starts now. `server` is the id of the server's process, where it is known.
    pub(crate) fn start(server: Option<u32>) -> Self {
        Self {
            server,
            client_before: system::cpu_time(std::process::id()),
            server_before: server.and_then(system::cpu_time),
            start: Instant::now(),
        }
    }

    /// What it came to.
    pub(crate) fn finish(self, messages: u64) -> Report {
        let seconds = self.start.elapsed().as_secs_f64();
        let messages = as_f64(messages);
        let client = spent(self.client_before, system::cpu_time(std::process::id()));
        let server = spent(self.server_before, self.server.and_then(system::cpu_time));
        let both = client.zip(server);
        let each = |time: Duration| rounded(time.as_secs_f64() * 1e6 / messages, 3);
        Report {
            rate: Some(rounded(messages / seconds, 0)),
            cpu: both.map(|(client, server)| each(client.total() + server.total())),
            sys: both.map(|(client, server)| each(client.system + server.system)),
            cpu_srv: server.map(|server| each(server.total())),
            ..Report::default()
        }
    }
}

fn spent(before: Option<CpuTime>, after: Option<CpuTime>) -> Option<CpuTime> {
    before
        .zip(after)
        .map(|(before, after)| after.since(&before))
}

/// Durations of single operations.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    nanos: Vec<u64>,
}

impl Latencies {
    /// With room for so many, so that nothing is allocated between measurements.
    pub(crate) fn with_capacity(capacity: u64) -> Self {
        Self {
            nanos: Vec::with_capacity(usize::try_from(capacity).unwrap_or(0)),
        }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.nanos
            .push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn sort(&mut self) {
        self.nanos.sort_unstable();
    }

    /// What this share of a thousand was faster than, in microseconds; sorted before.
    pub(crate) fn permille(&self, share: usize) -> Option<f64> {
        let place = self.nanos.len() * share / 1000;
        let last = self.nanos.len().checked_sub(1)?;
        Some(as_f64(self.nanos[place.min(last)]) / 1e3)
    }

    /// In microseconds.
    pub(crate) fn mean(&self) -> Option<f64> {
        let count = u64::try_from(self.nanos.len()).ok().filter(|&n| n > 0)?;
        Some(as_f64(self.nanos.iter().sum()) / as_f64(count) / 1e3)
    }
}

/// Exact up to 2^53, which no count of a measurement reaches.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

/// With so many decimals.
pub(crate) fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}
