//! Whose numbers they are.

use migration_ipc_protocol::OutboxId;

use crate::planted::{PlantedBug, is_planted};

/// An outbox of one account. The account is part of it, so that no user can settle, or block, what
/// another one sends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxKey {
    /// The sender's account, canonical as the operating system gives it.
    pub account: Box<str>,
    /// The outbox, as its sender names it.
    pub outbox: OutboxId,
}

impl OutboxKey {
    /// The outbox of an account.
    #[must_use]
    pub fn new(account: &str, outbox: OutboxId) -> Self {
        let outbox = match is_planted(PlantedBug::LedgerWithoutOutbox) {
            true => OutboxId::from_bytes([0; 16]),
            false => outbox,
        };
        Self {
            account: account.into(),
            outbox,
        }
    }
}
