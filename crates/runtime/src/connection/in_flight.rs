//! Messages that wait for the peer's answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;
use migration_ipc_protocol::MessageId;
use migration_ipc_protocol::extensions::FrameRange;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::{Answer, SendError};
use super::frames::{Frames, Listed};
use super::lane_kind::Place;
use super::lanes::Departure;

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
#[derive(Debug)]
pub(crate) struct InFlight {
    waiting: HashMap<MessageId, Waiting, RandomState>,
    next_number: u64,
    /// `None` once it is certain that the peer names messages by their ids alone.
    frames: Option<Frames>,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        Self {
            waiting: HashMap::default(),
            next_number: 0,
            frames: Some(Frames::default()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one more may wait. An answer names the id only, so one message of an id has to wait
    /// for that of the other: a message that its caller sends twice, for example.
    pub(crate) fn has_room(&self, id: &MessageId, limit: usize) -> bool {
        self.len() < limit && !self.waiting.contains_key(id)
    }

    pub(crate) fn insert(&mut self, id: MessageId, sent: Sent) -> oneshot::Receiver<AnswerResult> {
        self.list(&id, self.next_number, sent.place);
        self.insert_with(id, sent, Box::default())
    }

    /// As [`insert`](Self::insert), of a message that no acknowledgment names by its frame: it gets its
    /// [place](Self::place) later, or is in a batch.
    pub(crate) fn insert_unlisted(
        &mut self,
        id: MessageId,
        sent: Sent,
    ) -> oneshot::Receiver<AnswerResult> {
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

    /// A message that waits already enters its lane, at this place.
    pub(crate) fn place(&mut self, id: &MessageId, place: Place) {
        if let Some(waiting) = self.waiting.get_mut(id) {
            waiting.sent.place = place;
            let number = waiting.number;
            self.list(id, number, place);
        }
    }

    fn list(&mut self, id: &MessageId, number: u64, place: Place) {
        if let Some(frames) = &mut self.frames {
            let id = id.clone();
            frames.list(place, Listed { id, number });
        }
    }

    /// The peer names messages by their ids alone.
    pub(crate) fn forget_frames(&mut self) {
        self.frames = None;
    }

    /// Gives back what a burst made it allocate, if nobody waits.
    pub(crate) fn trim(&mut self) {
        if self.waiting.is_empty() {
            self.waiting.shrink_to_fit();
            if let Some(frames) = &mut self.frames {
                frames.clear();
            }
        }
    }

    /// Frames have left their lane for a write.
    pub(crate) fn note_left(&mut self, departure: Departure) {
        let Some(frames) = &mut self.frames else {
            return;
        };
        let waiting = &self.waiting;
        frames.note_left(departure, waiting.len(), |listed| {
            waiting
                .get(&listed.id)
                .is_some_and(|waiting| waiting.number == listed.number)
        });
    }

    /// Resolves what waits in these frames as handled; adds what it was to `resolved`.
    pub(crate) fn resolve_range(&mut self, range: FrameRange, resolved: &mut Vec<Sent>) {
        let Some(mut frames) = self.frames.take() else {
            return;
        };
        for listed in frames.take(range.first(), range.last()) {
            resolved.extend(self.resolve_listed(&listed, Ok(Answer::Handled)));
        }
        self.frames = Some(frames);
    }

    /// Resolves what waits in this frame, if anything does; returns what it was.
    pub(crate) fn resolve_frame(&mut self, frame: u64, answer: AnswerResult) -> Option<Sent> {
        let listed = self.frames.as_ref()?.get(frame)?.clone();
        self.resolve_listed(&listed, answer)
    }

    /// A message that was answered since it was listed does not wait any more; another one of its id
    /// may.
    fn resolve_listed(&mut self, listed: &Listed, answer: AnswerResult) -> Option<Sent> {
        let Entry::Occupied(entry) = self.waiting.entry(listed.id.clone()) else {
            return None;
        };
        if entry.get().number != listed.number {
            return None;
        }
        let waiting = entry.remove();
        Some(self.settle(waiting, answer))
    }

    /// Resolves a message; returns what it was, or `None` when nobody waited for it.
    ///
    /// An acknowledgment for a batch is for all that is in it. A reply to a batch is for nothing.
    pub(crate) fn resolve(&mut self, id: &MessageId, answer: AnswerResult) -> Option<Sent> {
        let waiting = self.waiting.remove(id)?;
        if !waiting.messages.is_empty() && matches!(answer, Ok(Answer::Replied(_))) {
            self.waiting.insert(id.clone(), waiting);
            return None;
        }
        Some(self.settle(waiting, answer))
    }

    fn settle(&mut self, waiting: Waiting, answer: AnswerResult) -> Sent {
        for id in &waiting.messages {
            let of_each = match &answer {
                Err(SendError::Rejected(rejection)) => {
                    Err(SendError::BatchRejected(rejection.clone()))
                }
                answer => answer.clone(),
            };
            self.resolve(id, of_each);
        }
        // A caller that stopped waiting dropped its receiver; the answer is of no use then.
        drop(waiting.answer.send(answer));
        waiting.sent
    }

    pub(crate) fn contains(&self, id: &MessageId) -> bool {
        self.waiting.contains_key(id)
    }

    /// Forgets a message whose sender waits no more; returns what it was.
    pub(crate) fn remove(&mut self, id: &MessageId) -> Option<Sent> {
        Some(self.waiting.remove(id)?.sent)
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
