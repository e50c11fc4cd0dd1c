//! The measurements, the same for every peer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::timeout;

use crate::peer::{Arrivals, Peer};
use crate::report::{Latencies, Meter, Report, as_f64, rounded};
use crate::system;

/// Messages of a stream before the clock starts.
const STREAM_WARM_UP: u64 = 20_000;

/// Messages with a window before the clock starts.
const WINDOW_WARM_UP: u64 = 10_000;

/// How many messages wait for their answers at once with a window.
pub(crate) const WINDOW: u64 = 1024;

/// Broadcasts before the clock starts.
const BROADCAST_WARM_UP: u64 = 5;

/// How long one broadcast may take.
const BROADCAST_LIMIT: Duration = Duration::from_secs(20);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Mode {
    /// Round trips, one in flight.
    #[value(name = "A")]
    RoundTrip,
    /// A stream of messages that nobody answers.
    #[value(name = "B")]
    Stream,
    /// Answered messages, 1,024 in flight.
    #[value(name = "W")]
    Window,
    /// Many clients, one message of each in flight.
    #[value(name = "C")]
    FanIn,
    /// Broadcasts to many clients.
    #[value(name = "D")]
    Broadcast,
    /// Durable messages, 1,024 sends at once, until each has its receipt.
    #[value(name = "E")]
    Durable,
}

impl Mode {
    /// The name on the command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::RoundTrip => "A",
            Self::Stream => "B",
            Self::Window => "W",
            Self::FanIn => "C",
            Self::Broadcast => "D",
            Self::Durable => "E",
        }
    }
}

/// What a client is told to do.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) endpoint: String,
    pub(crate) mode: Mode,
    /// Messages; of each client for many clients, broadcasts for broadcasts.
    pub(crate) count: u64,
    pub(crate) clients: u32,
    /// The id of the server's process, to read its processor time and memory.
    pub(crate) server: Option<u32>,
}

/// Does it with the clients of one peer; `None` where the peer has nothing of the kind.
pub(crate) async fn measure<P: Peer>(task: Task) -> Result<Option<Report>> {
    let report = match task.mode {
        Mode::RoundTrip => round_trips::<P>(&task).await?,
        Mode::Stream => stream::<P>(&task).await?,
        Mode::Window => window::<P>(&task).await?,
        Mode::FanIn => fan_in::<P>(&task).await?,
        Mode::Broadcast => broadcasts::<P>(&task).await?,
        Mode::Durable => return P::durable(task).await,
    };
    Ok(Some(report))
}

async fn round_trips<P: Peer>(task: &Task) -> Result<Report> {
    let peer = P::connect(&task.endpoint, Arrivals::default()).await?;
    for number in 0..(task.count / 10).max(1000) {
        peer.call(number).await?;
    }
    let mut latencies = Latencies::with_capacity(task.count);
    let meter = Meter::start(task.server);
    for number in 0..task.count {
        let start = Instant::now();
        peer.call(number).await?;
        latencies.add(start.elapsed());
    }
    let report = meter.finish(task.count);
    Ok(with_latencies(report, latencies))
}

/// Adds round trips to a report.
pub(crate) fn with_latencies(report: Report, mut latencies: Latencies) -> Report {
    latencies.sort();
    let micros = |value: f64| rounded(value, 2);
    Report {
        p50: latencies.permille(500).map(micros),
        p99: latencies.permille(990).map(micros),
        p999: latencies.permille(999).map(micros),
        mean: latencies.mean().map(micros),
        ..report
    }
}

async fn stream<P: Peer>(task: &Task) -> Result<Report> {
    let peer = P::connect(&task.endpoint, Arrivals::default()).await?;
    for number in 0..STREAM_WARM_UP {
        peer.send(number).await?;
    }
    let before = peer.handled().await?;
    let meter = Meter::start(task.server);
    for number in 0..task.count {
        peer.send(number).await?;
    }
    let handled = peer.handled().await? - before;
    let report = meter.finish(task.count);
    ensure!(
        handled == task.count,
        "the server handled {handled} messages of {}",
        task.count
    );
    Ok(report)
}

async fn window<P: Peer>(task: &Task) -> Result<Report> {
    let peer = P::connect(&task.endpoint, Arrivals::default()).await?;
    call_with_window(&peer, WINDOW_WARM_UP).await?;
    let meter = Meter::start(task.server);
    call_with_window(&peer, task.count).await?;
    Ok(meter.finish(task.count))
}

/// So many round trips, [`WINDOW`] of them at once.
pub(crate) async fn call_with_window<P: Peer>(peer: &P, count: u64) -> Result<()> {
    let mut numbers = 0..count;
    let mut calls = FuturesUnordered::new();
    for number in numbers.by_ref().take(usize::try_from(WINDOW)?) {
        calls.push(peer.call(number));
    }
    while let Some(answered) = calls.next().await {
        answered?;
        if let Some(number) = numbers.next() {
            calls.push(peer.call(number));
        }
    }
    Ok(())
}

async fn fan_in<P: Peer>(task: &Task) -> Result<Report> {
    let peers = connect_all::<P>(task, &Arrivals::default()).await?;
    let meter = Meter::start(task.server);
    let count = task.count;
    let callers: Vec<_> = peers
        .iter()
        .cloned()
        .map(|peer| {
            tokio::spawn(async move {
                for number in 0..count {
                    peer.call(number).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    let report = meter.finish(count * u64::from(task.clients));
    Ok(Report {
        rss: task.server.and_then(system::peak_memory),
        ..report
    })
}

async fn broadcasts<P: Peer>(task: &Task) -> Result<Report> {
    let arrivals = Arrivals::default();
    let peers = connect_all::<P>(task, &arrivals).await?;
    let first = peers.first().context("nobody to broadcast to")?;
    let mut latencies = Latencies::with_capacity(task.count);
    for round in 1..=task.count + BROADCAST_WARM_UP {
        arrivals.expect(round * u64::from(task.clients));
        let start = Instant::now();
        first.trigger().await?;
        timeout(BROADCAST_LIMIT, arrivals.reached())
            .await
            .context("a broadcast did not reach everybody")?;
        if round > BROADCAST_WARM_UP {
            latencies.add(start.elapsed());
        }
    }
    latencies.sort();
    let millis = |micros: f64| rounded(micros / 1e3, 3);
    let per_second = |mean: f64| rounded(as_f64(task.clients.into()) * 1e6 / mean, 0);
    Ok(Report {
        p50_ms: latencies.permille(500).map(millis),
        p99_ms: latencies.permille(990).map(millis),
        rate: latencies.mean().map(per_second),
        rss: task.server.and_then(system::peak_memory),
        ..Report::default()
    })
}

/// Connects all clients; each has made one round trip then.
async fn connect_all<P: Peer>(task: &Task, arrivals: &Arrivals) -> Result<Vec<P>> {
    let mut peers = Vec::new();
    for _ in 0..task.clients {
        peers.push(P::connect(&task.endpoint, arrivals.clone()).await?);
    }
    for peer in &peers {
        peer.call(0).await?;
    }
    Ok(peers)
}
