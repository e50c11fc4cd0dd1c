//! Which connection speaks for an outbox.
//!
//! A sender connects again while messages of its last connection are still in the inbox, or even on
//! their way, and sends them once more. Numbers from both would arrive in turns, and the ledger,
//! which tells from the order of arrival what was put off and what was given up, would let some
//! overtake others. So of the connections that bring numbered messages of an outbox, the one whose
//! hello came last speaks for it. Handlers that another one had begun come to their ends; whatever
//! else that one brings is put off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration_ipc_store::OutboxKey;

/// Who speaks for each outbox of which there were numbered messages.
#[derive(Debug, Default)]
pub(super) struct Speakers(Mutex<Newest>);

#[derive(Debug, Default)]
struct Newest {
    by_outbox: HashMap<OutboxKey, u64>,
    next: u64,
}

impl Speakers {
    /// A connection names an outbox.
    pub(super) fn introduce(self: &Arc<Self>, key: OutboxKey) -> Speaker {
        let mut newest = self.lock();
        let number = newest.next;
        newest.next += 1;
        Speaker {
            key,
            number,
            speakers: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that has named an outbox.
#[derive(Debug)]
pub(crate) struct Speaker {
    key: OutboxKey,
    /// The higher, the later it did.
    number: u64,
    speakers: Arc<Speakers>,
}

impl Speaker {
    pub(crate) fn key(&self) -> &OutboxKey {
        &self.key
    }

    /// It brings a numbered message: no older one speaks for the outbox any more.
    pub(crate) fn speak(&self) {
        let mut newest = self.speakers.lock();
        match newest.by_outbox.get_mut(&self.key) {
            Some(number) => *number = self.number.max(*number),
            None => drop(newest.by_outbox.insert(self.key.clone(), self.number)),
        }
    }

    /// Whether it speaks for the outbox.
    pub(crate) fn is_newest(&self) -> bool {
        self.speakers.lock().by_outbox.get(&self.key) == Some(&self.number)
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let mut newest = self.speakers.lock();
        if newest.by_outbox.get(&self.key) == Some(&self.number) {
            newest.by_outbox.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc_protocol::OutboxId;

    use super::*;

    #[test]
    fn the_last_that_named_an_outbox_and_speaks_is_heard() {
        let speakers = Arc::new(Speakers::default());
        let key = |outbox| OutboxKey::new("1000", OutboxId::from_bytes([outbox; 16]));
        let (first, second) = (speakers.introduce(key(1)), speakers.introduce(key(1)));
        let other = speakers.introduce(key(2));
        first.speak();
        other.speak();
        assert!(
            first.is_newest() && other.is_newest(),
            "the second is silent"
        );
        second.speak();
        first.speak();
        assert!(!first.is_newest() && second.is_newest() && other.is_newest());
        drop(first);
        assert!(second.is_newest());
        drop((second, other));
        assert!(speakers.lock().by_outbox.is_empty());
    }
}
