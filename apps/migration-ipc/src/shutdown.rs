//! Why a program ends before its work does.

use std::fmt;
use std::io::{self, Read as _};

use clap::Args;
use tokio::sync::oneshot;

use crate::os::{ParentWatch, StopSignals};

/// Ties a process to the one that started it.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Lifeline {
    /// End in an orderly way when standard input ends, as it does when the process that started
    /// this one is gone, however that happened.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}

/// What asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCause {
    Signal(&'static str),
    ParentGone,
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::ParentGone => f.write_str("the process that started this one is gone"),
        }
    }
}

/// Waits for whatever asks this process to end.
#[derive(Debug)]
pub(crate) struct Shutdown {
    signals: StopSignals,
    stdin: Option<oneshot::Receiver<()>>,
    parent: Option<ParentWatch>,
}

impl Shutdown {
    /// Ends on signals, and with a lifeline on its end.
    pub(crate) fn listen(lifeline: Lifeline) -> io::Result<Self> {
        let stdin = if lifeline.until_stdin_ends {
            Some(end_of_stdin()?)
        } else {
            None
        };
        Ok(Self {
            signals: StopSignals::register()?,
            stdin,
            parent: None,
        })
    }

    /// Ends on signals, and when the parent is gone.
    pub(crate) fn listen_with_parent(parent: ParentWatch) -> io::Result<Self> {
        Ok(Self {
            signals: StopSignals::register()?,
            stdin: None,
            parent: Some(parent),
        })
    }

    /// Waits until the process is asked to end. Cancel safe.
    pub(crate) async fn requested(&mut self) -> StopCause {
        tokio::select! {
            name = self.signals.recv() => StopCause::Signal(name),
            () = lost(&mut self.stdin) => StopCause::ParentGone,
            () = orphaned(self.parent.as_ref()) => StopCause::ParentGone,
        }
    }
}

async fn lost(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        Some(end) => {
            // The sender is dropped at the end, which is the message.
            drop(end.await);
            *stdin = None;
        }
        None => std::future::pending().await,
    }
}

async fn orphaned(parent: Option<&ParentWatch>) {
    match parent {
        Some(parent) => parent.gone().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input to its end on a thread of its own, which ends with the process.
fn end_of_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (open, end) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let _until_the_end = open;
            let mut stdin = io::stdin().lock();
            while !matches!(stdin.read(&mut [0; 256]), Ok(0) | Err(_)) {}
        })?;
    Ok(end)
}
