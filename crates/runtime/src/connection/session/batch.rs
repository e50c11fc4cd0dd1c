//! Batches: messages that came in one frame, each of which goes its own way and is answered with the
//! others.

use std::collections::BTreeMap;
use std::sync::Arc;

use migration_ipc_protocol::extensions::{Batch, BatchOutcomes, Outcome};
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::{Envelope, MessageId};
use migration_ipc_store::planted::{PlantedBug, is_planted};
use tokio::time::Instant;

use super::Session;
use super::answering::Told;
use crate::connection::error::{Answer, Rejection, SendError};
use crate::connection::in_flight::{AnswerResult, BatchEnd};
use crate::connection::inbox::Named;
use crate::connection::reason::DisconnectReason;
use crate::dispatch::HandlerError;

/// The place of a message in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The number of the batch, among those of its connection.
    batch: u64,
    place: u32,
}

/// The batches of which a message is not answered yet.
///
/// Each has a message in the inbox, so there are no more of them than messages there. What they keep
/// of those that are answered counts as bytes of the inbox.
#[derive(Debug, Default)]
pub(super) struct OpenBatches {
    open: BTreeMap<u64, OpenBatch>,
    next: u64,
    /// Messages of batches that were read and not [taken note of](Session::take_batched).
    read: usize,
}

#[derive(Debug)]
struct OpenBatch {
    id: MessageId,
    /// In the order of the messages; what is not known yet is no success.
    outcomes: Vec<Outcome>,
    /// Invariant: how many of them are not known.
    unknown: usize,
    /// Bytes of texts in them.
    bytes: usize,
}

impl OpenBatches {
    fn open(&mut self, id: MessageId, messages: usize) -> u64 {
        let number = self.next;
        self.next += 1;
        self.read += messages;
        let batch = OpenBatch {
            id,
            outcomes: vec![Outcome::default(); messages],
            unknown: messages,
            bytes: 0,
        };
        self.open.insert(number, batch);
        number
    }
}

impl Session {
    /// Takes a batch apart, once it is sure that all of it can be read.
    pub(super) fn handle_batch(&mut self, batch: &Envelope<'_>, now: Instant) {
        let messages = match Batch::read(batch, self.json) {
            Ok(messages) => messages,
            Err(error) => {
                self.connection.telemetry().refused("malformed_batch");
                self.connection.complain(|| {
                    tracing::warn!(
                        connection = %self.connection.id(),
                        peer = %self.connection.peer(),
                        error = %error.to_string().escape_debug(),
                        "a malformed batch",
                    );
                });
                return self.refuse_malformed(batch.id.clone(), &error, Named::Id, now);
            }
        };
        let number = self.batches.open(batch.id.clone(), messages.len());
        for (place, message) in (0..).zip(&messages) {
            let envelope = &message.envelope;
            let metrics = Arc::clone(self.note_received(&envelope.message_type, message.bytes));
            let seat = Seat {
                batch: number,
                place,
            };
            self.dispatch(envelope, metrics, message.bytes, now, Some(seat));
        }
    }

    /// How many messages came in batches since the last call.
    pub(crate) fn take_batched(&mut self) -> usize {
        std::mem::take(&mut self.batches.read)
    }

    /// Notes what a message of a batch came to, and answers the batch when it was the last.
    pub(super) fn note_outcome(&mut self, seat: Seat, told: Result<Told, HandlerError>) {
        let has_codes = self.has(Capability::ErrorCodes);
        let Some(batch) = self.batches.open.get_mut(&seat.batch) else {
            return;
        };
        let outcome = match told {
            Ok(Told::Nothing) => Outcome::HANDLED,
            Ok(Told::Reply) => Outcome::REPLIED,
            Err(error) => {
                let code = has_codes.then_some(error.code);
                Outcome::failure(&error.text, code, batch.outcomes.len())
            }
        };
        let kept = outcome.error.as_ref().map_or(0, String::len);
        batch.bytes += kept;
        self.inbox.hold(kept);
        if let Some(slot) = batch.outcomes.get_mut(seat.place as usize) {
            *slot = outcome;
        }
        batch.unknown -= 1;
        if batch.unknown > 0 {
            return;
        }
        if let Some(batch) = self.batches.open.remove(&seat.batch) {
            self.inbox.release(batch.bytes);
            let mut outcomes = batch.outcomes;
            if is_planted(PlantedBug::OutcomesReversed) {
                outcomes.reverse();
            }
            let outcomes = BatchOutcomes { outcomes };
            self.say(Some(&batch.id), &outcomes);
        }
    }

    /// Takes what came of a batch that this side has sent.
    pub(super) fn handle_outcomes(
        &mut self,
        envelope: &Envelope<'_>,
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let outcomes: BatchOutcomes = envelope.payload().map_err(|error| {
            DisconnectReason::Violation(format!("outcomes that cannot be read: {error}"))
        })?;
        let outcomes = outcomes.outcomes.into_iter().map(answer_of);
        let answered = outcomes.len();
        let telemetry = self.connection.telemetry();
        let end = match &envelope.in_reply_to {
            Some(batch) => self.connection.outbound().resolve_batch(batch, outcomes),
            None => BatchEnd::Unknown,
        };
        match end {
            // Its time was over, perhaps.
            BatchEnd::Unknown => telemetry.refused("unknown_batch"),
            BatchEnd::Miscounted { messages } => {
                return Err(DisconnectReason::Violation(format!(
                    "{answered} outcomes of a batch of {messages} messages"
                )));
            }
            BatchEnd::Resolved(resolved) => {
                for sent in resolved {
                    let took = now.saturating_duration_since(sent.at);
                    telemetry.type_of(sent.message_type).answered(took);
                }
            }
        }
        Ok(())
    }
}

fn answer_of(outcome: Outcome) -> AnswerResult {
    if outcome.success {
        // A reply came before, and resolved its message.
        Ok(Answer::Handled)
    } else {
        Err(SendError::Rejected(Rejection {
            error: outcome.error.unwrap_or_default(),
            code: outcome.code,
        }))
    }
}
