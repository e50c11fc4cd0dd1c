//! What is known of mail and not stored: who waits for its receipt, and which of it an agent has.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::counter;
use migration_ipc_protocol::MessageId;
use tokio_util::sync::CancellationToken;

use crate::connection::SendError;
use crate::delivery::{Fate, Resolver};

/// The receipts of mail that is kept. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Receipts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<MessageId, Waiting>,
    /// The mail that an agent has or is about to get, by number, and what calls it back.
    under_way: HashMap<u64, CancellationToken>,
}

#[derive(Debug)]
struct Waiting {
    resolver: Resolver,
    /// Why it is unknown whether an agent that got it has handled it.
    lost: Option<SendError>,
}

impl Receipts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits for what becomes of a message. Unless the result is [kept](Expected::keep),
    /// nobody does any more when it is dropped.
    pub(super) fn expect(&self, id: MessageId, resolver: Resolver) -> Expected<'_> {
        let waiting = Waiting {
            resolver,
            lost: None,
        };
        self.lock().waiting.insert(id.clone(), waiting);
        Expected {
            receipts: self,
            id: Some(id),
        }
    }

    /// Tells whoever waits; after a restart of the service nobody does.
    pub(super) fn resolve(&self, id: &MessageId, fate: Fate) {
        let waiting = self.lock().waiting.remove(id);
        end(waiting, fate);
    }

    /// As [`resolve`](Self::resolve), for mail that no agent has now. One that had it may have
    /// handled it; then its fate is unknown.
    pub(super) fn resolve_undelivered(&self, id: &MessageId, fate: Fate) {
        let mut waiting = self.lock().waiting.remove(id);
        let lost = waiting.as_mut().and_then(|waiting| waiting.lost.take());
        end(waiting, lost.map_or(fate, Fate::Unknown));
    }

    /// An agent got a message, and is gone without an answer.
    pub(super) fn note_lost(&self, id: &MessageId, why: SendError) {
        if let Some(waiting) = self.lock().waiting.get_mut(id) {
            waiting.lost = Some(why);
        }
    }

    /// Mail is given to an agent, for as long as the result lives.
    pub(super) fn set_out(&self, number: u64) -> UnderWay<'_> {
        let recalled = CancellationToken::new();
        self.lock().under_way.insert(number, recalled.clone());
        UnderWay {
            receipts: self,
            number,
            recalled,
        }
    }

    /// The numbers of the mail that is under way.
    pub(super) fn under_way(&self) -> HashSet<u64> {
        self.lock().under_way.keys().copied().collect()
    }

    /// Calls mail back that is under way: whoever delivers it waits no longer, and resolves its
    /// receipt. `false` when it is not under way.
    pub(super) fn recall(&self, number: u64) -> bool {
        let state = self.lock();
        let recalled = state.under_way.get(&number);
        recalled.inspect(|recalled| recalled.cancel()).is_some()
    }
}

fn end(waiting: Option<Waiting>, fate: Fate) {
    counter!("ipc_mail_total", "outcome" => fate.label()).increment(1);
    if let Some(waiting) = waiting {
        waiting.resolver.resolve(fate);
    }
}

/// A receipt that is taken back unless its message is stored.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    receipts: &'a Receipts,
    id: Option<MessageId>,
}

impl Expected<'_> {
    pub(super) fn keep(mut self) {
        self.id = None;
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.receipts.lock().waiting.remove(id);
        }
    }
}

/// Mail on its way to an agent.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    receipts: &'a Receipts,
    number: u64,
    recalled: CancellationToken,
}

impl UnderWay<'_> {
    /// Waits until it is called back. Cancel safe.
    pub(super) async fn recalled(&self) {
        self.recalled.cancelled().await;
    }

    /// It is under way no more. Whether it was called back before.
    pub(super) fn end(self) -> bool {
        let recalled = self.recalled.clone();
        drop(self);
        recalled.is_cancelled()
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.receipts.lock().under_way.remove(&self.number);
    }
}
