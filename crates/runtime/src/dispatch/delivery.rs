//! How a handler commits what its message changed.

use std::sync::Arc;

use migration_ipc_store::Effects;

use super::context::{FromContext, HandlerContext};
use crate::store::{Commit, CommitError, Entry, StoreHandle};

/// The delivery of one message, for a handler that commits its effects itself: because it has to
/// know that they are stored, or to fix the order of commits while it still holds a lock of its own.
///
/// ```
/// use migration_ipc::messages::BackupCompleted;
/// use migration_ipc::{Commit, Delivery, Effects, Peer};
///
/// async fn on_completed(completed: BackupCompleted, peer: Peer, delivery: Delivery) -> Commit {
///     let row = [u8::from(completed.success)];
///     delivery.commit(Effects::new().put("completed", peer.account().as_str(), row))
/// }
/// # let _ = migration_ipc::MessageDispatcher::builder(()).handle(on_completed).build().unwrap();
/// ```
#[derive(Debug)]
pub struct Delivery {
    entry: Option<Arc<Entry>>,
    store: Option<StoreHandle>,
}

impl Delivery {
    /// Commits the effects, and with them that the message is done and how it ended. It does not
    /// wait: commits happen in the order of the calls.
    ///
    /// What the handler returns afterwards changes nothing any more: the sender is told the outcome
    /// of the effects, once they are stored. If they are not stored it is told to try again.
    pub fn commit(self, effects: Effects) -> Commit {
        match &self.entry {
            Some(entry) => entry.commit(effects),
            None => Commit::failed(CommitError::NoStore),
        }
    }

    /// Whether the message is a durable one: sent again until it is done, and handled once as far as
    /// its effects in the store go. Handlers that have other effects find in the message's id what
    /// tells a repetition.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_durable())
    }

    /// The store, to read from.
    #[must_use]
    pub fn store(&self) -> Option<&StoreHandle> {
        self.store.as_ref()
    }
}

impl<S> FromContext<S> for Delivery {
    fn from_context(context: &HandlerContext<S>) -> Self {
        Self {
            entry: context.entry.clone(),
            store: context.connection.store().cloned(),
        }
    }
}
