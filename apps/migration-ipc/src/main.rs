//! The reference programs of migration-ipc: a service, an agent, a demonstration and the tools of
//! operators, built on the public API alone.
//!
//! | module | what it is |
//! |---|---|
//! | `cli` | the command line, exit codes, output |
//! | `service` | the service: handlers, the migration's state machine, its store |
//! | `agent` | the agent of one user: consent, backups, reports |
//! | `backup` | the copying of files, its manifest and its checker |
//! | `publish` | messages from scripts, sent as an agent does |
//! | `address` | where a command looks for the service, and whom it takes for it |
//! | `encrypting` | with which keys a command encrypts |
//! | `reconnect` | how agents reach the service, again and again |
//! | `operator` | `status`, `send` and others, and the messages they need |
//! | `key` | files with keys: made, and checked |
//! | `demo` | all of it at once, checked |
//! | `os` | what differs between operating systems |

mod address;
mod agent;
mod backup;
mod check;
mod cli;
mod demo;
mod encrypting;
mod key;
mod operator;
mod os;
mod publish;
mod reconnect;
mod service;
mod service_message;
mod shutdown;
mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Failure, complain};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.install(cli.command.default_log_level());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, error }) => {
            complain(error);
            exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(cli.command.run());
    // A blocked thread, for example one that reads from a terminal, must not hold the end up.
    runtime.shutdown_background();
    result
}
