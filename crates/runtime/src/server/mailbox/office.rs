//! What an operator sees of mail and dead letters, and does with them.

use std::sync::Weak;

use migration_ipc_store::{
    Direction, Effects, KeptDeadLetter, KeptMail, Mail, StoreError, StoredOutcome,
};
use migration_ipc_transport::AccountId;

use super::Receipts;
use super::requeue::{RequeueError, Requeued, handle_again};
use crate::connection::SendError;
use crate::delivery::Fate;
use crate::server::acceptor::Service;
use crate::store::{CommitError, StoreHandle};

/// Mail that waits for users, and dead letters: messages that were rejected or have expired. Cheap to
/// clone.
///
/// Lists are read in pages: ask for what has higher numbers than the last one of the page before.
#[derive(Debug, Clone)]
pub struct Mailbox {
    pub(super) store: StoreHandle,
    pub(super) receipts: Receipts,
    pub(super) service: Weak<Service>,
}

impl Mailbox {
    /// The mail of all users with higher numbers than this one, in order, at most so many.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn mail(&self, after: u64, limit: usize) -> Result<Vec<KeptMail>, StoreError> {
        self.store
            .read(move |reader| reader.mail(after, limit))
            .await
    }

    /// The mail of one user, as [`mail`](Self::mail).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn mail_of(
        &self,
        user: &AccountId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<KeptMail>, StoreError> {
        let user = user.clone();
        self.store
            .read(move |reader| reader.mail_of(user.as_str(), after, limit))
            .await
    }

    /// Removes mail, if it is there. One that is on its way to an agent at this moment may still be
    /// handled, and holds up the next no longer; its receipt resolves as [`Fate::Unknown`].
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn drop_mail(&self, number: u64) -> Result<Option<KeptMail>, RequeueError> {
        let found = self
            .store
            .read(move |reader| reader.mail_numbered(number))
            .await?;
        let Some(kept) = found else { return Ok(None) };
        self.store.commit(Effects::new().drop_mail(number)).await?;
        // Under way, its fate is the postman's to tell.
        if !self.receipts.recall(number) {
            let fate = Fate::NotSent(SendError::Dropped);
            let id = &kept.mail.message.id;
            self.receipts.resolve_undelivered(id, fate);
        }
        Ok(Some(kept))
    }

    /// The dead letters with higher numbers than this one, in order, at most so many.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn dead_letters(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<KeptDeadLetter>, StoreError> {
        self.store
            .read(move |reader| reader.dead_letters(after, limit))
            .await
    }

    /// Removes a dead letter, if it is there.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn drop_dead_letter(
        &self,
        number: u64,
    ) -> Result<Option<KeptDeadLetter>, RequeueError> {
        let found = self.dead_letter(number).await?;
        if found.is_some() {
            self.take(number, Effects::new()).await?;
        }
        Ok(found)
    }

    /// Tries again what a dead letter is about. One to an agent becomes mail again, without a time
    /// to live. One from an agent is given to its handler once more, as a message of the same
    /// account and session over a connection that has ended; it is a dead letter no more if it is
    /// handled now, and stays one otherwise.
    ///
    /// # Errors
    /// When there is no such dead letter, it cannot be tried again, or its handler refuses it again.
    pub async fn requeue(&self, number: u64) -> Result<Requeued, RequeueError> {
        let kept = self.dead_letter(number).await?;
        let letter = kept.ok_or(RequeueError::Unknown(number))?.letter;
        match letter.direction {
            Direction::ToAgent => {
                let mail = Mail {
                    message: letter.message,
                    expires: None,
                };
                let effects = Effects::new().mail(&letter.account, mail);
                self.take(number, effects).await?;
                Ok(Requeued::Mailed)
            }
            Direction::FromAgent => {
                let service = self.service.upgrade().ok_or(CommitError::Closed)?;
                handle_again(&service, &self.store, number, letter).await
            }
        }
    }

    async fn dead_letter(&self, number: u64) -> Result<Option<KeptDeadLetter>, StoreError> {
        self.store
            .read(move |reader| reader.dead_letter(number))
            .await
    }

    /// Removes a dead letter together with these effects.
    async fn take(&self, number: u64, effects: Effects) -> Result<(), RequeueError> {
        match self.store.commit(effects.take_dead_letter(number)).await? {
            StoredOutcome::Rejected { code, text } => Err(RequeueError::Refused { code, text }),
            StoredOutcome::Handled | StoredOutcome::Replied { .. } => Ok(()),
        }
    }
}
