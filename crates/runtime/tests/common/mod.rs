//! What the suites share: identities, a server in memory, and a peer that speaks bytes.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod handed;
mod place;
mod recorder;
mod watch;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use migration_ipc::transport::memory::{self, MemoryConnector, MemoryListener};
use migration_ipc::{
    AccountId, ConnectionEvent, DisconnectReason, EventStream, IpcClient, IpcClientBuilder,
    IpcConnection, IpcServer, IpcServerBuilder, MessageDispatcher, Observed, PeerIdentity,
    Privilege,
};
use tokio::sync::Semaphore;

#[allow(unused_imports, reason = "each test program uses its own part")]
pub(crate) use self::{
    handed::handed,
    place::{Place, development, raise_file_limit},
    recorder::Recorder,
    watch::{Log, Watch, ask_each_time},
    wire::*,
};

/// Bytes that each direction of a connection in memory holds.
pub(crate) const CAPACITY: usize = 64 * 1024;

/// Long enough for anything that a test waits for; never reached when the test passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// [`PATIENCE`] where the runtime itself is patient: longer than each of its timeouts.
pub(crate) const LONG_PATIENCE: Duration = Duration::from_secs(2000);

pub(crate) fn user(name: &str) -> PeerIdentity {
    PeerIdentity::new(AccountId::new(name), Privilege::Ordinary)
}

pub(crate) fn administrator() -> PeerIdentity {
    PeerIdentity::new(AccountId::new("0"), Privilege::Administrator)
}

pub(crate) fn listen() -> (MemoryListener, MemoryConnector) {
    memory::listen("test", administrator(), CAPACITY)
}

/// A server in memory with this dispatcher and everything else as usual.
pub(crate) async fn serve(dispatcher: MessageDispatcher) -> (IpcServer, MemoryConnector) {
    serve_with(dispatcher, |server| server).await
}

pub(crate) async fn serve_with(
    dispatcher: MessageDispatcher,
    set_up: impl FnOnce(IpcServerBuilder) -> IpcServerBuilder,
) -> (IpcServer, MemoryConnector) {
    serve_on(listen(), dispatcher, set_up).await
}

pub(crate) async fn serve_on(
    (listener, connector): (MemoryListener, MemoryConnector),
    dispatcher: MessageDispatcher,
    set_up: impl FnOnce(IpcServerBuilder) -> IpcServerBuilder,
) -> (IpcServer, MemoryConnector) {
    let server = set_up(IpcServer::builder(dispatcher))
        .listener(listener)
        .start()
        .await
        .unwrap();
    (server, connector)
}

/// A client without handlers.
pub(crate) fn client() -> IpcClientBuilder {
    IpcClient::builder(MessageDispatcher::empty())
}

/// Bounds a wait: what takes longer than [`PATIENCE`] is stuck.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("not stuck")
}

/// Waits for a condition, for as long as [`PATIENCE`] lasts.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "never happened: {what}"
    );
}

/// Lets every task do what it can do without time passing. For virtual time only, where a sleep
/// ends as soon as everything else waits.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// The only connection of a server, once it is there.
pub(crate) async fn only_connection(server: &IpcServer) -> IpcConnection {
    eventually("a connection", || server.connections().all().len() == 1).await;
    server.connections().all().remove(0)
}

/// How a connection of the server ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) reason: DisconnectReason,
    pub(crate) unsent: usize,
    pub(crate) unhandled: usize,
}

/// Waits for the next end of a connection.
pub(crate) async fn next_end(events: &mut EventStream) -> End {
    let next = async {
        loop {
            match events.recv().await.expect("the server lives") {
                Observed::Item(ConnectionEvent::Disconnected {
                    reason,
                    unsent_messages: unsent,
                    unhandled_messages: unhandled,
                    ..
                }) => {
                    return End {
                        reason,
                        unsent,
                        unhandled,
                    };
                }
                Observed::Item(_) => {}
                Observed::Missed(missed) => panic!("{missed} events were missed"),
            }
        }
    };
    tokio::time::timeout(LONG_PATIENCE, next)
        .await
        .expect("no connection ended")
}

/// Where handlers wait until a test lets them pass.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    pub(crate) fn closed() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
        }
    }

    /// How many wait to pass.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets this many pass, now or later.
    pub(crate) fn admit(&self, handlers: usize) {
        self.permits.add_permits(handlers);
    }

    /// Lets everybody pass from now on.
    pub(crate) fn open(&self) {
        self.permits.close();
    }

    pub(crate) async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A closed semaphore is an open gate.
        if let Ok(permit) = self.permits.acquire().await {
            permit.forget();
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
