//! The one task that writes to the store: it commits what has come together since its last commit.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use metrics::{counter, histogram};
use migration_ipc_protocol::Timestamp;
use migration_ipc_store::{KeptMail, Store, StoredOutcome, Work};
use tokio::sync::{broadcast, mpsc, oneshot};
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

/// How many postings a listener may lag behind; one that does looks everywhere.
const MAX_POSTED: usize = 1024;

/// What there is to write, and who waits for it.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all jobs are the large one, which a box would make dearer"
)]
pub(super) enum Job {
    Commit {
        work: Work,
        /// The accounts that it keeps mail for.
        mailed: Vec<Box<str>>,
        done: oneshot::Sender<CommitResult>,
    },
    ExpireMail {
        now: Timestamp,
        except: HashSet<u64>,
        done: oneshot::Sender<Result<Vec<KeptMail>, CommitError>>,
    },
}

/// The commits of one batch, and who waits for each.
#[derive(Default)]
struct Batch {
    works: Vec<Work>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    mailed: Vec<Box<str>>,
    done: oneshot::Sender<CommitResult>,
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
        let posted = broadcast::Sender::new(MAX_POSTED);
        let handle = StoreHandle {
            jobs,
            posted: posted.clone(),
            ledger: store.ledger(),
            reader: store.reader(),
            outbox: store.outbox(),
            journal: if store.has_journal() {
                Journaling::All
            } else {
                Journaling::None
            },
            execution,
            speakers: Arc::default(),
        };
        let closing = CancellationToken::new();
        let committer = Committer {
            jobs: waiting,
            posted,
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
    jobs: mpsc::Receiver<Job>,
    posted: broadcast::Sender<Box<str>>,
    execution: Execution,
    closing: CancellationToken,
}

impl Committer {
    /// Serves the store until it is closed and nothing waits any more. When it panics it is gone;
    /// what waits then fails with its senders.
    async fn run(mut self, mut store: Store) -> Option<Store> {
        let mut jobs = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled(), if !self.jobs.is_closed() => {
                    self.jobs.close();
                    continue;
                }
                received = self.jobs.recv_many(&mut jobs, MAX_BATCH) => {
                    if received == 0 {
                        return Some(store);
                    }
                }
            }
            let mut batch = Batch::default();
            for job in jobs.drain(..) {
                match job {
                    Job::Commit { work, mailed, done } => {
                        batch.works.push(work);
                        batch.waiting.push(Waiting { mailed, done });
                    }
                    Job::ExpireMail { now, except, done } => {
                        // In its turn: what comes later is stored later.
                        store = self.commit(store, std::mem::take(&mut batch)).await?;
                        store = self.expire(store, now, except, done).await?;
                    }
                }
            }
            store = self.commit(store, batch).await?;
        }
    }

    async fn commit(&self, store: Store, batch: Batch) -> Option<Store> {
        let Batch { works, waiting } = batch;
        if works.is_empty() {
            return Some(store);
        }
        let committing = self.execution.run(move || commit(store, works));
        let (store, outcomes) = committing.await.ok()?;
        match outcomes {
            Some(outcomes) => {
                for (Waiting { mailed, done }, outcome) in waiting.into_iter().zip(outcomes) {
                    for account in mailed {
                        // Without listeners there is nobody to deliver it.
                        drop(self.posted.send(account));
                    }
                    // Whoever stopped waiting dropped its end.
                    drop(done.send(Ok(outcome)));
                }
            }
            None => {
                for Waiting { done, .. } in waiting {
                    drop(done.send(Err(CommitError::Failed)));
                }
            }
        }
        Some(store)
    }

    async fn expire(
        &self,
        mut store: Store,
        now: Timestamp,
        except: HashSet<u64>,
        done: oneshot::Sender<Result<Vec<KeptMail>, CommitError>>,
    ) -> Option<Store> {
        let expiring = self.execution.run(move || {
            let expired = store.expire_mail(now, &except);
            (store, expired)
        });
        let (store, expired) = expiring.await.ok()?;
        drop(done.send(expired.map_err(|error| {
            tracing::error!(%error, "mail could not be looked through for what has expired");
            CommitError::Failed
        })));
        Some(store)
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
