//! The ledger as connections see it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::book::{Book, Slot, Verdict};
use super::key::OutboxKey;
use super::outcome::StoredOutcome;

/// What is to be done with a durable message whose handler could start.
#[derive(Debug)]
pub enum Begin {
    /// Run its handler, and give the ticket to the [`Work`](crate::Work) that commits it.
    New(Ticket),
    /// It is done: answer its sender with this.
    Done(StoredOutcome),
    /// Put it off: it is in progress on another connection, an earlier message of its stream was
    /// put off, or there is no room to remember it.
    Busy,
}

/// Where the outcomes are kept that say more than "handled".
pub(crate) trait Outcomes: fmt::Debug + Send + Sync {
    /// The outcome of a number; `None` when it is kept no longer.
    fn outcome(&self, slot: Slot, seq: u64) -> Result<Option<StoredOutcome>, crate::StoreError>;
}

/// Which messages of which outbox are done, in progress or put off. A cheap handle.
///
/// It is in memory; only [`begin`](Self::begin) of a message that ended with a reply or a rejection
/// reads that from the store.
#[derive(Clone, Debug)]
pub struct Ledger {
    book: SharedBook,
    outcomes: Arc<dyn Outcomes>,
}

impl Ledger {
    pub(crate) fn new(book: SharedBook, outcomes: Arc<dyn Outcomes>) -> Self {
        Self { book, outcomes }
    }

    /// Says what is to be done with a message whose handler could start now.
    ///
    /// `stream` is the order within the outbox that it belongs to, `None` the unnamed one; `seq` is
    /// its number, from 1 on. A sender that is told "put off" sends again from the lowest
    /// unsettled number of the stream on, in order; until then later messages of the stream are put
    /// off too. One that leaves a number out has given it up.
    #[must_use]
    pub fn begin(&self, key: &OutboxKey, stream: Option<&str>, seq: u64) -> Begin {
        let stream = stream.unwrap_or_default();
        let verdict = self.book.lock().begin(key, stream, seq);
        match verdict {
            Verdict::New => Begin::New(Ticket {
                message: Numbered {
                    key: key.clone(),
                    stream: stream.into(),
                    seq,
                },
                book: Some(self.book.clone()),
            }),
            Verdict::Handled => Begin::Done(StoredOutcome::Handled),
            Verdict::Kept(slot) => match self.outcomes.outcome(slot, seq) {
                Ok(Some(outcome)) => Begin::Done(outcome),
                // The window has moved on since: the sender has settled it.
                Ok(None) => Begin::Done(StoredOutcome::Handled),
                Err(error) => {
                    tracing::warn!(%error, seq, "cannot read the outcome of a message");
                    Begin::Busy
                }
            },
            Verdict::Busy => Begin::Busy,
        }
    }

    /// The highest number that is known of an outbox, 0 for an unknown one: a sender that lost its
    /// count numbers on from there.
    #[must_use]
    pub fn highest(&self, key: &OutboxKey) -> u64 {
        self.book.lock().highest(key)
    }
}

/// A message of an outbox.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(crate) key: OutboxKey,
    pub(crate) stream: Box<str>,
    pub(crate) seq: u64,
}

/// The right to commit one message. Dropped without a commit, the message is put off.
#[derive(Debug)]
#[must_use = "dropping it puts the message off"]
pub struct Ticket {
    message: Numbered,
    /// `None` once it is used up.
    book: Option<SharedBook>,
}

impl Ticket {
    /// The outbox of the message.
    #[must_use]
    pub fn key(&self) -> &OutboxKey {
        &self.message.key
    }

    /// The number of the message.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.message.seq
    }

    pub(crate) fn message(&self) -> &Numbered {
        &self.message
    }

    /// Uses the ticket up: the message is done.
    pub(crate) fn done(mut self, book: &mut Book) {
        let Numbered { key, stream, seq } = &self.message;
        book.done(key, stream, *seq);
        self.book = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(book) = &self.book {
            let Numbered { key, stream, seq } = &self.message;
            book.lock().put_off(key, stream, *seq);
        }
    }
}

/// The book between those that use it. Locked for moments only, never during a read or write.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedBook(Arc<Mutex<Book>>);

impl SharedBook {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Book> {
        // Nothing that runs under the lock panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
