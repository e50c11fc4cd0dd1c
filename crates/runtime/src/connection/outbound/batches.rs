//! Many messages in one frame, on their way to the driver.

use migration_ipc_protocol::{MessageId, message_types};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Outbound, Refused, Tracking};
use crate::connection::in_flight::{AnswerResult, BatchEnd, Sent};
use crate::connection::lane_kind::LaneKind;
use crate::connection::reason::DisconnectReason;

/// A batch as it goes into its lane.
#[derive(Debug)]
pub(crate) struct BatchFrame<'a> {
    pub(crate) frame: &'a [u8],
    pub(crate) id: &'a MessageId,
    /// The ids and types of its messages, in order.
    pub(crate) messages: &'a [(MessageId, &'static str)],
    pub(crate) tracking: Tracking,
}

impl Outbound {
    /// Takes a whole batch into the normal lane, or nothing of it. Each of its messages waits for its
    /// answer; so many more may wait at once as a batch has messages, so that it always finds room.
    pub(crate) fn offer_batch(
        &self,
        batch: &BatchFrame<'_>,
    ) -> Result<Vec<oneshot::Receiver<AnswerResult>>, Refused> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(Refused::Closed(reason.clone()));
        }
        let lane = LaneKind::Normal;
        let limit = self.config.limits.in_flight;
        let mut ids = batch.messages.iter().map(|(id, _)| id).chain([batch.id]);
        let full = self.is_full(&state, lane) || !ids.all(|id| state.in_flight.has_room(id, limit));
        if full {
            state.awaited.insert(lane);
            return Err(Refused::Full);
        }
        let sent = |message_type, place| Sent {
            message_type,
            at: Instant::now(),
            place,
            patience: batch.tracking.patience(),
        };
        let place = state.lanes.next_place(lane);
        let answers = batch
            .messages
            .iter()
            .map(|(id, message_type)| {
                let sent = sent(message_type, place);
                state.in_flight.insert_unlisted(id.clone(), sent)
            })
            .collect();
        let ids = batch.messages.iter().map(|(id, _)| id.clone()).collect();
        let waits = sent(message_types::BATCH, place);
        state.in_flight.insert_batch(batch.id.clone(), waits, ids);
        state.lanes.push_batch(batch.frame, batch.messages.len());
        self.count(&mut state);
        self.note_full(&mut state, lane);
        self.signal(state);
        Ok(answers)
    }

    /// As [`offer_batch`](Self::offer_batch), waiting for room.
    ///
    /// Cancel safe: the batch is taken in the last step, whole, or not at all.
    pub(crate) async fn accept_batch(
        &self,
        batch: &BatchFrame<'_>,
    ) -> Result<Vec<oneshot::Receiver<AnswerResult>>, DisconnectReason> {
        loop {
            let mut room = std::pin::pin!(self.room[LaneKind::Normal.index()].notified());
            room.as_mut().enable();
            match self.offer_batch(batch) {
                Ok(answers) => return Ok(answers),
                Err(Refused::Closed(reason)) => return Err(reason),
                Err(Refused::Full) => room.await,
            }
        }
    }

    /// Resolves the messages of a batch.
    pub(crate) fn resolve_batch(
        &self,
        id: &MessageId,
        outcomes: impl ExactSizeIterator<Item = AnswerResult>,
    ) -> BatchEnd {
        let mut state = self.lock();
        let end = state.in_flight.resolve_batch(id, outcomes);
        self.wake_senders(state);
        end
    }
}
