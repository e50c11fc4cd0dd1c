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
use crate::connection::inbox::{CreditUse, Job, Patience, Task};
use crate::dispatch::{Arrived, HandlerError, OnSuccess, Route, Started, panicked};
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
    pub(super) fn dispatch_presumed(&mut self, body: &[u8], now: Instant) -> bool {
        let usual = self.peer != PeerKind::Undecided
            && self.accepting == Accepting::Messages
            && !self.observer.wants_messages();
        if !usual {
            return false;
        }
        let Some(envelope) = PresumedEnvelope::read_within(body, self.json) else {
            return false;
        };
        let size = LENGTH_PREFIX + body.len();
        if envelope.message_type == message_types::ACKNOWLEDGMENT {
            let Some(acknowledgment) = envelope.payload() else {
                return false;
            };
            self.note_received(message_types::ACKNOWLEDGMENT, size);
            self.handle_acknowledgment(acknowledgment, now);
            return true;
        }
        let answers_or_asks = envelope.in_reply_to.is_some()
            || envelope.item.is_some()
            || !envelope.wants_acknowledgment
            || envelope.request != RequestHead::NONE;
        if answers_or_asks {
            return false;
        }
        let Some(route) = self.dispatcher.route(envelope.message_type) else {
            return false;
        };
        if !route.is_typed() || !self.may_send(route, envelope.message_type) {
            return false;
        }
        let entry = match self.numbered(envelope.delivery) {
            None => self.plain_entry(&envelope.id, envelope.message_type, envelope.timestamp),
            Some(numbered) => match envelope.to_message() {
                Some(message) => self.numbered_entry(numbered, message),
                None => return false,
            },
        };
        let arrived = Arrived::Presumed(&envelope);
        let Ok(Ok(started)) = self.prepare(route, arrived, entry.clone()) else {
            return false;
        };
        let options = route.options;
        let job = Job {
            metrics: self.note_received(envelope.message_type, size),
            credit: self.credit_use(envelope.message_type, IsReply::No),
            id: envelope.id,
            size,
            received: now,
            success: self.on_success(envelope.delivery, options.success),
            announcement: started.announcement,
            entry,
            seat: None,
        };
        self.inbox
            .push(job, Task::Handler(started.future, options.order));
        true
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
            self.observer.received(&self.connection, envelope);
        }
        let route = self.dispatcher.route(&envelope.message_type);
        let numbered = match envelope.delivery() {
            Ok(delivery) => Ok(self.numbered(delivery)),
            // Of a peer that did not negotiate them, the members mean nothing.
            Err(_) if !self.has(Capability::Durable) => Ok(None),
            Err(error) => Err(self.refusal(error, ErrorCode::Malformed, "bad_delivery")),
        };
        let is_durable = matches!(numbered, Ok(Some(_)));
        let delivery = envelope.delivery().ok().flatten();
        let (entry, started) = match numbered {
            Ok(numbered) => {
                let Envelope { id, timestamp, .. } = envelope;
                let entry = match numbered {
                    Some(numbered) => self.numbered_entry(numbered, envelope.to_message()),
                    None => self.plain_entry(id, &envelope.message_type, *timestamp),
                };
                let started = self.start(route, envelope, entry.clone());
                (entry, started)
            }
            Err(refused) => (None, Err(refused)),
        };
        let (task, success, announcement) = match started {
            Ok((task, success, announcement)) => {
                (task, self.on_success(delivery, success), announcement)
            }
            Err(refused) => (Task::Refused(refused), OnSuccess::Acknowledge, None),
        };
        // What no handler saw is not in the journal, and a durable message's end is in the ledger.
        let entry = entry.filter(|_| is_durable || matches!(task, Task::Handler(..)));
        let job = Job {
            id: envelope.id.clone(),
            metrics,
            size,
            received: now,
            success,
            credit,
            announcement,
            entry,
            seat,
        };
        self.inbox.push(job, task);
    }

    /// Answers a body that is no message, in its turn.
    pub(super) fn refuse_malformed(&mut self, id: MessageId, error: impl Display, now: Instant) {
        let refused = HandlerError::new(error).with_code(ErrorCode::Malformed);
        let job = Job {
            id,
            metrics: self.connection.telemetry().type_of(""),
            size: 0,
            received: now,
            success: OnSuccess::Acknowledge,
            credit: CreditUse::Exempt,
            announcement: None,
            entry: None,
            seat: None,
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

    /// The sender of a numbered message always waits for its answer.
    fn on_success(&self, delivery: Option<DeliveryHead<'_>>, usual: OnSuccess) -> OnSuccess {
        match delivery {
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
        if self.has(Capability::Credit) && uses_credit(message_type, is_reply == IsReply::Yes) {
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
    ) -> Result<Result<Started, PayloadError>, HandlerError> {
        let start = || route.start(&self.connection, arrived, entry);
        catch_unwind(AssertUnwindSafe(start)).map_err(|panic| panicked(panic.as_ref()))
    }

    fn refusal(&self, text: impl Display, code: ErrorCode, reason: &'static str) -> HandlerError {
        self.connection.telemetry().refused(reason);
        HandlerError::new(text).with_code(code)
    }

    fn start(
        &self,
        route: Option<&Route>,
        envelope: &Envelope<'_>,
        entry: Option<Arc<Entry>>,
    ) -> Result<(Task, OnSuccess, Option<Announcement>), HandlerError> {
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
            .prepare(route, Arrived::Read(envelope), entry)?
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
