//! All peers, interleaved in one run, so that what else the machine does hits everybody.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::modes::Mode;
use crate::peers::PeerName;
use crate::report::Report;
use crate::table;

/// How long a server may take until clients can connect.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(10);

/// How long one measurement may take.
pub(crate) const MEASURE_LIMIT: Duration = Duration::from_secs(120);

/// Clients of the modes with many.
const MANY: u32 = 1000;

#[derive(Debug, Args)]
pub(crate) struct Comparison {
    /// How often everything is measured; the medians count.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Divides the number of messages, for a first look.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    divide: u64,
    /// What to measure; everything unless given.
    #[arg(value_enum)]
    modes: Vec<Mode>,
}

/// What was measured: of one peer in one mode, once per run.
pub(crate) type Reports = BTreeMap<(Mode, PeerName), Vec<Report>>;

/// What a client prints: figures, or that there is nothing to measure.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Skipped {
        #[expect(dead_code, reason = "its presence tells")]
        skip: u8,
    },
    Measured(Report),
}

impl Comparison {
    pub(crate) fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let reports = runtime.block_on(self.measure_all())?;
        table::print(&reports);
        Ok(())
    }

    async fn measure_all(&self) -> Result<Reports> {
        let folder = tempfile::tempdir()?;
        let mut modes = self.modes.clone();
        if modes.is_empty() {
            modes.extend(Mode::value_variants());
        }
        let mut reports = Reports::new();
        let mut number = 0;
        for run in 1..=self.runs {
            for &mode in &modes {
                for &peer in PeerName::value_variants() {
                    number += 1;
                    eprintln!(
                        "run {run} of {}: {}, {}",
                        self.runs,
                        mode.as_str(),
                        peer.as_str()
                    );
                    let endpoint = endpoint(folder.path(), number);
                    let measured =
                        self.measure(peer, mode, &endpoint).await.with_context(|| {
                            format!("measuring {} in mode {}", peer.as_str(), mode.as_str())
                        })?;
                    if let Some(report) = measured {
                        reports.entry((mode, peer)).or_default().push(report);
                    }
                }
            }
        }
        Ok(reports)
    }

    async fn measure(&self, peer: PeerName, mode: Mode, endpoint: &str) -> Result<Option<Report>> {
        let mut server = start_server(peer, mode, endpoint).await?;
        let (count, clients) = size(mode);
        let server_id = server.id().context("the server has ended")?;
        let output = process("client", peer, mode)?
            .args([endpoint, mode.as_str()])
            .arg((count / self.divide).max(1).to_string())
            .arg(clients.to_string())
            .env("PB_SERVER_PID", server_id.to_string())
            .output();
        let output = timeout(MEASURE_LIMIT, output).await;
        server.kill().await?;
        let output = output.context("it takes too long")??;
        anyhow::ensure!(
            output.status.success(),
            "the client failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        match serde_json::from_slice(&output.stdout)? {
            Line::Skipped { .. } => Ok(None),
            Line::Measured(report) => Ok(Some(report)),
        }
    }
}

/// How many messages, and from how many clients.
fn size(mode: Mode) -> (u64, u32) {
    match mode {
        Mode::RoundTrip => (50_000, 1),
        Mode::Stream => (1_000_000, 1),
        Mode::Window => (300_000, 1),
        Mode::FanIn => (300, MANY),
        Mode::Broadcast => (100, MANY),
        Mode::Durable => (200_000, 1),
    }
}

pub(crate) fn endpoint(folder: &Path, number: u32) -> String {
    if cfg!(windows) {
        format!("migration-ipc-rig-{}-{number}", std::process::id())
    } else {
        let socket = folder.join(number.to_string());
        socket.to_string_lossy().into_owned()
    }
}

/// This program again, as one process of a measurement.
fn process(side: &str, peer: PeerName, mode: Mode) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.args([side, "--peer", peer.as_str()]);
    if mode == Mode::RoundTrip && cfg!(target_os = "linux") {
        // Between processors, waking one that is halted would hide everything else.
        command.args(["--processor", "0"]);
    }
    Ok(command)
}

async fn start_server(peer: PeerName, mode: Mode, endpoint: &str) -> Result<Child> {
    let mut server = process("server", peer, mode)?
        .arg(endpoint)
        .args((mode == Mode::Durable).then_some("--store"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = server.stdout.take().context("the server has no output")?;
    let mut line = String::new();
    timeout(START_LIMIT, BufReader::new(output).read_line(&mut line))
        .await
        .context("the server does not start")??;
    anyhow::ensure!(line.trim() == "ready", "the server did not start");
    Ok(server)
}
