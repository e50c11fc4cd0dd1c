//! From a message to its handler, and from the handler's end to the answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use migration_ipc_protocol::hello::{Capability, Credit, Role, uses_credit};
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use migration_ipc_protocol::messages::{Acknowledgment, ErrorCode};
use migration_ipc_protocol::{
    Announcement, Envelope, EnvelopeError, EnvelopeHead, MessageId, PayloadError, PresumedEnvelope,
    Sender, message_types, no_handler_text,
};
use tokio::time::Instant;

use super::{Accepting, Directive, PeerKind, Session};
use crate::connection::handle::{Side, with_scratch};
use crate::connection::inbox::{CreditUse, Finished, Job, Patience, Starting, Task, panicked};
use crate::connection::reason::DisconnectReason;
use crate::dispatch::{
    Arrived, HandlerError, OnSuccess, OutcomeKind, ReplyPayload, Route, Started,
};
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
        let Some(envelope) = PresumedEnvelope::read(body) else {
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
        let Some(route) = self.dispatcher.route(envelope.message_type) else {
            return false;
        };
        if !route.is_typed() || !self.may_send(route.sender_of(envelope.message_type)) {
            return false;
        }
        let Ok(Ok(started)) = self.prepare(route, Arrived::Presumed(&envelope)) else {
            return false;
        };
        let options = route.options;
        let job = Job {
            metrics: self.note_received(envelope.message_type, size),
            credit: self.credit_use(envelope.message_type, IsReply::No),
            id: envelope.id,
            size,
            received: now,
            success: options.success,
            announcement: started.announcement,
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
        let (task, success, announcement) = match self.start(route, envelope) {
            Ok((task, success, announcement)) => (task, success, announcement),
            Err(refused) => (Task::Refused(refused), OnSuccess::Acknowledge, None),
        };
        let job = Job {
            id: envelope.id.clone(),
            metrics,
            size,
            received: now,
            success,
            credit,
            announcement,
        };
        self.inbox.push(job, task);
    }

    /// Answers a body that is no message, in its turn.
    pub(super) fn refuse_malformed(&mut self, id: MessageId, error: &EnvelopeError, now: Instant) {
        let refused = HandlerError::new(error).with_code(ErrorCode::Malformed);
        let job = Job {
            id,
            metrics: self.connection.telemetry().type_of(""),
            size: 0,
            received: now,
            success: OnSuccess::Acknowledge,
            credit: CreditUse::Exempt,
            announcement: None,
        };
        self.inbox.push(job, Task::Refused(refused));
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
    ) -> Result<Result<Started, PayloadError>, HandlerError> {
        catch_unwind(AssertUnwindSafe(|| route.start(&self.connection, arrived)))
            .map_err(|panic| panicked(panic.as_ref()))
    }

    fn start(
        &self,
        route: Option<&Route>,
        envelope: &Envelope<'_>,
    ) -> Result<(Task, OnSuccess, Option<Announcement>), HandlerError> {
        let refuse = |text: String, code: ErrorCode, reason| {
            self.connection.telemetry().refused(reason);
            HandlerError::new(text).with_code(code)
        };
        if self.accepting == Accepting::Nothing {
            return Err(refuse(
                "stopping".to_owned(),
                ErrorCode::Stopping,
                "stopping",
            ));
        }
        let Some(route) = route else {
            let text = no_handler_text(&envelope.message_type);
            return Err(refuse(text, ErrorCode::NoHandler, "no_handler"));
        };
        if !self.may_send(route.sender_of(&envelope.message_type)) {
            let text = format!("this peer may not send {}", envelope.message_type);
            return Err(refuse(text, ErrorCode::NotPermitted, "not_permitted"));
        }
        let started = self
            .prepare(route, Arrived::Read(envelope))?
            .map_err(|error| {
                tracing::warn!(
                    connection = %self.connection.id(),
                    peer = %self.connection.peer(),
                    cause = "bad_payload",
                    error = %error.to_string().escape_debug(),
                    "a malformed message",
                );
                refuse(error.to_string(), ErrorCode::BadPayload, "bad_payload")
            })?;
        let task = Task::Handler(started.future, route.options.order);
        Ok((task, route.options.success, started.announcement))
    }

    /// Whether the peer may send a type, by who its senders are.
    fn may_send(&self, sender: Sender) -> bool {
        match (self.connection.side(), sender) {
            (_, Sender::Any) => true,
            (Side::Client, Sender::Service) => true,
            (Side::Client, Sender::Agent | Sender::Operator) => false,
            (Side::Server, Sender::Service) => false,
            (Side::Server, Sender::Agent) => self.role != Role::Operator,
            (Side::Server, Sender::Operator) => self.role == Role::Operator,
        }
    }

    /// Whether the peer should be read from no further until handlers have ended.
    pub(crate) fn is_full(&self, answers_awaited: bool) -> bool {
        let patience = if answers_awaited || self.has(Capability::Credit) {
            Patience::Extended
        } else {
            Patience::Usual
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

    /// Runs handlers and answers what they have finished. `Ready` when at least one has.
    ///
    /// While the peer leaves its answers untaken no handler is begun, so that somebody who only
    /// asks and never reads is held to the bound of the control lane.
    pub(crate) fn poll_handlers(&mut self, cx: &mut Context<'_>) -> Poll<Directive> {
        let mut finished_any = false;
        loop {
            let starting = if self.connection.outbound().control_is_full() {
                Starting::Held
            } else {
                Starting::Allowed
            };
            let Poll::Ready(finished) = self.inbox.poll_finished(cx, starting) else {
                break;
            };
            finished_any = true;
            self.finish(finished);
        }
        if !finished_any {
            return Poll::Pending;
        }
        if self.connection.foreign_claims() > self.connection.config().limits.foreign_accounts {
            self.refuse_waiting();
            return Poll::Ready(Directive::Finish(DisconnectReason::IdentityMismatch));
        }
        Poll::Ready(Directive::Continue)
    }

    pub(super) fn finish(&mut self, finished: Finished) {
        let Finished { job, outcome } = finished;
        job.metrics.handled(job.received.elapsed());
        match outcome {
            OutcomeKind::Handled => {
                self.accept_announcement(job.announcement);
                if job.success == OnSuccess::Acknowledge {
                    self.acknowledge(&job.id, Ok(()));
                }
            }
            OutcomeKind::Replied(reply) => {
                self.accept_announcement(job.announcement);
                self.reply(&job.id, reply);
            }
            OutcomeKind::Failed(error) => {
                tracing::debug!(
                    connection = %self.connection.id(),
                    error = %error.to_string().escape_debug(),
                    "a message was refused",
                );
                self.acknowledge(&job.id, Err(&error));
            }
        }
        if job.credit == CreditUse::Used {
            self.return_credit();
        }
    }

    fn accept_announcement(&self, announcement: Option<Announcement>) {
        if let Some(announcement) = announcement
            && self.connection.side() == Side::Server
        {
            self.observer.announced(&self.connection, announcement);
        }
    }

    /// Grants anew what was handled, half an inbox at a time.
    fn return_credit(&mut self) {
        self.to_grant += 1;
        let inbox = self.connection.config().limits.inbox_messages;
        if (self.to_grant as usize) < inbox.div_ceil(2) {
            return;
        }
        let grant = std::mem::take(&mut self.to_grant);
        self.say(None, &Credit::new(grant));
    }

    // --- answers ---------------------------------------------------------------------------------

    pub(super) fn acknowledge(&self, original: &MessageId, outcome: Result<(), &HandlerError>) {
        // Deployed agents acknowledge nothing, and neither do ours to deployed services.
        let to_plain_service =
            self.connection.side() == Side::Client && !matches!(self.peer, PeerKind::New(_));
        if to_plain_service {
            return;
        }
        let (id, timestamp) = self.stamp();
        let mut acknowledgment = match outcome {
            Ok(()) => Acknowledgment::success(original.clone(), timestamp),
            Err(error) => Acknowledgment::failure(original.clone(), timestamp, error.text.as_str()),
        };
        if let Err(error) = outcome
            && self.has(Capability::ErrorCodes)
        {
            acknowledgment.code = Some(error.code.clone());
        }
        self.say_as(&id, timestamp, None, &acknowledgment);
    }

    /// Replies share the lane of acknowledgments, so that answers keep the order of their
    /// messages' ends.
    fn reply(&self, original: &MessageId, mut reply: Box<dyn ReplyPayload>) {
        self.connection.spell_user(reply.user_id_mut());
        let (id, timestamp) = self.stamp();
        let in_reply_to = self.has(Capability::InReplyTo).then_some(original);
        let message_type = reply.message_type();
        let head = EnvelopeHead {
            id: &id,
            message_type,
            timestamp,
            delivery: None,
            in_reply_to,
        };
        // The reply's `Serialize` is code of the user's, and may panic like a handler.
        let encoded = with_scratch(|frame| {
            catch_unwind(AssertUnwindSafe(|| reply.encode(frame, head)))
                .map_err(|panic| panicked(panic.as_ref()))?
                .map_err(|error| {
                    HandlerError::new(format_args!("the reply cannot be sent: {error}"))
                })?;
            self.connection.push_control_frame(message_type, frame);
            Ok::<_, HandlerError>(())
        });
        if let Err(error) = encoded {
            self.acknowledge(original, Err(&error));
        }
    }
}
