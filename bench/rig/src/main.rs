//! Measures the project, alone or beside two baselines.
//!
//! `migration-ipc-rig compare` runs everything and prints ratios. `server` and `client` are its
//! parts, for other drivers; `bench/README.md` describes both.
#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

#[cfg(unix)]
mod baseline;
mod compare;
mod durable;
mod extensions;
mod manifest;
mod message;
mod modes;
mod peer;
mod peers;
mod project;
mod recorder;
mod report;
mod system;
mod table;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::compare::Comparison;
use crate::extensions::{Extensions, Setting};
use crate::modes::{Mode, Task};
use crate::peers::PeerName;

/// Measures speed and memory of migration-ipc.
#[derive(Debug, Parser)]
#[command(name = "migration-ipc-rig")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves until it is ended; prints one line when clients can connect.
    Server {
        /// A socket path, or on Windows the name of a pipe.
        endpoint: String,
        /// Keep a store, as mode E needs.
        #[arg(long)]
        store: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Measures against a server and prints one line of JSON.
    ///
    /// `PB_SERVER_PID` is the id of the server's process, for its processor time and memory.
    Client {
        /// Where the server is.
        endpoint: String,
        /// What to measure.
        #[arg(value_enum)]
        mode: Mode,
        /// Messages; in mode C of each client, in mode D broadcasts.
        count: u64,
        /// Clients in the modes C and D.
        #[arg(default_value_t = 1)]
        clients: u32,
        #[command(flatten)]
        settings: Settings,
    },
    /// Runs all peers interleaved, each server and client in a process of its own, and prints
    /// medians and ratios.
    Compare(Comparison),
    /// Runs the project without each extension and with it, interleaved, and prints medians and
    /// ratios.
    Extensions(Extensions),
    /// The server of one side of `extensions`.
    #[command(hide = true)]
    ExtensionServer {
        endpoint: String,
        #[command(flatten)]
        setting: Setting,
        #[command(flatten)]
        settings: Settings,
    },
    /// The client of one side of `extensions`; prints one line of JSON.
    #[command(hide = true)]
    ExtensionClient {
        endpoint: String,
        #[command(flatten)]
        setting: Setting,
        count: u64,
        #[command(flatten)]
        settings: Settings,
    },
}

/// How one process runs.
#[derive(Debug, clap::Args)]
struct Settings {
    /// Whose server or client it is.
    #[arg(long, value_enum, default_value_t = PeerName::Project)]
    peer: PeerName,
    /// Stay on this processor (Linux).
    #[arg(long)]
    processor: Option<usize>,
}

impl Settings {
    fn apply(&self) -> Result<()> {
        recorder::install()?;
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
        system::raise_file_limit();
        self.processor.map_or(Ok(()), system::stay_on)
    }
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Server {
            endpoint,
            store,
            settings,
        } => {
            settings.apply()?;
            peers::serve(settings.peer, &endpoint, store, || {
                println!("ready");
                Ok(())
            })
        }
        Command::Client {
            endpoint,
            mode,
            count,
            clients,
            settings,
        } => {
            settings.apply()?;
            let task = Task {
                endpoint,
                mode,
                count,
                clients,
                server: server_id(),
            };
            let report = peers::run_client(settings.peer, task)?;
            let line = match report {
                Some(report) => serde_json::to_string(&report)?,
                None => r#"{"skip":1}"#.to_owned(),
            };
            println!("{line}");
            Ok(())
        }
        Command::Compare(comparison) => comparison.run(),
        Command::Extensions(extensions) => extensions.run(),
        Command::ExtensionServer {
            endpoint,
            setting,
            settings,
        } => {
            settings.apply()?;
            setting.serve(&endpoint, || println!("ready"))
        }
        Command::ExtensionClient {
            endpoint,
            setting,
            count,
            settings,
        } => {
            settings.apply()?;
            let report = setting.measure(endpoint, count, server_id())?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
    }
}

/// The id of the server's process, where somebody has said it.
fn server_id() -> Option<u32> {
    std::env::var("PB_SERVER_PID").ok()?.parse().ok()
}
