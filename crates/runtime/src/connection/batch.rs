//! Sending many messages in one frame.

use migration_ipc_protocol::extensions::{BatchError, BatchWriter};
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::MAX_BODY;
use migration_ipc_protocol::{
    EncodeError, Envelope, EnvelopeHead, IpcMessage, MessageId, MessagePayload, MessageType,
    Priority, RawValue, message_types,
};
use tokio::sync::oneshot;

use super::compression::pack;
use super::error::{Answer, SendError};
use super::handle::{IpcConnection, Side};
use super::in_flight::AnswerResult;
use super::outbound::{BatchFrame, Manner, Tracking};
use super::reason::DisconnectReason;
use crate::clock::Clock;
use crate::factory;
use crate::telemetry::Telemetry;

/// Messages that are sent, and answered, together: see [`IpcConnection::send_batch`].
///
/// It holds at most [`MAX_BATCH`](crate::limits::MAX_BATCH) messages, and no more bytes and values
/// than a frame. A message that has no room is an error that leaves the batch as it was, so a caller
/// sends what it has and begins another one. A batch is no transaction: each message is handled,
/// or refused, by itself. The `Debug` shows how many messages it has, and nothing of them.
///
/// ```
/// use migration_ipc::Batch;
/// use migration_ipc::messages::UserAction;
///
/// let mut batch = Batch::new();
/// batch.push(UserAction::new("", "opened"))?;
/// batch.push(UserAction::new("", "closed"))?;
/// assert_eq!(batch.len(), 2);
/// # Ok::<(), migration_ipc::BatchError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Batch {
    writer: BatchWriter,
    /// Invariant: those in the writer.
    letters: Vec<Letter>,
}

#[derive(Debug, Clone)]
struct Letter {
    id: MessageId,
    message_type: MessageType,
    /// The label of its type where that is known at compile time.
    label: Option<&'static str>,
    /// Whether its type is known to be sensitive.
    sensitive: bool,
    names: Names,
}

impl Letter {
    /// Waits until it may go out.
    async fn admit(&self, connection: &IpcConnection) -> Result<(), SendError> {
        if self.sensitive {
            connection.admit_sensitive().await
        } else {
            connection.admit_named(&self.message_type).await
        }
    }
}

/// Whether a message names the user that it is about in a way that is this side's to spell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    AUser,
    /// Nobody, or whomever its maker wrote down.
    Nobody,
}

impl Batch {
    /// A batch without messages.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many messages it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.letters.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// Adds a message, under a fresh id and with the present time; returns the id.
    ///
    /// # Errors
    /// [`BatchError`] when it has no room, must not be in a batch, or cannot be encoded; the batch
    /// is as it was then.
    pub fn push<P: MessagePayload>(&mut self, mut payload: P) -> Result<MessageId, BatchError> {
        let (id, timestamp) = factory::stamp(Clock::default());
        let head = EnvelopeHead::new(&id, P::TYPE, timestamp);
        self.writer.push(head, Some(&payload))?;
        self.letters.push(Letter {
            id: id.clone(),
            message_type: MessageType::of::<P>(),
            label: Some(P::TYPE),
            sensitive: P::SENSITIVE,
            names: match payload.user_id_mut() {
                Some(_) => Names::AUser,
                None => Names::Nobody,
            },
        });
        Ok(id)
    }

    /// Adds a message that was made before, under its own id and time. What it replied to is not
    /// sent.
    ///
    /// # Errors
    /// As [`push`](Self::push), and [`BatchError::SameId`].
    pub fn push_message(&mut self, message: IpcMessage) -> Result<(), BatchError> {
        let IpcMessage {
            id,
            message_type,
            timestamp,
            payload,
            in_reply_to: _,
        } = message;
        if self.letters.iter().any(|letter| letter.id == id) {
            return Err(BatchError::SameId);
        }
        let head = EnvelopeHead::new(&id, &message_type, timestamp);
        self.writer.push(head, payload.as_deref())?;
        self.letters.push(Letter {
            id,
            message_type,
            label: None,
            sensitive: false,
            names: Names::Nobody,
        });
        Ok(())
    }

    /// The ids of the messages and the labels of their types, in order.
    fn messages(&self, telemetry: &Telemetry) -> Vec<(MessageId, &'static str)> {
        let label = |letter: &Letter| match letter.label {
            Some(label) => label,
            None => telemetry.known_type(&letter.message_type),
        };
        let named = |letter: &Letter| (letter.id.clone(), label(letter));
        self.letters.iter().map(named).collect()
    }

    /// The messages with users spelled as the peer of this connection spells them; `None` when
    /// they are right as they are.
    fn spelled_for(&self, connection: &IpcConnection) -> Result<Option<BatchWriter>, SendError> {
        let named = self
            .letters
            .iter()
            .any(|letter| letter.names == Names::AUser);
        if !named || connection.side() == Side::Client {
            return Ok(None);
        }
        let (mut spelled, mut changed) = (BatchWriter::new(), false);
        for (letter, text) in self.letters.iter().zip(self.writer.messages()) {
            let Ok(message) = Envelope::parse(text.as_bytes()) else {
                // What this side wrote it can read.
                return Ok(None);
            };
            let payload = match (letter.names, message.payload) {
                (Names::AUser, Some(payload)) => connection.spell_user_in(payload),
                (Names::AUser | Names::Nobody, _) => None,
            };
            changed |= payload.is_some();
            let head = EnvelopeHead::new(&message.id, &message.message_type, message.timestamp);
            spelled
                .push::<RawValue>(head, payload.as_deref().or(message.payload))
                .map_err(|error| match error {
                    BatchError::Encode(error) => SendError::from(error),
                    BatchError::TooMany
                    | BatchError::NoRoom { .. }
                    | BatchError::Alone
                    | BatchError::Forbidden(_)
                    | BatchError::SameId => SendError::from(EncodeError::TooLarge {
                        size: MAX_BODY + 1,
                        limit: MAX_BODY,
                    }),
                })?;
        }
        Ok(changed.then_some(spelled))
    }
}

/// A message of a batch that was accepted, or not any more.
type Posted = Result<oneshot::Receiver<AnswerResult>, SendError>;

impl IpcConnection {
    /// Sends many messages and waits for what becomes of each, in their order: what
    /// [`send_acknowledged`](Self::send_acknowledged) would say of it.
    ///
    /// To a peer that negotiated `batch` they go out in one frame and are answered with one
    /// acknowledgment, once the last of them is done; types that the peer registered as silent are
    /// answered too. To any other peer they go out one after the other. An agent that is a plain one
    /// answers nothing: to it they resolve as [`SendError::Unanswered`] once they are written.
    ///
    /// Cancel safe: in one frame, the messages are accepted together or not at all; one after the
    /// other, those behind the last that was accepted are not.
    ///
    /// # Errors
    /// [`SendError::Encode`] and [`SendError::Closed`] when nothing of the batch was accepted. What
    /// happens to a message alone, also that the connection ended before its turn, is in its own
    /// result; [`SendError::BatchRejected`] is in all of them.
    pub async fn send_batch(
        &self,
        batch: Batch,
    ) -> Result<Vec<Result<Answer, SendError>>, SendError> {
        // A sender that never waits would keep the driver, on the same worker, from writing.
        tokio::task::coop::consume_budget().await;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        for letter in &batch.letters {
            letter.admit(self).await?;
        }
        let messages = batch.messages(self.telemetry());
        let spelled = batch.spelled_for(self)?;
        let writer = spelled.as_ref().unwrap_or(&batch.writer);
        let posted: Vec<Posted> = if self.has(Capability::Batch) {
            let posted = self.post_batch(writer, &messages, Tracking::Answer).await?;
            posted.into_iter().map(Ok).collect()
        } else {
            self.post_each(writer, &messages).await?
        };
        drop((spelled, batch));
        let mut answers = Vec::with_capacity(posted.len());
        for message in posted {
            answers.push(match message {
                Ok(answer) => answer
                    .await
                    .unwrap_or(Err(SendError::Lost(DisconnectReason::Aborted))),
                Err(error) => Err(error),
            });
        }
        Ok(answers)
    }

    /// Sends messages in one frame, waiting for room, and tells the answer to each. For peers that
    /// negotiated batches. Cancel safe: all are accepted in the last step, or none.
    pub(crate) async fn post_batch(
        &self,
        writer: &BatchWriter,
        messages: &[(MessageId, &'static str)],
        tracking: Tracking,
    ) -> Result<Vec<oneshot::Receiver<AnswerResult>>, SendError> {
        let (id, timestamp) = factory::stamp(self.config().clock);
        let mut frame = Vec::new();
        writer.encode(&mut frame, &id, timestamp)?;
        let wire = pack(&frame, |packing| packing.frame_for(self).to_vec());
        let answers = self
            .outbound()
            .accept_batch(&BatchFrame {
                frame: &wire,
                id: &id,
                messages,
                tracking,
            })
            .await
            .map_err(SendError::Closed)?;
        self.note_sent(message_types::BATCH, frame.len(), wire.len());
        for ((_, label), text) in messages.iter().zip(writer.messages()) {
            self.telemetry().sent(label, text.len());
        }
        Ok(answers)
    }

    /// Sends messages in frames of their own.
    async fn post_each(
        &self,
        writer: &BatchWriter,
        messages: &[(MessageId, &'static str)],
    ) -> Result<Vec<Posted>, SendError> {
        let tracking = if self.side() == Side::Server && !self.is_new() {
            Tracking::Written
        } else {
            Tracking::Answer
        };
        let manner = Manner {
            tracking,
            priority: Priority::Normal,
        };
        let mut posted: Vec<Posted> = Vec::with_capacity(messages.len());
        for ((id, label), text) in messages.iter().zip(writer.messages()) {
            match self.post_one(id, label, &frame_of(text), manner).await {
                Ok(answer) => posted.push(answer.ok_or(SendError::Unanswered)),
                Err(error) if posted.is_empty() => return Err(error),
                Err(error) => posted.push(Err(error)),
            }
        }
        Ok(posted)
    }

    async fn post_one(
        &self,
        id: &MessageId,
        label: &'static str,
        frame: &[u8],
        manner: Manner,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, SendError> {
        let offered = self.offer(label, id, frame, manner)?;
        self.finish_post(label, id, manner, offered).await
    }
}

/// An envelope in a frame of its own.
fn frame_of(envelope: &str) -> Vec<u8> {
    // It was written as a frame once, so it has the length of one.
    let length = i32::try_from(envelope.len()).unwrap_or(i32::MAX);
    [&length.to_le_bytes(), envelope.as_bytes()].concat()
}
