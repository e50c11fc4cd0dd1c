//! The peers that can be measured, by name.

use std::future::Future;

use anyhow::Result;
use clap::ValueEnum;
use tokio::runtime::{Builder, Runtime};

#[cfg(unix)]
use crate::baseline::{idiom, raw};
use crate::modes::{Task, measure};
use crate::project;
use crate::report::Report;

/// Whose server and client run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum PeerName {
    /// Blocking sockets without framing and parsing.
    #[cfg(unix)]
    Raw,
    /// tokio, a codec and JSON, put together as usual.
    #[cfg(unix)]
    Idiom,
    /// The project.
    Project,
}

impl PeerName {
    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            #[cfg(unix)]
            Self::Raw => "raw",
            #[cfg(unix)]
            Self::Idiom => "idiom",
            Self::Project => "project",
        }
    }
}

/// Serves until the process is ended; calls `ready` once clients can connect. The project's server
/// keeps a store if `store` says so.
pub(crate) fn serve(
    peer: PeerName,
    endpoint: &str,
    store: bool,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match peer {
        #[cfg(unix)]
        PeerName::Raw => {
            let listener = std::os::unix::net::UnixListener::bind(endpoint)?;
            ready()?;
            raw::serve(&listener)
        }
        #[cfg(unix)]
        PeerName::Idiom => run(async {
            let listener = tokio::net::UnixListener::bind(endpoint)?;
            ready()?;
            idiom::serve(listener).await
        }),
        PeerName::Project => run(async {
            let _server = project::serve(endpoint, store).await?;
            ready()?;
            std::future::pending().await
        }),
    }
}

/// Measures one task; `None` where a peer has nothing to measure.
pub(crate) fn run_client(peer: PeerName, task: Task) -> Result<Option<Report>> {
    match peer {
        #[cfg(unix)]
        PeerName::Raw => raw::measure(&task),
        #[cfg(unix)]
        PeerName::Idiom => run(spawned(measure::<idiom::Client>(task))),
        PeerName::Project => run(spawned(measure::<project::Client>(task))),
    }
}

/// Runs on a worker, as the tasks of programs do.
pub(crate) async fn spawned<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await?
}

/// Runs to the end on a runtime of its own.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// `PB_RT=ct` asks for a runtime of one thread.
fn runtime() -> std::io::Result<Runtime> {
    let mut builder = match std::env::var("PB_RT").as_deref() {
        Ok("ct") => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}
