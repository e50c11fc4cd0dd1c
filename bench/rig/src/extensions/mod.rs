//! What each extension costs or gains: the same work without it and with it, in one run.

mod figures;
mod measures;

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use migration_ipc::crypto::{Key, Keyring, SharedKey, Suite};
use migration_ipc::{Capability, CapabilitySet, Compression, ConnectionConfig, Encryption};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::compare::{MEASURE_LIMIT, START_LIMIT, endpoint};
use crate::report::Report;
use crate::{peers, project};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Measure {
    /// Round trips, one in flight: an acknowledged message, and a question with its reply.
    #[value(name = "R")]
    Request,
    /// A stream of manifests of 64 KiB, as they are, and compressed.
    #[value(name = "Z")]
    Manifests,
    /// A stream of the usual small messages, as they are, and compressed one by one.
    #[value(name = "Y")]
    SmallMessages,
    /// The same stream in the clear, and encrypted with ChaCha20-Poly1305.
    #[value(name = "S")]
    Encrypted,
    /// The same stream in the clear, and encrypted with AES-256-GCM.
    #[value(name = "G")]
    EncryptedAesGcm,
    /// Acknowledged messages, 1,024 in flight: each acknowledged by itself, and in ranges.
    #[value(name = "K")]
    AckRanges,
    /// A stream that nobody would acknowledge anyway, without saying so in each message, and with.
    #[value(name = "L")]
    NoAck,
    /// From nothing to the first answer, without a hello and with one.
    #[value(name = "N")]
    Connecting,
    /// Round trips on a connection that began without a hello, and with one.
    #[value(name = "M")]
    Afterwards,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Side {
    Without,
    With,
}

/// One side of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Args)]
pub(crate) struct Setting {
    #[arg(value_enum)]
    pub(crate) measure: Measure,
    #[arg(value_enum)]
    pub(crate) side: Side,
}

impl Measure {
    fn as_str(self) -> &'static str {
        match self {
            Self::Request => "R",
            Self::Manifests => "Z",
            Self::SmallMessages => "Y",
            Self::Encrypted => "S",
            Self::EncryptedAesGcm => "G",
            Self::AckRanges => "K",
            Self::NoAck => "L",
            Self::Connecting => "N",
            Self::Afterwards => "M",
        }
    }

    /// How many messages; for `N`, connections.
    fn count(self) -> u64 {
        match self {
            Self::Request | Self::Afterwards => 50_000,
            Self::Manifests => 5_000,
            Self::SmallMessages | Self::Encrypted | Self::EncryptedAesGcm | Self::NoAck => 500_000,
            Self::AckRanges => 200_000,
            Self::Connecting => 3_000,
        }
    }

    /// Whether a single wait is what matters: then both processes stay on one processor, because
    /// waking one that is halted would hide everything else.
    fn is_latency(self) -> bool {
        match self {
            Self::Request | Self::Connecting | Self::Afterwards => true,
            Self::Manifests
            | Self::SmallMessages
            | Self::Encrypted
            | Self::EncryptedAesGcm
            | Self::AckRanges
            | Self::NoAck => false,
        }
    }
}

impl Setting {
    /// What both ends are set to.
    fn config(self) -> ConnectionConfig {
        let compression = match (self.measure, self.side) {
            (Measure::Manifests, Side::With) => Compression::From(Compression::USUAL_THRESHOLD),
            (Measure::SmallMessages, Side::With) => Compression::From(Compression::MIN_THRESHOLD),
            _ => Compression::Off,
        };
        let all = CapabilitySet::all();
        let capabilities = match (self.measure, self.side) {
            (Measure::AckRanges, Side::Without) => all.without(Capability::AckRanges),
            (Measure::NoAck, Side::Without) => all.without(Capability::NoAck),
            _ => all,
        };
        ConnectionConfig {
            compression,
            capabilities,
            ..ConnectionConfig::default()
        }
    }

    /// What both ends encrypt with, and with nobody who does not; `None` where they do not.
    fn encryption(self) -> Result<Option<Encryption>> {
        let suite = match (self.measure, self.side) {
            (Measure::Encrypted, Side::With) => Suite::ChaChaPoly,
            (Measure::EncryptedAesGcm, Side::With) => Suite::AesGcm,
            _ => return Ok(None),
        };
        // It protects nothing: both processes have to know it without being told.
        let key = Key::Shared(SharedKey::new([0x5a; 32]));
        let keyring = Keyring::new("rig".parse()?, key);
        Ok(Some(Encryption::required(keyring).with_suite(suite)))
    }

    fn side_name(self) -> &'static str {
        match self.side {
            Side::Without => "without",
            Side::With => "with",
        }
    }

    /// Serves until the process is ended; calls `ready` once clients can connect.
    pub(crate) fn serve(self, endpoint: &str, ready: impl FnOnce()) -> Result<()> {
        peers::run(async {
            let (config, encryption) = (self.config(), self.encryption()?);
            let _server = project::serve_with(endpoint, false, config, encryption).await?;
            ready();
            std::future::pending().await
        })
    }

    /// Measures against a server of the same setting.
    pub(crate) fn measure(
        self,
        endpoint: String,
        count: u64,
        server: Option<u32>,
    ) -> Result<Report> {
        let work = measures::run(self, endpoint, count, server);
        peers::run(peers::spawned(work))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Extensions {
    /// How often everything is measured; the medians count.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Divides the number of messages, for a first look.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    divide: u64,
    /// What to measure; everything unless given.
    #[arg(value_enum)]
    measures: Vec<Measure>,
}

type Reports = BTreeMap<Setting, Vec<Report>>;

impl Extensions {
    pub(crate) fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let reports = runtime.block_on(self.measure_all())?;
        figures::print(&reports);
        Ok(())
    }

    async fn measure_all(&self) -> Result<Reports> {
        let folder = tempfile::tempdir()?;
        let mut measures = self.measures.clone();
        if measures.is_empty() {
            measures.extend(Measure::value_variants());
        }
        let mut reports = Reports::new();
        let mut number = 0;
        for run in 1..=self.runs {
            for &measure in &measures {
                for &side in Side::value_variants() {
                    let setting = Setting { measure, side };
                    number += 1;
                    let (name, side) = (measure.as_str(), setting.side_name());
                    eprintln!("run {run} of {}: {name}, {side}", self.runs);
                    let endpoint = endpoint(folder.path(), number);
                    let report = self
                        .measure(setting, &endpoint)
                        .await
                        .with_context(|| format!("measuring {name} {side}"))?;
                    reports.entry(setting).or_default().push(report);
                }
            }
        }
        Ok(reports)
    }

    async fn measure(&self, setting: Setting, endpoint: &str) -> Result<Report> {
        let mut server = start_server(setting, endpoint).await?;
        let server_id = server.id().context("the server has ended")?;
        let count = (setting.measure.count() / self.divide).max(1);
        let output = process("extension-client", setting, endpoint)?
            .arg(count.to_string())
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
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// This program again, as one process of a measurement.
fn process(command: &str, setting: Setting, endpoint: &str) -> Result<Command> {
    let mut process = Command::new(std::env::current_exe()?);
    process.stdin(Stdio::null()).kill_on_drop(true);
    let measure = setting.measure.as_str();
    process.args([command, endpoint, measure, setting.side_name()]);
    if setting.measure.is_latency() && cfg!(target_os = "linux") {
        process.args(["--processor", "0"]);
    }
    Ok(process)
}

async fn start_server(setting: Setting, endpoint: &str) -> Result<Child> {
    let mut server = process("extension-server", setting, endpoint)?
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
