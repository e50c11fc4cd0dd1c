//! What the peer says of answers: deadlines, cancellations, items and how many of them it takes.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;

use migration_ipc_protocol::extensions::{Cancel, ItemGrant, RequestHead};
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::MAX_ITEM_GRANT;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{Envelope, IpcMessage, MessageId, PresumedEnvelope, message_types};
use tokio::time::Instant;

use super::Session;
use super::answering::LongReply;
use crate::connection::asking::{BadItem, Item, ItemFate};
use crate::connection::error::Answer;
use crate::connection::inbox::Job;
use crate::connection::reason::DisconnectReason;
use crate::dispatch::{Asked, GivenUp, HandlerError};
use crate::store::Conclusion;

/// The peer's requests that are not answered yet: messages with a deadline, or that take items.
///
/// Bounded by the inbox, where each of them is.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// The keys are the peer's choice, so the hashes must not be.
    by_id: HashMap<MessageId, (u64, Arc<Asked>), RandomState>,
    /// They are numbered, so that no order depends on a hash.
    next_number: u64,
    /// No deadline is earlier. It may be that of a request that is answered, which costs one look;
    /// to keep it exact would cost each request more than that.
    next_deadline: Option<Instant>,
    /// Whether one that no handler has begun may have been given up.
    to_sweep: bool,
}

impl Requests {
    pub(super) fn contains(&self, id: &MessageId) -> bool {
        self.by_id.contains_key(id)
    }

    pub(super) fn insert(&mut self, id: MessageId, asked: Arc<Asked>) {
        if let Some(deadline) = asked.deadline() {
            let next = self
                .next_deadline
                .map_or(deadline, |next| next.min(deadline));
            self.next_deadline = Some(next);
        }
        self.by_id.insert(id, (self.next_number, asked));
        self.next_number += 1;
    }

    pub(super) fn remove(&mut self, id: &MessageId) {
        self.by_id.remove(id);
        if self.by_id.is_empty() {
            self.next_deadline = None;
            // An idle connection gives back what a burst made it allocate.
            self.by_id.shrink_to(8);
        }
    }

    /// When [`expire`](Self::expire) has something to do, at the earliest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Gives up those whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.next_deadline.is_none_or(|next| next > now) {
            return;
        }
        self.next_deadline = None;
        let mut due = Vec::new();
        for (number, asked) in self.by_id.values() {
            match asked.deadline() {
                Some(deadline) if deadline <= now => due.push((deadline, *number, asked)),
                Some(deadline) => {
                    let next = self
                        .next_deadline
                        .map_or(deadline, |next| next.min(deadline));
                    self.next_deadline = Some(next);
                }
                None => {}
            }
        }
        self.to_sweep |= !due.is_empty();
        due.sort_unstable_by_key(|(deadline, number, _)| (*deadline, *number));
        for (_, _, asked) in due {
            asked.give_up(GivenUp::Deadline);
        }
    }

    fn cancel(&mut self, id: &MessageId) {
        if let Some((_, asked)) = self.by_id.get(id) {
            asked.give_up(GivenUp::Cancelled);
            self.to_sweep = true;
        }
    }
}

impl Session {
    // --- requests of the peer --------------------------------------------------------------------

    /// What a message says of its answer, if its sender negotiated that.
    pub(super) fn request_head(
        &self,
        envelope: &Envelope<'_>,
    ) -> Result<RequestHead, HandlerError> {
        if !self.has(Capability::Requests) {
            return Ok(RequestHead::NONE);
        }
        let malformed = |error: &dyn std::fmt::Display| {
            let text = format!("Malformed message: {error}");
            Err(self.refusal(text, ErrorCode::Malformed, "bad_request"))
        };
        let head = match (envelope.request(), envelope.item()) {
            (Ok(head), Ok(None)) => head,
            (Err(error), _) => return malformed(&error),
            (_, Err(error)) => return malformed(&error),
            (_, Ok(Some(_))) => return malformed(&"an item that answers nothing"),
        };
        if head != RequestHead::NONE && self.requests.contains(&envelope.id) {
            return malformed(&"the id of a request that is not answered yet");
        }
        Ok(head)
    }

    /// The same of a message in the usual form; `None` when it has to go the long way.
    pub(super) fn presumed_head(&self, envelope: &PresumedEnvelope<'_>) -> Option<RequestHead> {
        let is_usual = envelope.request == RequestHead::NONE && envelope.item.is_none();
        if is_usual || !self.has(Capability::Requests) {
            return Some(RequestHead::NONE);
        }
        let is_fresh = envelope.item.is_none() && !self.requests.contains(&envelope.id);
        is_fresh.then_some(envelope.request)
    }

    pub(super) fn handle_cancel(&mut self, envelope: &Envelope<'_>) {
        match envelope.payload::<Cancel>() {
            Ok(cancel) => self.requests.cancel(&cancel.request_id),
            Err(_) => self.connection.telemetry().refused("bad_cancel"),
        }
    }

    pub(super) fn handle_item_grant(&self, envelope: &Envelope<'_>) {
        match envelope.payload::<ItemGrant>() {
            Ok(grant) if (1..=MAX_ITEM_GRANT).contains(&grant.items) => {
                if let Some((_, asked)) = self.requests.by_id.get(&grant.request_id) {
                    asked.grant(grant.items);
                }
            }
            Ok(_) | Err(_) => self.connection.telemetry().refused("bad_items"),
        }
    }

    /// Answers what no handler has begun and nobody waits for any more. Whether it was anything.
    pub(super) fn answer_given_up(&mut self) -> bool {
        if !std::mem::take(&mut self.requests.to_sweep) {
            return false;
        }
        let given_up = self.inbox.take_given_up();
        let any = !given_up.is_empty();
        for (job, error) in given_up {
            self.refuse(job, error);
        }
        any
    }

    /// Answers a request, behind its items; one whose reply goes out in pieces is not answered yet.
    pub(super) fn answer_request(
        &mut self,
        job: &Job,
        asked: &Asked,
        conclusion: Conclusion,
    ) -> Option<Box<LongReply>> {
        if asked.grants().is_none() {
            let in_pieces = self.tell(job, conclusion);
            if in_pieces.is_none() {
                self.requests.remove(&job.id);
            }
            return in_pieces;
        }
        self.requests.remove(&job.id);
        self.connection.outbound().begin_answer(asked);
        let in_pieces = self.tell(job, conclusion);
        self.connection.outbound().end_answer();
        in_pieces
    }

    // --- answers to requests of our own ----------------------------------------------------------

    /// Takes an answer in the usual form, or an item; `false` when it has to go the long way, and
    /// nothing has happened then.
    pub(super) fn take_presumed_answer(
        &self,
        envelope: &PresumedEnvelope<'_>,
        original: &MessageId,
        size: usize,
        now: Instant,
    ) -> bool {
        let is_usual = self.has(Capability::InReplyTo)
            && self.announcement_sent.as_ref() != Some(original)
            && !message_types::is_control(envelope.message_type);
        if !is_usual {
            return false;
        }
        // That the payload is JSON proves the form; whether it fits its type is for who asked.
        let Some(message) = envelope.to_message() else {
            return false;
        };
        let taken = match envelope.item {
            Some(number) if self.has(Capability::Requests) => {
                self.take_item(original, number, message, size).is_ok()
            }
            Some(_) | None => self.resolve(original, Ok(Answer::Replied(message)), now),
        };
        if taken {
            self.note_received(envelope.message_type, size);
        }
        taken
    }

    /// Takes an item of a streaming reply. `false` when the message is none.
    pub(super) fn handle_item(
        &self,
        envelope: &Envelope<'_>,
        size: usize,
    ) -> Result<bool, DisconnectReason> {
        let Some(original) = &envelope.in_reply_to else {
            return Ok(false);
        };
        if !self.has(Capability::Requests) {
            return Ok(false);
        }
        let violation =
            |text: &dyn std::fmt::Display| DisconnectReason::Violation(text.to_string());
        match envelope.item() {
            Ok(None) => Ok(false),
            Ok(Some(number)) => self
                .take_item(original, number, envelope.to_message(), size)
                .map(|()| true)
                .map_err(|BadItem(text)| violation(&text)),
            Err(error) => Err(violation(&error)),
        }
    }

    fn take_item(
        &self,
        original: &MessageId,
        number: u64,
        message: IpcMessage,
        size: usize,
    ) -> Result<(), BadItem> {
        let item = || Item::new(&self.connection, message, size);
        let outbound = self.connection.outbound();
        if outbound.take_item(original, number, item)? == ItemFate::Dropped {
            self.connection.telemetry().late_item();
        }
        Ok(())
    }

    /// Drops the answer to a request that was given up. `false` when it is no such answer.
    pub(super) fn drop_late(&self, original: &MessageId) -> bool {
        let is_late = self.connection.outbound().take_late(original);
        if is_late {
            self.connection.telemetry().late_answer();
        }
        is_late
    }
}
