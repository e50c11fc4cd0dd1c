//! A commit that is under way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::Shared;
use migration_ipc_store::StoredOutcome;
use thiserror::Error;
use tokio::sync::oneshot;

/// Why effects were not stored. Nothing of them is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommitError {
    /// More work waits for the disk than is tolerated.
    #[error("the store is busy")]
    Busy,
    /// The disk failed; the log says how.
    #[error("the store failed")]
    Failed,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// There is no store: give the server one with `store`.
    #[error("there is no store")]
    NoStore,
    /// The message was committed before: a message has one commit.
    #[error("the message was committed before")]
    Again,
}

pub(super) type CommitResult = Result<StoredOutcome, CommitError>;

/// The commit of one message's effects: resolves when they are on the disk, or not at all.
///
/// A handler may wait for it, or return it; the answer to the message follows it either way.
/// Dropping it changes nothing.
#[derive(Debug, Clone)]
#[must_use = "the effects are stored only when this says so"]
pub struct Commit(State);

#[derive(Debug, Clone)]
enum State {
    Failed(CommitError),
    UnderWay(Shared<oneshot::Receiver<CommitResult>>),
}

impl Commit {
    pub(crate) fn failed(error: CommitError) -> Self {
        Self(State::Failed(error))
    }

    pub(super) fn under_way(result: oneshot::Receiver<CommitResult>) -> Self {
        Self(State::UnderWay(result.shared()))
    }
}

/// Cancel safe: the commit goes on.
impl Future for Commit {
    type Output = Result<StoredOutcome, CommitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Failed(error) => Poll::Ready(Err(error.clone())),
            // The committer answers everything that it takes, unless it panics.
            State::UnderWay(result) => Pin::new(result)
                .poll(cx)
                .map(|result| result.unwrap_or(Err(CommitError::Failed))),
        }
    }
}

/// The commit of effects that belong to no message: resolves as a [`Commit`] does. It is not the end
/// of a message, so a handler cannot return it.
///
/// Dropping it changes nothing.
#[derive(Debug, Clone)]
#[must_use = "the effects are stored only when this says so"]
pub struct ProgramCommit(pub(super) Commit);

impl From<Commit> for ProgramCommit {
    /// For a program that waits for both in one place.
    fn from(commit: Commit) -> Self {
        Self(commit)
    }
}

/// Cancel safe: the commit goes on.
impl Future for ProgramCommit {
    type Output = Result<StoredOutcome, CommitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}
