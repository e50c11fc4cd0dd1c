//! Mail: messages for the agent of a user, kept in the store until the agent has them.
//!
//! `send_to` puts a message into the store; the `postman`, one task of the server, takes it to the
//! user's agent when there is one; `office` is where an operator looks after what is kept.

mod office;
mod postman;
mod receipts;
mod requeue;

use std::time::Duration;

use migration_ipc_protocol::{EncodeError, IpcMessage, MessagePayload, MessageSerializer};
use migration_ipc_store::{Effects, Mail, StoredOutcome};
use migration_ipc_transport::AccountId;
pub use office::Mailbox;
pub(super) use postman::Postman;
pub(super) use receipts::Receipts;
pub use requeue::{RequeueError, Requeued};
use thiserror::Error;

use super::ServerSender;
use crate::connection::with_scratch;
use crate::delivery::{Receipt, receipt};
use crate::store::CommitError;

/// How a message is kept for a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MailOptions {
    time_to_live: Option<Duration>,
}

impl MailOptions {
    /// Kept until it is delivered.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Kept for this long at most. What no agent has by then becomes a dead letter, within a
    /// minute, and its receipt resolves as [`Fate::Expired`](crate::Fate::Expired); or as
    /// [`Fate::Unknown`](crate::Fate::Unknown), if an agent got it and was gone before it answered.
    #[must_use]
    pub fn time_to_live(mut self, time: Duration) -> Self {
        self.time_to_live = Some(time);
        self
    }
}

/// Why a message is not kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MailError {
    /// It cannot be put on the wire.
    #[error("the message cannot be encoded: {0}")]
    Encode(#[from] EncodeError),
    /// The mailbox does not take it: it is full.
    #[error("the mailbox does not take the message: {0}")]
    Refused(String),
    /// It is not stored: there is no store, or it failed.
    #[error("the message is not stored: {0}")]
    NotStored(#[from] CommitError),
}

impl ServerSender {
    /// Keeps a message for the agent of a user, who may be absent, and delivers it: in the order of
    /// all mail of that user, to the longest announced of the user's agents, now or when one
    /// appears, also after a restart of the service. On return it is on the disk.
    ///
    /// It is removed when the agent has answered it; when it was handed to the operating system, if
    /// the agent is one that does not answer ([`Fate::Sent`](crate::Fate::Sent)); or when its time is over. A
    /// rejection makes it a dead letter. An agent may get it twice, if a connection ends before its
    /// answer; one with a [store](crate::IpcClientBuilder::store) recognises that.
    ///
    /// A `userId` in the payload that is the user's account is written as the agent announced it.
    ///
    /// Cancel safe: the message is kept wholly or not at all; once polled, it may be kept.
    ///
    /// # Errors
    /// When it cannot be encoded or stored; nothing is kept then.
    pub async fn send_to<P: MessagePayload>(
        &self,
        user: &AccountId,
        payload: &P,
        options: MailOptions,
    ) -> Result<Receipt, MailError> {
        let store = self.store.as_ref().ok_or(CommitError::NoStore)?;
        if let Some(service) = self.service.upgrade() {
            service.surroundings.sensitive.learn::<P>();
        }
        let (id, timestamp) = crate::factory::stamp(self.clock);
        let message = IpcMessage::new(id.clone(), timestamp, payload)?;
        // What cannot be sent is to be known now.
        with_scratch(|frame| MessageSerializer::encode_message(frame, &message))?;
        let expires = options.time_to_live.map(|time| timestamp + time);
        let (receipt, resolver) = receipt(id.clone());
        let expected = self.receipts.expect(id, resolver);
        let mail = Mail { message, expires };
        let kept = store.commit(Effects::new().mail(user.as_str(), mail)).await;
        match kept? {
            StoredOutcome::Rejected { text, .. } => Err(MailError::Refused(text.into())),
            StoredOutcome::Handled | StoredOutcome::Replied { .. } => {
                expected.keep();
                Ok(receipt)
            }
        }
    }

    /// What is kept for users; `None` for a server without a store.
    #[must_use]
    pub fn mailbox(&self) -> Option<Mailbox> {
        Some(Mailbox {
            store: self.store.clone()?,
            receipts: self.receipts.clone(),
            service: self.service.clone(),
        })
    }
}
