//! From a message to its handler.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use migration_ipc_protocol::extensions::RequestHead;
use migration_ipc_protocol::hello::{Capability, uses_credit};
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{
    Announcement, DeliveryHead, Envelope, IpcMessage, MessageId, MessageType, PayloadError,
    PresumedEnvelope, Sender, Timestamp, message_types, no_handler_text,
};
use tokio::time::Instant;

use super::batch::Seat;
use super::{Accepting, PeerKind, Session};
use crate::access::RoleId;
use crate::audit::{AuditEvent, AuditText};
use crate::connection::handle::Side;
use crate::connection::inbox::{CreditUse, Job, Named, Patience, Task};
use crate::connection::reason::DisconnectReason;
use crate::dispatch::{Arrived, Asked, HandlerError, OnSuccess, Route, Started, panicked};
use crate::store::{Entry, Numbered, StoreHandle};
use crate::telemetry::TypeMetrics;

/// Whether a message answers another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IsReply {
    Yes,
    No,
}

impl Session {
    /// Takes a message in the usual form: the common case, in which the body is read only once.
    /// `false` when it has to go the long way; nothing has happened then.
    pub(super) fn dispatch_presumed(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<bool, DisconnectReason> {
        let usual = self.peer != PeerKind::Undecided
            && self.accepting == Accepting::Messages
            && !self.observer.wants_messages();
        if !usual {
            return Ok(false);
        }
        let Some(envelope) = PresumedEnvelope::read_within(body, self.json.for_body(body.len()))
        else {
            return Ok(false);
        };
        let size = LENGTH_PREFIX + body.len();
        if envelope.message_type == message_types::ACKNOWLEDGMENT {
            let Some(acknowledgment) = envelope.payload() else {
                return Ok(false);
            };
            self.note_received(message_types::ACKNOWLEDGMENT, size);
            self.acknowledging.waits_for_nothing();
            self.handle_acknowledgment(acknowledgment, now);
            return Ok(true);
        }
        if envelope.message_type == message_types::ACKNOWLEDGMENTS
            && self.has(Capability::AckRanges)
        {
            let Some(acknowledgments) = envelope.payload() else {
                return Ok(false);
            };
            self.note_received(message_types::ACKNOWLEDGMENTS, size);
            self.acknowledging.waits_for_nothing();
            self.handle_acknowledgments(acknowledgments, now)?;
            return Ok(true);
        }
        let declined = !envelope.wants_acknowledgment && self.has(Capability::NoAck);
        if declined && self.numbers_mean_something(envelope.delivery) {
            return Ok(false);
        }
        if let Some(original) = &envelope.in_reply_to {
            let taken = self.take_presumed_answer(&envelope, original, size, now);
            if taken {
                self.acknowledging.waits_for_nothing();
            }
            return Ok(taken);
        }
        let Some(head) = self.presumed_head(&envelope) else {
            return Ok(false);
        };
        let Some(route) = self.dispatcher.route(envelope.message_type) else {
            return Ok(false);
        };
        if !route.is_typed() || !self.may_send(route, envelope.message_type) {
            return Ok(false);
        }
        let entry = match self.numbered(envelope.delivery) {
            None => self.plain_entry(&envelope.id, envelope.message_type, envelope.timestamp),
            Some(numbered) => match envelope.to_message() {
                Some(message) => self.numbered_entry(numbered, message),
                None => return Ok(false),
            },
        };
        let arrived = Arrived::Presumed(&envelope);
        let asked = asked(head, now);
        let Ok(Ok(started)) = self.prepare(route, arrived, entry.clone(), asked.clone()) else {
            return Ok(false);
        };
        let options = route.options;
        if let Some(asked) = &asked {
            self.requests.insert(envelope.id.clone(), Arc::clone(asked));
        }
        let job = Job {
            metrics: Arc::clone(self.note_received(envelope.message_type, size)),
            credit: self.credit_use(envelope.message_type, IsReply::No),
            id: envelope.id,
            size,
            received: now,
            success: if declined && asked.is_none() {
                OnSuccess::Declined
            } else {
                self.on_success(envelope.delivery, asked.as_deref(), options.success)
            },
            named: self.expect_answer(asked.as_deref()),
            announcement: started.announcement,
            entry,
            asked,
            room: self.carriage.take_room(),
        };
        self.inbox
            .push(job, Task::Handler(started.future, options.order));
        Ok(true)
    }

    pub(super) fn dispatch(
        &mut self,
        envelope: &Envelope<'_>,
        metrics: Arc<TypeMetrics>,
        size: usize,
        now: Instant,
        seat: Option<Seat>,
    ) {
        let is_reply = match envelope.in_reply_to {
            Some(_) => IsReply::Yes,
            None => IsReply::No,
        };
        let credit = self.credit_use(&envelope.message_type, is_reply);
        if self.observer.wants_messages() {
            self.show(envelope);
        }
        let route = self.dispatcher.route(&envelope.message_type);
        let numbered = match envelope.delivery() {
            Ok(delivery) => Ok(self.numbered(delivery)),
            // Of a peer that did not negotiate them, the members mean nothing.
            Err(_) if !self.has(Capability::Durable) => Ok(None),
            Err(error) => Err(self.refusal(error, ErrorCode::Malformed, "bad_delivery")),
        };
        let declined = match envelope.wants_acknowledgment() {
            _ if !self.has(Capability::NoAck) => Ok(false),
            Ok(false) if self.numbers_mean_something(envelope.delivery().ok().flatten()) => {
                let text = "a numbered message must not decline its acknowledgment";
                Err(self.refusal(text, ErrorCode::Malformed, "bad_ack"))
            }
            Ok(wanted) => Ok(!wanted),
            Err(error) => Err(self.refusal(error, ErrorCode::Malformed, "bad_ack")),
        };
        let (numbered, declined) = match (numbered, declined) {
            (Ok(numbered), Ok(declined)) => (Ok(numbered), declined),
            (Err(refused), _) | (_, Err(refused)) => (Err(refused), false),
        };
        let is_durable = matches!(numbered, Ok(Some(_)));
        let delivery = envelope.delivery().ok().flatten();
        let requested = numbered.and_then(|it| Ok((it, self.request_head(envelope)?)));
        let (entry, asked, started) = match requested {
            Ok((numbered, head)) => {
                let Envelope { id, timestamp, .. } = envelope;
                let entry = match numbered {
                    Some(numbered) => self.numbered_entry(numbered, envelope.to_message()),
                    None => self.plain_entry(id, &envelope.message_type, *timestamp),
                };
                let asked = asked(head, now);
                let started = self.start(route, envelope, entry.clone(), asked.clone());
                (entry, asked, started)
            }
            Err(refused) => (None, None, Err(refused)),
        };
        let (task, success, announcement) = match started {
            Ok((task, _, announcement)) if declined && asked.is_none() => {
                (task, OnSuccess::Declined, announcement)
            }
            Ok((task, success, announcement)) => {
                let success = self.on_success(delivery, asked.as_deref(), success);
                (task, success, announcement)
            }
            Err(refused) => (Task::Refused(refused), OnSuccess::Acknowledge, None),
        };
        // What no handler saw is not in the journal, and a durable message's end is in the ledger.
        let entry = entry.filter(|_| is_durable || matches!(task, Task::Handler(..)));
        let asked = asked.filter(|_| matches!(task, Task::Handler(..)));
        if let Some(asked) = &asked {
            self.requests.insert(envelope.id.clone(), Arc::clone(asked));
        }
        let job = Job {
            id: envelope.id.clone(),
            metrics,
            size,
            received: now,
            success,
            credit,
            // The messages of a batch are answered together.
            named: match seat {
                Some(seat) => Named::Seat(seat),
                None => self.expect_answer(asked.as_deref()),
            },
            announcement,
            entry,
            asked,
            room: self.carriage.take_room(),
        };
        self.inbox.push(job, task);
    }

    /// Answers a body that is no message, in its turn.
    pub(super) fn refuse_malformed(
        &mut self,
        id: MessageId,
        error: impl Display,
        named: Named,
        now: Instant,
    ) {
        let refused = HandlerError::new(error).with_code(ErrorCode::Malformed);
        let job = Job {
            id,
            metrics: Arc::clone(self.connection.telemetry().type_of("")),
            size: 0,
            received: now,
            success: OnSuccess::Acknowledge,
            credit: CreditUse::Exempt,
            named,
            announcement: None,
            entry: None,
            asked: None,
            room: None,
        };
        self.inbox.push(job, Task::Refused(refused));
    }

    /// The place of a message in the order of its outbox, if the peer named one, and there is a
    /// ledger that knows it.
    fn numbered(&self, delivery: Option<DeliveryHead<'_>>) -> Option<Numbered> {
        let DeliveryHead { seq, stream } = delivery?;
        let speaker = self.outbox.as_ref()?;
        speaker.speak();
        Some(Numbered {
            speaker: Arc::clone(speaker),
            stream: stream.map(Into::into),
            seq,
        })
    }

    /// Whether a message is a durable one of a peer that may send such.
    fn numbers_mean_something(&self, delivery: Option<DeliveryHead<'_>>) -> bool {
        delivery.is_some() && self.has(Capability::Durable)
    }

    /// The sender of a numbered message always waits for its answer, and so does that of a request.
    fn on_success(
        &self,
        delivery: Option<DeliveryHead<'_>>,
        asked: Option<&Asked>,
        usual: OnSuccess,
    ) -> OnSuccess {
        match delivery {
            _ if asked.is_some() => OnSuccess::Acknowledge,
            Some(_) if self.has(Capability::Durable) => OnSuccess::Acknowledge,
            Some(_) | None => usual,
        }
    }

    /// What operators say is not listed: they look, and looking would fill the journal.
    fn keeps_journal(&self) -> bool {
        self.role != RoleId::OPERATOR
            && self
                .connection
                .store()
                .is_some_and(StoreHandle::keeps_journal)
    }

    fn numbered_entry(&self, numbered: Numbered, message: IpcMessage) -> Option<Arc<Entry>> {
        let store = self.connection.store()?.clone();
        let entry = Entry::of_numbered(store, self.connection.clone(), numbered, message);
        Some(Arc::new(entry))
    }

    /// The journal needs no payload: it would only take room while it waits for the disk.
    fn plain_entry(&self, id: &MessageId, kind: &str, timestamp: Timestamp) -> Option<Arc<Entry>> {
        let store = self.connection.store()?.clone();
        let journaled = self.keeps_journal().then(|| IpcMessage {
            id: id.clone(),
            message_type: MessageType::new(kind),
            timestamp,
            payload: None,
            in_reply_to: None,
        });
        let entry = Entry::of_plain(store, self.connection.clone(), journaled);
        Some(Arc::new(entry))
    }

    fn credit_use(&self, message_type: &str, is_reply: IsReply) -> CreditUse {
        if self.has(Capability::Credit)
            && self.carriage.is_one_frame()
            && uses_credit(message_type, is_reply == IsReply::Yes)
        {
            CreditUse::Used
        } else {
            CreditUse::Exempt
        }
    }

    /// The payload's `Deserialize` is code of the user's, and may panic like a handler.
    fn prepare(
        &self,
        route: &Route,
        arrived: Arrived<'_>,
        entry: Option<Arc<Entry>>,
        asked: Option<Arc<Asked>>,
    ) -> Result<Result<Started, PayloadError>, HandlerError> {
        let start = || route.start(&self.connection, arrived, entry, asked);
        catch_unwind(AssertUnwindSafe(start)).map_err(|panic| panicked(panic.as_ref()))
    }

    pub(super) fn refusal(
        &self,
        text: impl Display,
        code: ErrorCode,
        reason: &'static str,
    ) -> HandlerError {
        self.connection.telemetry().refused(reason);
        HandlerError::new(text).with_code(code)
    }

    fn start(
        &self,
        route: Option<&Route>,
        envelope: &Envelope<'_>,
        entry: Option<Arc<Entry>>,
        asked: Option<Arc<Asked>>,
    ) -> Result<(Task, OnSuccess, Option<Box<Announcement>>), HandlerError> {
        if self.accepting == Accepting::Nothing {
            return Err(self.refusal("stopping", ErrorCode::Stopping, "stopping"));
        }
        let Some(route) = route else {
            let text = no_handler_text(&envelope.message_type);
            return Err(self.refusal(text, ErrorCode::NoHandler, "no_handler"));
        };
        if !self.may_send(route, &envelope.message_type) {
            if self.connection.side() == Side::Server {
                self.connection.audit(AuditEvent::TypeRefused {
                    message_type: AuditText::new(&envelope.message_type),
                });
            }
            let text = format!("this peer may not send {}", envelope.message_type);
            return Err(self.refusal(text, ErrorCode::NotPermitted, "not_permitted"));
        }
        let started = self
            .prepare(route, Arrived::Read(envelope), entry, asked)?
            .map_err(|error| {
                self.connection.complain(|| {
                    tracing::warn!(
                        connection = %self.connection.id(),
                        peer = %self.connection.peer(),
                        cause = "bad_payload",
                        error = %error.to_string().escape_debug(),
                        "a malformed message",
                    );
                });
                self.refusal(error, ErrorCode::BadPayload, "bad_payload")
            })?;
        let task = Task::Handler(started.future, route.options.order);
        Ok((task, route.options.success, started.announcement))
    }

    /// Whether the peer may send a type: to a service by the policy, to a client what services send.
    fn may_send(&self, route: &Route, message_type: &str) -> bool {
        match self.connection.side() {
            Side::Server => self
                .connection
                .access()
                .is_some_and(|table| table.permits(self.role, route, message_type)),
            Side::Client => match route.sender_of(message_type) {
                Sender::Any | Sender::Service => true,
                Sender::Agent | Sender::Operator => false,
            },
        }
    }

    /// Whether the peer should be read from no further until handlers have ended.
    pub(crate) fn is_full(&self, answers_awaited: bool) -> bool {
        let patience = match answers_awaited || self.has(Capability::Credit) {
            true if self.has(Capability::Batch) => Patience::ExtendedByABatch,
            true => Patience::Extended,
            false => Patience::Usual,
        };
        self.inbox.is_full(patience)
    }

    pub(crate) fn inbox_is_empty(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Whether the next message could be begun now.
    pub(crate) fn can_start(&self) -> bool {
        self.inbox.can_start()
    }
}

/// What is kept of a message whose sender says something of the answer that it wants.
fn asked(head: RequestHead, now: Instant) -> Option<Arc<Asked>> {
    (head != RequestHead::NONE).then(|| Arc::new(Asked::new(head, now)))
}
