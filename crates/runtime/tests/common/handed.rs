//! A listener that accepts the streams that a test hands to it.

use std::io;

use migration_ipc::Endpoint;
use migration_ipc::transport::memory::MemoryListener;
use migration_ipc::transport::{BoxFuture, Listener, Stream};
use tokio::sync::mpsc;

use super::listen;

#[derive(Debug)]
pub(crate) struct Handed {
    streams: mpsc::Receiver<Box<dyn Stream>>,
    /// Lends its name.
    listener: MemoryListener,
}

/// The listener, and where to hand streams to it.
pub(crate) fn handed() -> (Handed, mpsc::Sender<Box<dyn Stream>>) {
    let (sender, streams) = mpsc::channel(1);
    let (listener, _) = listen();
    (Handed { streams, listener }, sender)
}

impl Listener for Handed {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            match self.streams.recv().await {
                Some(stream) => Ok(stream),
                None => std::future::pending().await,
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        self.listener.endpoint()
    }
}
