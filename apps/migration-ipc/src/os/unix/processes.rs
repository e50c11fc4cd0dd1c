//! Signals, parents and children.

use std::future;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, getppid};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// How often a process looks whether its parent is still there.
const PARENT_INTERVAL: Duration = Duration::from_millis(100);

/// The signals that ask a process to end in an orderly way.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl StopSignals {
    pub(crate) fn register() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal and names it. Cancel safe.
    pub(crate) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.interrupt.recv() => "SIGINT",
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.hang_up.recv() => "SIGHUP",
            else => future::pending().await,
        }
    }
}

/// Tells when the process that started this one is gone: then it has another parent.
#[derive(Debug)]
pub(crate) struct ParentWatch {
    parent: Option<Pid>,
}

impl ParentWatch {
    /// To be called early: a parent that is gone by now is not noticed.
    pub(crate) fn new() -> Self {
        Self { parent: getppid() }
    }

    /// Waits for the parent's end. Cancel safe.
    pub(crate) async fn gone(&self) {
        let mut interval = interval(PARENT_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while getppid() == self.parent {
            interval.tick().await;
        }
    }
}

/// Keeps a child away from the terminal's signals, so that its parent decides about its end.
pub(crate) fn own_process_group(command: &mut Command) {
    command.process_group(0);
}

/// The name of the session that this process runs in, as systemd's login manager has it.
pub(crate) fn session_name() -> Option<String> {
    std::env::var("XDG_SESSION_ID")
        .ok()
        .filter(|session| !session.is_empty())
}

/// The id of the account that this process runs as: the user id in decimal.
pub(crate) fn own_account() -> io::Result<String> {
    Ok(rustix::process::geteuid().as_raw().to_string())
}
