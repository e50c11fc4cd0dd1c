//! The handle to a store that many hold.

use std::collections::HashSet;
use std::sync::Arc;

use metrics::counter;
use migration_ipc_protocol::{OutboxId, Timestamp};
use migration_ipc_store::{Effects, KeptMail, Ledger, OutboxKey, Reader, StoreError, Work};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::commit::{Commit, CommitError, ProgramCommit};
use super::committer::Job;
use super::speaker::{Speaker, Speakers};
use crate::delivery::Execution;

/// A store that is shared by servers, clients and the program. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) ledger: Ledger,
    pub(super) reader: Reader,
    pub(super) outbox: OutboxId,
    pub(super) journal: Journaling,
    pub(super) execution: Execution,
    /// The accounts that mail was stored for.
    pub(super) posted: broadcast::Sender<Box<str>>,
    pub(super) speakers: Arc<Speakers>,
}

/// Whether handled messages are to be named in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journaling {
    All,
    None,
}

impl StoreHandle {
    /// Stores effects that belong to no message: all of them, or none. It does not wait: commits
    /// happen in the order of the calls, those of [`Delivery::commit`](crate::Delivery::commit)
    /// included.
    pub fn commit(&self, effects: Effects) -> ProgramCommit {
        ProgramCommit(self.submit(Work::of(effects)))
    }

    /// Reads what is stored, away from the connections' threads. A commit under way neither waits
    /// nor is waited for.
    ///
    /// # Errors
    /// As `read`, and when it panicked.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = self.reader.clone();
        match self.execution.run(move || read(&reader)).await {
            Ok(result) => result,
            Err(failed) => Err(StoreError::Failed {
                name: "store".into(),
                error: failed.into(),
            }),
        }
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The outbox that this store's mail comes from.
    pub(crate) fn outbox(&self) -> OutboxId {
        self.outbox
    }

    /// A connection names an outbox.
    pub(crate) fn introduce(&self, key: OutboxKey) -> Speaker {
        self.speakers.introduce(key)
    }

    pub(crate) fn keeps_journal(&self) -> bool {
        self.journal == Journaling::All
    }

    /// Whether so much waits for the disk that who brings more should wait too.
    pub(crate) fn is_behind(&self) -> bool {
        self.jobs.capacity() < self.jobs.max_capacity() / 2
    }

    /// Tells for whom mail was stored, from now on.
    pub(crate) fn posted(&self) -> broadcast::Receiver<Box<str>> {
        self.posted.subscribe()
    }

    /// Takes mail away whose time is over, some of it, but not these numbers, and makes it dead
    /// letters.
    pub(crate) async fn expire_mail(
        &self,
        now: Timestamp,
        except: HashSet<u64>,
    ) -> Result<Vec<KeptMail>, CommitError> {
        let (done, expired) = oneshot::channel();
        let job = Job::ExpireMail { now, except, done };
        let asked = self.jobs.send(job).await;
        asked.map_err(|_| CommitError::Closed)?;
        expired.await.unwrap_or(Err(CommitError::Failed))
    }

    /// Hands work to the committer, in the order of the calls.
    pub(crate) fn submit(&self, work: Work) -> Commit {
        let (done, result) = oneshot::channel();
        let mailed = work.effects.mailed().map(Into::into).collect();
        match self.jobs.try_send(Job::Commit { work, mailed, done }) {
            Ok(()) => Commit::under_way(result),
            Err(mpsc::error::TrySendError::Full(_)) => {
                counter!("ipc_store_refusals_total").increment(1);
                Commit::failed(CommitError::Busy)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Commit::failed(CommitError::Closed),
        }
    }
}
