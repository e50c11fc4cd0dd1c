//! The one task that writes to the store: it commits what has come together since its last commit.

use std::time::Instant;

use metrics::{counter, histogram};
use migration_ipc_store::{Store, StoredOutcome, Work};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::commit::{CommitError, CommitResult};
use super::handle::{Journaling, StoreHandle};
use crate::delivery::Execution;

/// The most messages of one commit. More would save next to nothing of a sync's cost, and would
/// make the first of them wait.
const MAX_BATCH: usize = 1024;

/// The most work that waits for the disk, in messages: what the full windows of sixteen outboxes
/// can bring. More is put off.
const MAX_WAITING: usize = 16 * 1024;

/// Work, and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) done: oneshot::Sender<CommitResult>,
}

/// Owns a store and the task that writes to it.
///
/// Dropping it closes the store in the background, after what waits is committed.
#[derive(Debug)]
pub struct StoreOwner {
    handle: StoreHandle,
    closing: CancellationToken,
    task: JoinHandle<Option<Store>>,
}

impl StoreOwner {
    /// Begins to serve a store. Must be called in a Tokio runtime.
    #[must_use]
    pub fn start(store: Store, execution: Execution) -> Self {
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let handle = StoreHandle {
            jobs,
            ledger: store.ledger(),
            reader: store.reader(),
            outbox: store.outbox(),
            journal: if store.has_journal() {
                Journaling::All
            } else {
                Journaling::None
            },
            execution,
        };
        let closing = CancellationToken::new();
        let committer = Committer {
            waiting,
            execution,
            closing: closing.clone(),
        };
        Self {
            handle,
            closing,
            task: tokio::spawn(committer.run(store)),
        }
    }

    /// The handle to give to servers, clients and handlers.
    #[must_use]
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Commits what waits, and gives the store back; `None` when it panicked before. Whatever comes
    /// later is refused with [`CommitError::Closed`], so stop servers and clients first.
    ///
    /// Cancel safe: the store is closed all the same.
    pub async fn close(mut self) -> Option<Store> {
        self.closing.cancel();
        match (&mut self.task).await {
            Ok(store) => store,
            Err(error) => {
                tracing::error!(%error, "the store's task failed");
                None
            }
        }
    }
}

impl Drop for StoreOwner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

struct Committer {
    waiting: mpsc::Receiver<Job>,
    execution: Execution,
    closing: CancellationToken,
}

impl Committer {
    async fn run(mut self, mut store: Store) -> Option<Store> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled(), if !self.waiting.is_closed() => {
                    self.waiting.close();
                    continue;
                }
                received = self.waiting.recv_many(&mut batch, MAX_BATCH) => {
                    if received == 0 {
                        return Some(store);
                    }
                }
            }
            let (works, done): (Vec<Work>, Vec<_>) = batch
                .drain(..)
                .map(|Job { work, done }| (work, done))
                .unzip();
            let committed = self.execution.run(move || commit(store, works)).await;
            let (kept, result) = match committed {
                Ok(committed) => committed,
                Err(_) => {
                    // The store is gone with the panic. What waits fails as its senders go.
                    self.waiting.close();
                    return None;
                }
            };
            store = kept;
            tell(done, result);
        }
    }
}

/// Commits, and puts off what could not be committed before anybody is told.
fn commit(mut store: Store, mut works: Vec<Work>) -> (Store, Option<Vec<StoredOutcome>>) {
    let (messages, begun) = (works.len(), Instant::now());
    let result = store.commit(&mut works);
    drop(works);
    match result {
        Ok(outcomes) => {
            histogram!("ipc_store_commit_messages").record(messages as f64);
            histogram!("ipc_store_commit_seconds").record(begun.elapsed());
            (store, Some(outcomes))
        }
        Err(error) => {
            counter!("ipc_store_commit_failures_total").increment(1);
            tracing::error!(%error, messages, "nothing of a commit was stored");
            (store, None)
        }
    }
}

/// Whoever stopped waiting dropped its end.
fn tell(done: Vec<oneshot::Sender<CommitResult>>, outcomes: Option<Vec<StoredOutcome>>) {
    match outcomes {
        Some(outcomes) => {
            for (done, outcome) in done.into_iter().zip(outcomes) {
                drop(done.send(Ok(outcome)));
            }
        }
        None => {
            for done in done {
                drop(done.send(Err(CommitError::Failed)));
            }
        }
    }
}
