//! Messages that wait for the peer's answer.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use migration_ipc_protocol::MessageId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::{Answer, SendError};
use super::lanes::Place;

/// What an answered message resolves to.
pub(crate) type AnswerResult = Result<Answer, SendError>;

/// What is remembered of a message that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) message_type: &'static str,
    pub(crate) at: Instant,
    pub(crate) place: Place,
    pub(crate) patience: Patience,
}

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Usual,
    /// The time begins when the message was handed to the operating system.
    OnceWritten,
    /// As long as the connection lives.
    Unlimited,
}

#[derive(Debug)]
struct Waiting {
    /// Messages that come to the same end at once learn it in the order of their numbers.
    number: u64,
    answer: oneshot::Sender<AnswerResult>,
    sent: Sent,
    /// Of a batch, the messages in it, each of which waits under its own id; of others none.
    messages: Box<[MessageId]>,
}

/// What the outcomes of a batch came to.
#[derive(Debug)]
pub(crate) enum BatchEnd {
    /// No such batch waits.
    Unknown,
    /// It has another number of messages.
    Miscounted { messages: usize },
    /// Its messages are resolved. These waited until now.
    Resolved(Vec<Sent>),
}

/// The messages of one connection that wait for an acknowledgment or a reply, by id.
///
/// Only our own ids are keys, so a peer can neither grow the table nor choose its hashes.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    waiting: HashMap<MessageId, Waiting, RandomState>,
    next_number: u64,
}

impl InFlight {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one more may wait. An answer names the id only, so one message of an id has to wait
    /// for that of the other: a message that its caller sends twice, for example.
    pub(crate) fn has_room(&self, id: &MessageId, limit: usize) -> bool {
        self.len() < limit && !self.waiting.contains_key(id)
    }

    pub(crate) fn insert(&mut self, id: MessageId, sent: Sent) -> oneshot::Receiver<AnswerResult> {
        self.insert_with(id, sent, Box::default())
    }

    /// Lets a batch wait whose messages wait already: for its outcomes, or for its refusal.
    pub(crate) fn insert_batch(&mut self, id: MessageId, sent: Sent, messages: Box<[MessageId]>) {
        // Whoever sent it waits for its messages.
        drop(self.insert_with(id, sent, messages));
    }

    fn insert_with(
        &mut self,
        id: MessageId,
        sent: Sent,
        messages: Box<[MessageId]>,
    ) -> oneshot::Receiver<AnswerResult> {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting {
            number: self.next_number,
            answer,
            sent,
            messages,
        };
        self.next_number += 1;
        self.waiting.insert(id, waiting);
        receiver
    }

    /// Resolves a message; returns what it was, or `None` when nobody waited for it.
    ///
    /// An acknowledgment for a batch is for all that is in it. A reply to a batch is for nothing.
    pub(crate) fn resolve(&mut self, id: &MessageId, answer: AnswerResult) -> Option<Sent> {
        let waiting = self.waiting.get(id)?;
        if !waiting.messages.is_empty() && matches!(answer, Ok(Answer::Replied(_))) {
            return None;
        }
        let waiting = self.waiting.remove(id)?;
        let for_each = match &answer {
            Err(SendError::Rejected(rejection)) => Err(SendError::BatchRejected(rejection.clone())),
            answer => answer.clone(),
        };
        for id in &waiting.messages {
            self.resolve(id, for_each.clone());
        }
        // A caller that stopped waiting dropped its receiver; the answer is of no use then.
        drop(waiting.answer.send(answer));
        Some(waiting.sent)
    }

    /// How many messages a batch that waits has; 0 for what is no batch.
    pub(crate) fn messages_of(&self, id: &MessageId) -> usize {
        self.waiting.get(id).map_or(0, |batch| batch.messages.len())
    }

    /// Resolves the messages of a batch, in their order, but for those that were resolved before: by
    /// a reply, for example.
    pub(crate) fn resolve_batch(
        &mut self,
        id: &MessageId,
        outcomes: impl ExactSizeIterator<Item = AnswerResult>,
    ) -> BatchEnd {
        let messages = self.messages_of(id);
        if messages == 0 {
            return BatchEnd::Unknown;
        }
        if messages != outcomes.len() {
            return BatchEnd::Miscounted { messages };
        }
        let mut resolved = Vec::new();
        if let Some(batch) = self.waiting.remove(id) {
            let outcomes = batch.messages.iter().zip(outcomes);
            resolved.extend(outcomes.filter_map(|(id, outcome)| self.resolve(id, outcome)));
            resolved.push(batch.sent);
        }
        BatchEnd::Resolved(resolved)
    }

    /// Gives up on what waits since before `limit`.
    pub(crate) fn expire(
        &mut self,
        limit: Instant,
        now: Instant,
        is_written: impl Fn(Place) -> bool,
    ) {
        for waiting in self.waiting.values_mut() {
            let sent = &mut waiting.sent;
            if sent.patience == Patience::OnceWritten && !is_written(sent.place) {
                sent.at = now;
            }
        }
        self.end(&SendError::Unanswered, |sent| {
            sent.patience != Patience::Unlimited && sent.at <= limit
        });
    }

    /// Resolves with this error those whose place in the lanes says so.
    pub(crate) fn fail(&mut self, error: &SendError, concerned: impl Fn(Place) -> bool) {
        self.end(error, |sent| concerned(sent.place));
        self.waiting.shrink_to_fit();
    }

    /// Resolves the messages concerned in the order in which they were sent.
    fn end(&mut self, error: &SendError, concerned: impl Fn(&Sent) -> bool) {
        let ended = self
            .waiting
            .extract_if(|_, waiting| concerned(&waiting.sent));
        let mut ended: Vec<Waiting> = ended.map(|(_, waiting)| waiting).collect();
        ended.sort_unstable_by_key(|waiting| waiting.number);
        for waiting in ended {
            drop(waiting.answer.send(Err(error.clone())));
        }
    }
}
