//! What a peer has to do to be measured.

use std::future::{Future, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::sync::Notify;

use crate::modes::Task;
use crate::report::Report;

/// One client of a peer's server. Clones share its connection.
pub(crate) trait Peer: Clone + Send + Sync + 'static {
    /// Connects, and reports every broadcast message that arrives.
    fn connect(endpoint: &str, arrivals: Arrivals) -> impl Future<Output = Result<Self>> + Send;

    /// Sends one message and waits for the answer to it.
    fn call(&self, number: u64) -> impl Future<Output = Result<()>> + Send;

    /// Sends one message that nobody answers.
    fn send(&self, number: u64) -> impl Future<Output = Result<()>> + Send;

    /// How many messages the server has handled altogether.
    fn handled(&self) -> impl Future<Output = Result<u64>> + Send;

    /// Asks the server for one message to every client.
    fn trigger(&self) -> impl Future<Output = Result<()>> + Send;

    /// Measures messages that survive a crash of either side; `None` for a peer without them.
    fn durable(_task: Task) -> impl Future<Output = Result<Option<Report>>> + Send {
        ready(Ok(None))
    }
}

/// Counts the broadcast messages that all clients of this process got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrivals(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    goal: AtomicU64,
    reached: Notify,
}

impl Arrivals {
    /// One more has arrived.
    pub(crate) fn add(&self) {
        let count = self.0.count.fetch_add(1, Ordering::SeqCst) + 1;
        if count == self.0.goal.load(Ordering::SeqCst) {
            self.0.reached.notify_one();
        }
    }

    /// Sets what [`reached`](Self::reached) waits for, before there can be so many.
    pub(crate) fn expect(&self, goal: u64) {
        self.0.goal.store(goal, Ordering::SeqCst);
    }

    /// Waits until as many have arrived as are expected.
    pub(crate) async fn reached(&self) {
        while self.0.count.load(Ordering::SeqCst) < self.0.goal.load(Ordering::SeqCst) {
            self.0.reached.notified().await;
        }
    }
}
