//! Sending: a frame is encoded by its sender, in a buffer of its thread, and copied into a lane.

use std::cell::Cell;
use std::sync::Arc;

use migration_ipc_protocol::hello::{Capability, uses_credit};
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use migration_ipc_protocol::messages::UserId;
use migration_ipc_protocol::{
    DeliveryHead, EncodeError, EnvelopeHead, IpcMessage, MessageId, MessagePayload,
    MessageSerializer, Priority, RawValue, Timestamp,
};
use tokio::sync::oneshot;

use super::claims::respell;
use super::compression::{Packing, pack};
use super::error::{Answer, SendError};
use super::handle::{IpcConnection, Side};
use super::in_flight::AnswerResult;
use super::large::{LargeBody, LargeSend};
use super::options::MessageOptions;
use super::outbound::{Manner, Refused, Tracking};
use super::reason::DisconnectReason;
use super::session::EncodedAnnouncement;
use crate::factory;

/// A scratch buffer that grew beyond this is given back.
const SCRATCH_CAPACITY: usize = 64 * 1024;

/// A message that exists as JSON already, with the envelope that it is sent in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel<'a> {
    pub(crate) id: &'a MessageId,
    pub(crate) message_type: &'a str,
    pub(crate) timestamp: Timestamp,
    pub(crate) payload: &'a RawValue,
    /// Its place in the order of its outbox; written only if that was negotiated.
    pub(crate) delivery: Option<DeliveryHead<'a>>,
    pub(crate) priority: Priority,
}

impl IpcConnection {
    /// Sends a message, waiting for room in the outbound lane.
    ///
    /// `Ok` means accepted: it will be written in its turn unless the connection ends before.
    /// To know what became of it, use [`send_acknowledged`](Self::send_acknowledged): a peer that
    /// negotiated [`NoAck`](Capability::NoAck) is told that nobody waits, and answers this one only
    /// with a reply or a failure.
    ///
    /// Cancel safe: dropping the future leaves the message wholly accepted or wholly absent.
    ///
    /// # Errors
    /// [`SendError::Encode`] when the message cannot be encoded (over 1 MiB, for example) and
    /// [`SendError::Closed`] when the connection has ended; [`SendError::NotEncrypted`] where
    /// [`SensitivePolicy`](crate::SensitivePolicy) holds the message back. Nothing was written in any
    /// of these cases. A sensitive message waits until it is known whether the connection is
    /// encrypted.
    pub fn send<P: MessagePayload>(
        &self,
        payload: P,
    ) -> impl Future<Output = Result<MessageId, SendError>> {
        // Each `async fn` between a caller and the one that does the work would take one more copy of
        // the payload.
        self.send_with(payload, MessageOptions::new())
    }

    /// As [`send`](Self::send), and says how. Cancel safe as that.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_with<P: MessagePayload>(
        &self,
        payload: P,
        options: MessageOptions,
    ) -> Result<MessageId, SendError> {
        let posted = self.post(payload, Tracking::None, options).await;
        posted.map(|(id, _)| id)
    }

    /// Sends a message if there is room for it now.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::Full`].
    pub fn try_send<P: MessagePayload>(&self, mut payload: P) -> Result<MessageId, SendError> {
        self.try_send_ref(&mut payload)
    }

    /// As [`try_send`](Self::try_send); the payload's user id may be respelled.
    pub(crate) fn try_send_ref<P: MessagePayload>(
        &self,
        payload: &mut P,
    ) -> Result<MessageId, SendError> {
        self.sensitive_types().learn::<P>();
        self.spell_user(payload.user_id_mut());
        with_scratch(|frame| {
            let id = self.encode(frame, payload, Tracking::None)?;
            let manner = Manner {
                tracking: Tracking::None,
                priority: self.priority_of::<P>(MessageOptions::new()),
            };
            pack(frame, |packing| {
                self.try_offer(P::TYPE, &id, packing, manner)
            })?;
            Ok(id)
        })
    }

    /// Sends a message and waits for the peer's answer: its handler's end, its reply, or its
    /// refusal. Once accepted it resolves after
    /// [`ConnectionTimeouts::answer`](crate::ConnectionTimeouts::answer), and an eighth of it, at
    /// the latest; waiting for room has no limit but the connection's.
    ///
    /// A peer that is not a new one (it did not negotiate `inReplyTo`) sends replies without
    /// saying what they answer; they arrive as messages of their own, and this resolves as
    /// [`SendError::Unanswered`]. So does a type that the peer registered as silent.
    ///
    /// Cancel safe as [`send`](Self::send); once accepted, the message is sent and its answer
    /// ignored.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`SendError::Rejected`] when the peer refused the message;
    /// [`SendError::Unanswered`] and [`SendError::Lost`] when it is unknown what became of it.
    pub fn send_acknowledged<P: MessagePayload>(
        &self,
        payload: P,
    ) -> impl Future<Output = Result<Answer, SendError>> {
        self.send_acknowledged_with(payload, MessageOptions::new())
    }

    /// As [`send_acknowledged`](Self::send_acknowledged), and says how. Cancel safe as that.
    ///
    /// # Errors
    /// As [`send_acknowledged`](Self::send_acknowledged).
    pub async fn send_acknowledged_with<P: MessagePayload>(
        &self,
        payload: P,
        options: MessageOptions,
    ) -> Result<Answer, SendError> {
        let (_, answer) = self.post(payload, Tracking::Answer, options).await?;
        match answer {
            Some(answer) => answer
                .await
                .unwrap_or(Err(SendError::Lost(DisconnectReason::Aborted))),
            None => Err(SendError::Unanswered),
        }
    }

    /// Sends a message that was made before, for example by [`MessageFactory`](crate::MessageFactory)
    /// or by another process, under its own id and time. What it replied to, on whatever connection
    /// that was, is not sent. Cancel safe as [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_message(&self, mut message: IpcMessage) -> Result<(), SendError> {
        tokio::task::coop::consume_budget().await;
        message.in_reply_to = None;
        self.admit_named(&message.message_type).await?;
        let message_type = self.telemetry().known_type(&message.message_type);
        let manner = Manner {
            tracking: Tracking::None,
            priority: Priority::Normal,
        };
        let offered = with_scratch(|frame| {
            MessageSerializer::encode_message(frame, &message)?;
            self.offer(message_type, &message.id, frame, manner)
        })?;
        self.finish_post(message_type, &message.id, manner, offered)
            .await
            .map(drop)
    }

    async fn post<P: MessagePayload>(
        &self,
        mut payload: P,
        tracking: Tracking,
        options: MessageOptions,
    ) -> Result<(MessageId, Option<oneshot::Receiver<AnswerResult>>), SendError> {
        // A sender that never waits would keep the driver, on the same worker, from writing.
        tokio::task::coop::consume_budget().await;
        self.admit::<P>().await?;
        self.spell_user(payload.user_id_mut());
        let manner = Manner {
            tracking,
            priority: self.priority_of::<P>(options),
        };
        let (id, offered) = with_scratch(|frame| {
            let id = self.encode(frame, &payload, tracking)?;
            let offered = self.offer(P::TYPE, &id, frame, manner)?;
            Ok::<_, SendError>((id, offered))
        })?;
        drop(payload);
        let answer = self.finish_post(P::TYPE, &id, manner, offered).await?;
        Ok((id, answer))
    }

    /// Appends a message with a fresh id and the present time as one whole frame, for this peer.
    fn encode<P: MessagePayload>(
        &self,
        frame: &mut Vec<u8>,
        payload: &P,
        tracking: Tracking,
    ) -> Result<MessageId, EncodeError> {
        let (id, timestamp) = factory::stamp(self.config().clock);
        let head = EnvelopeHead {
            wants_acknowledgment: tracking != Tracking::None || !self.may_decline(P::TYPE),
            ..EnvelopeHead::new(&id, P::TYPE, timestamp)
        };
        MessageSerializer::encode(frame, head, payload)?;
        Ok(id)
    }

    /// Whether the acknowledgment of a message that nobody waits for can be declined. What runs the
    /// connection is not acknowledged anyway.
    fn may_decline(&self, message_type: &str) -> bool {
        self.has(Capability::NoAck) && uses_credit(message_type, false)
    }

    /// How urgent a message is. What its type says is for new peers: a plain one gets everything in
    /// the order in which it was sent, as ever, unless the sender of a message asks for it.
    pub(super) fn priority_of<P: MessagePayload>(&self, options: MessageOptions) -> Priority {
        match options.priority {
            Some(priority) => priority,
            None if self.is_new() => P::PRIORITY,
            None => Priority::Normal,
        }
    }

    /// Offers a frame; one that finds no room is copied to wait for it.
    pub(super) fn offer(
        &self,
        message_type: &'static str,
        id: &MessageId,
        frame: &[u8],
        manner: Manner,
    ) -> Result<Offered, SendError> {
        self.admit_now(message_type)?;
        let body = frame.len().saturating_sub(LENGTH_PREFIX);
        if manner.priority == Priority::Bulk && self.gains_from_pieces(body) {
            let body = LargeBody::of_frame(id.clone(), message_type, frame.to_vec());
            return Ok(Offered::InPieces(self.send_body(Arc::new(body))));
        }
        pack(frame, |packing| {
            let wire = packing.frame_for(self);
            match self.outbound().offer(wire, id, message_type, manner) {
                Ok(answer) => {
                    self.note_sent(message_type, frame.len(), wire.len());
                    Ok(Offered::Taken(answer))
                }
                Err(Refused::Full) => Ok(Offered::Waits {
                    wire: wire.into(),
                    plain: frame.len(),
                }),
                Err(Refused::Closed(reason)) => Err(SendError::Closed(reason)),
            }
        })
    }

    pub(super) async fn finish_post(
        &self,
        message_type: &'static str,
        id: &MessageId,
        manner: Manner,
        offered: Offered,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, SendError> {
        // What seldom happens is boxed, so that the future of most messages has no room for it.
        match offered {
            Offered::Taken(answer) => Ok(answer),
            Offered::InPieces(sending) if manner.tracking == Tracking::None => {
                Box::pin(sending.accepted()).await.map(|()| None)
            }
            Offered::InPieces(sending) => {
                let (known, answer) = oneshot::channel();
                drop(known.send(Box::pin(sending).await));
                Ok(Some(answer))
            }
            Offered::Waits { wire, plain } => {
                let outbound = self.outbound();
                let answer = Box::pin(outbound.accept(&wire, id, message_type, manner))
                    .await
                    .map_err(SendError::Closed)?;
                self.note_sent(message_type, plain, wire.len());
                Ok(answer)
            }
        }
    }

    /// Takes a frame that was encoded before if there is room for it now.
    pub(crate) fn try_send_frame<P: MessagePayload>(
        &self,
        id: &MessageId,
        frame: &mut Packing<'_>,
    ) -> Result<(), SendError> {
        let manner = Manner {
            tracking: Tracking::None,
            priority: self.priority_of::<P>(MessageOptions::new()),
        };
        self.try_offer(P::TYPE, id, frame, manner)
    }

    fn try_offer(
        &self,
        message_type: &'static str,
        id: &MessageId,
        frame: &mut Packing<'_>,
        manner: Manner,
    ) -> Result<(), SendError> {
        self.admit_now(message_type)?;
        let plain = frame.plain().len();
        let wire = frame.frame_for(self);
        match self.outbound().offer(wire, id, message_type, manner) {
            Ok(_) => {
                self.note_sent(message_type, plain, wire.len());
                Ok(())
            }
            Err(Refused::Full) => Err(SendError::Full),
            Err(Refused::Closed(reason)) => Err(SendError::Closed(reason)),
        }
    }

    /// Puts what the connection itself says into the control lane.
    pub(crate) fn push_control<P: MessagePayload>(
        &self,
        head: EnvelopeHead<'_>,
        payload: &P,
    ) -> Result<(), EncodeError> {
        with_scratch(|frame| {
            MessageSerializer::encode(frame, head, payload)?;
            self.push_control_frame(P::TYPE, frame);
            Ok(())
        })
    }

    /// Puts a frame that was encoded before into the control lane.
    pub(crate) fn push_control_frame(&self, message_type: &'static str, frame: &[u8]) {
        pack(frame, |packing| {
            let wire = packing.frame_for(self);
            self.outbound().push_control(wire);
            self.note_sent(message_type, frame.len(), wire.len());
        });
    }

    /// The same of the client's announcement, whose answer is awaited already.
    pub(crate) fn push_announcement(&self, announcement: &EncodedAnnouncement) {
        let frame = &announcement.frame;
        self.outbound().push_tracked(frame, &announcement.id);
        self.telemetry()
            .sent(announcement.message_type, frame.len());
    }

    /// The same of the last frame in the clear.
    pub(crate) fn push_last_clear_frame(&self, message_type: &'static str, frame: &[u8]) {
        self.outbound().push_last_clear(frame);
        self.telemetry().sent(message_type, frame.len());
    }

    /// To an announced agent its own account is written as it announced it: deployed agents
    /// compare the text.
    pub(crate) fn spell_user(&self, user: Option<&mut UserId>) {
        let Some(user) = user else { return };
        if self.side() == Side::Client || user.as_str() != self.account().as_str() {
            return;
        }
        if let Some(announcement) = self.announcement()
            && !announcement.user_id.is_empty()
        {
            *user = announcement.user_id;
        }
    }

    /// As [`spell_user`](Self::spell_user), in a payload that was kept as JSON. `None` when it is
    /// right as it is.
    pub(crate) fn spell_user_in(&self, payload: &RawValue) -> Option<Box<RawValue>> {
        if self.side() == Side::Client {
            return None;
        }
        let spelling = self.announcement()?.user_id;
        let account = self.account().as_str();
        if spelling.is_empty() || spelling.as_str() == account {
            return None;
        }
        respell(payload, account, spelling.as_str())
    }

    /// Sends a message that was kept as JSON, waiting for room, and tells its answer. Cancel safe as
    /// [`send`](Self::send).
    ///
    /// An agent that is a plain one never answers: to it the message counts as unanswered once it
    /// is written. A numbered message is always answered, so it is never given up for want of time;
    /// another one not before it is written.
    pub(crate) async fn post_parcel(
        &self,
        parcel: Parcel<'_>,
    ) -> Result<oneshot::Receiver<AnswerResult>, SendError> {
        tokio::task::coop::consume_budget().await;
        match self.side() {
            Side::Server => self.admit_named(parcel.message_type).await?,
            // What is behind it in the client's queues does not wait for it.
            Side::Client => self.admit_now(parcel.message_type)?,
        }
        let message_type = self.telemetry().known_type(parcel.message_type);
        let delivery = parcel.delivery.filter(|_| self.has(Capability::Durable));
        let is_plain_agent = self.side() == Side::Server && !self.is_new();
        let tracking = if is_plain_agent {
            Tracking::Written
        } else if delivery.is_some() {
            Tracking::SureAnswer
        } else {
            Tracking::AnswerOnceWritten
        };
        let manner = Manner {
            tracking,
            priority: if self.is_new() {
                parcel.priority
            } else {
                Priority::Normal
            },
        };
        let head = EnvelopeHead {
            delivery,
            ..EnvelopeHead::new(parcel.id, parcel.message_type, parcel.timestamp)
        };
        let offered = with_scratch(|frame| {
            MessageSerializer::encode(frame, head, parcel.payload)?;
            self.offer(message_type, parcel.id, frame, manner)
        })?;
        let answer = self
            .finish_post(message_type, parcel.id, manner, offered)
            .await?;
        answer.ok_or(SendError::Unanswered)
    }
}

pub(super) enum Offered {
    Taken(Option<oneshot::Receiver<AnswerResult>>),
    /// It is long and not urgent: others pass between its pieces.
    InPieces(LargeSend),
    Waits {
        /// The frame as it goes out.
        wire: Box<[u8]>,
        /// Its length without compression.
        plain: usize,
    },
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends a buffer to encode into, so that sending allocates nothing of its own. The buffer is
/// taken out meanwhile: a payload whose `Serialize` sends a message itself finds another one.
pub(crate) fn with_scratch<R>(encode: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = SCRATCH.take();
    let result = encode(&mut buffer);
    buffer.clear();
    buffer.shrink_to(SCRATCH_CAPACITY);
    SCRATCH.set(buffer);
    result
}
