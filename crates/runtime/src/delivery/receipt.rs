//! A receipt, and the other end of it.

use std::sync::Arc;

use migration_ipc_protocol::MessageId;
use tokio::sync::SetOnce;

use super::fate::Fate;
use crate::connection::{DisconnectReason, SendError};

/// What a send yields: it resolves to what became of the message, once.
///
/// Clones resolve to the same. Whoever does not care drops it. A receipt lives as long as its
/// process: of a durable message that outlives it, the next one learns the fate.
///
/// ```
/// # async fn run(receipt: migration_ipc::Receipt) {
/// use std::time::Duration;
///
/// match tokio::time::timeout(Duration::from_secs(5), receipt.fate()).await {
///     Ok(fate) => println!("{}: {fate}", receipt.id()),
///     Err(_) => println!("{}: not known yet", receipt.id()),
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Receipt {
    id: MessageId,
    slot: Slot,
}

// Boxed, because most of the many that wait are empty.
type Slot = Arc<SetOnce<Box<Fate>>>;

impl Receipt {
    /// The id of the message.
    #[must_use]
    pub fn id(&self) -> &MessageId {
        &self.id
    }

    /// Waits until the message's fate is known. Cancel safe, and it may be called again.
    pub async fn fate(&self) -> &Fate {
        self.slot.wait().await
    }

    /// The message's fate, if it is known by now.
    #[must_use]
    pub fn try_fate(&self) -> Option<&Fate> {
        self.slot.get().map(|fate| &**fate)
    }
}

/// Resolves a receipt; one that is dropped resolves it as unknown.
#[derive(Debug)]
pub(crate) struct Resolver(Option<Slot>);

/// A receipt for this message, and its resolver.
pub(crate) fn receipt(id: MessageId) -> (Receipt, Resolver) {
    let slot = Slot::default();
    let resolver = Resolver(Some(Arc::clone(&slot)));
    (Receipt { id, slot }, resolver)
}

impl Resolver {
    pub(crate) fn resolve(mut self, fate: Fate) {
        self.set(fate);
    }

    fn set(&mut self, fate: Fate) {
        let Some(slot) = self.0.take() else { return };
        // Alone, nobody will ever look.
        if Arc::strong_count(&slot) > 1 {
            // Set by nobody else: there is one resolver, and it is taken.
            let _ = slot.set(Box::new(fate));
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.set(Fate::Unknown(SendError::Lost(DisconnectReason::Aborted)));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn pair() -> (Receipt, Resolver) {
        receipt(MessageId::new("m1").unwrap())
    }

    #[test]
    fn a_receipt_and_its_clones_resolve_once_and_for_all() {
        let (receipt, resolver) = pair();
        let clone = receipt.clone();
        assert!(receipt.try_fate().is_none());
        assert!(receipt.fate().now_or_never().is_none());
        resolver.resolve(Fate::Handled);
        for receipt in [&receipt, &clone, &receipt] {
            assert!(matches!(receipt.fate().now_or_never(), Some(Fate::Handled)));
        }
        assert!(matches!(receipt.try_fate(), Some(Fate::Handled)));
    }

    #[test]
    fn nobody_waits_for_ever_for_a_resolver_that_is_gone() {
        let (receipt, resolver) = pair();
        drop(resolver);
        assert!(matches!(receipt.try_fate(), Some(Fate::Unknown(_))));
    }

    #[test]
    fn an_ignored_receipt_needs_nothing() {
        let (receipt, resolver) = pair();
        drop(receipt);
        resolver.resolve(Fate::Handled);
    }
}
