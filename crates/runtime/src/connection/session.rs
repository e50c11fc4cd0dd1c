//! What the two ends say to each other: hello, answers, heartbeats, credit, goodbye; and which
//! messages go to handlers. The driver moves the bytes; here is what they mean.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use migration_ipc_protocol::hello::{
    Capability, CapabilitySet, Credit, Goodbye, GoodbyeReason, Hello, HelloAnswer, Refusal,
    RefusalCode, Role, uses_credit,
};
use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_HELLO_BODY};
use migration_ipc_protocol::messages::{Acknowledgment, ErrorCode, Heartbeat};
use migration_ipc_protocol::{
    Announcement, EncodeError, Envelope, EnvelopeError, EnvelopeHead, MessageId, Sender,
    message_types, no_handler_text,
};
use tokio::time::Instant;

use super::error::{Answer, Rejection, SendError};
use super::handle::{IpcConnection, Side, push_control, with_scratch};
use super::inbox::{CreditUse, Finished, Inbox, Job, Patience, Task, panicked};
use super::in_flight::AnswerResult;
use super::lanes::SendCredit;
use super::liveness::{Liveness, Rule, Verdict};
use super::reason::DisconnectReason;
use crate::dispatch::{
    HandlerError, MessageDispatcher, OnSuccess, OutcomeKind, ReplyPayload, Route,
};
use crate::factory;

/// Whoever owns the connection and wants to know what happens on it.
pub(crate) trait Observer: Send + Sync {
    /// An announcement was accepted.
    fn announced(&self, connection: &IpcConnection, announcement: Announcement);
    /// A message for handlers arrived.
    fn received(&self, connection: &IpcConnection, envelope: &Envelope<'_>);
    /// The client knows now what its service is.
    fn negotiated(&self, capabilities: Option<CapabilitySet>);
}

/// How a client begins.
#[derive(Debug)]
pub(crate) struct Preamble {
    pub(crate) hello: Option<Hello>,
    /// Sent right behind the hello.
    pub(crate) announcement: Option<EncodedAnnouncement>,
}

/// An announcement as the wire has it.
#[derive(Debug)]
pub(crate) struct EncodedAnnouncement {
    pub(crate) id: MessageId,
    pub(crate) frame: Vec<u8>,
}

/// What is known of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerKind {
    /// Its first frame is awaited.
    Undecided,
    Plain,
    New(CapabilitySet),
}

/// What a frame asks the driver for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Directive {
    Continue,
    /// The peer has said its last.
    Goodbye(String),
    /// Answer what is queued, then end.
    Refuse(String),
}

pub(crate) struct Session {
    connection: IpcConnection,
    dispatcher: MessageDispatcher,
    observer: Arc<dyn Observer>,
    peer: PeerKind,
    role: Role,
    /// The client's own hello, until it is answered; a late answer still counts.
    hello_sent: Option<MessageId>,
    hello_deadline: Option<Instant>,
    announcement_sent: Option<MessageId>,
    inbox: Inbox,
    /// Messages that the peer may still send (with negotiated credit).
    receive_credit: u32,
    /// Messages handled and not yet granted anew.
    to_grant: u32,
    liveness: Liveness,
    heartbeats: u64,
    malformed: u32,
    next_expiry: Instant,
    accepting: Accepting,
}

/// Whether messages still go to handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Messages,
    Nothing,
}

impl Session {
    pub(crate) fn new(
        connection: IpcConnection,
        dispatcher: MessageDispatcher,
        observer: Arc<dyn Observer>,
        now: Instant,
    ) -> Self {
        let config = *connection.config();
        let timeouts = config.timeouts;
        Self {
            dispatcher,
            observer,
            peer: PeerKind::Undecided,
            role: Role::Agent,
            hello_sent: None,
            hello_deadline: None,
            announcement_sent: None,
            inbox: Inbox::new(config.limits),
            receive_credit: 0,
            to_grant: 0,
            liveness: Liveness::new(timeouts.heartbeat_interval, timeouts.stale_intervals, now),
            heartbeats: 0,
            malformed: 0,
            next_expiry: now + timeouts.answer,
            accepting: Accepting::Messages,
            connection,
        }
    }

    /// The client's first words. Without a hello the service counts as plain from the start.
    pub(crate) fn begin(&mut self, preamble: Preamble, now: Instant) -> Result<(), EncodeError> {
        let outbound = self.connection.outbound();
        match preamble.hello {
            Some(hello) => {
                self.role = hello.role.clone();
                self.hello_sent = Some(push_control(outbound, None, &hello)?);
                self.hello_deadline = Some(now + self.connection.config().timeouts.hello);
            }
            None => self.decide(PeerKind::Plain, 0),
        }
        if let Some(announcement) = preamble.announcement {
            self.connection.outbound().push_control(&announcement.frame);
            self.announcement_sent = Some(announcement.id);
        }
        Ok(())
    }

    // --- frames ----------------------------------------------------------------------------------

    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.liveness.handle_received(now);
        self.connection.note_message(factory::now());
    }

    pub(crate) fn handle_sent(&mut self, now: Instant) {
        self.liveness.handle_sent(now);
    }

    /// Takes the body of one frame.
    pub(crate) fn handle_frame(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        let envelope = match Envelope::parse(body) {
            Ok(envelope) => envelope,
            Err(error) => return self.handle_malformed(&error).map(|()| Directive::Continue),
        };
        let size = LENGTH_PREFIX + body.len();
        self.connection.telemetry().received(&envelope.message_type, size);
        match &*envelope.message_type {
            message_types::HELLO => return self.handle_hello(&envelope, body.len()),
            message_types::ACKNOWLEDGMENT => {
                self.handle_acknowledgment(&envelope, now);
                return Ok(Directive::Continue);
            }
            _ => {}
        }
        if self.peer == PeerKind::Undecided {
            // New peers say hello first: clients before anything, services in answer.
            self.decide(PeerKind::Plain, 0);
        }
        match &*envelope.message_type {
            message_types::HEARTBEAT => self.handle_heartbeat(&envelope.id),
            message_types::CREDIT if self.has(Capability::Credit) => self.handle_credit(&envelope),
            message_types::GOODBYE if self.has(Capability::Goodbye) => {
                return Ok(Directive::Goodbye(goodbye_text(&envelope)));
            }
            _ => {
                if !self.handle_reply(&envelope, now) {
                    self.dispatch(&envelope, size, now)?;
                }
            }
        }
        Ok(Directive::Continue)
    }

    /// Gives a reply to whoever waits for it. A reply that nobody waits for is a message like
    /// any other; so is the one to an announcement, which is answered with the work to do.
    fn handle_reply(&self, envelope: &Envelope<'_>, now: Instant) -> bool {
        let Some(original) = &envelope.in_reply_to else { return false };
        if !self.has(Capability::InReplyTo) {
            return false;
        }
        if self.announcement_sent.as_ref() == Some(original) {
            self.resolve(original, Ok(Answer::Handled), now);
            return false;
        }
        self.resolve(original, Ok(Answer::Replied(envelope.to_message())), now)
    }

    fn handle_malformed(&mut self, error: &EnvelopeError) -> Result<(), DisconnectReason> {
        let telemetry = self.connection.telemetry();
        telemetry.refused(error.kind.as_str());
        tracing::warn!(
            connection = %self.connection.id(),
            peer = %self.connection.peer(),
            cause = error.kind.as_str(),
            error = %error.to_string().escape_debug(),
            "a malformed message",
        );
        if self.peer == PeerKind::Undecided {
            self.decide(PeerKind::Plain, 0);
        }
        match &error.id {
            Some(id) => {
                let refused =
                    HandlerError::new(error).with_code(ErrorCode::Malformed);
                self.acknowledge(id, Err(&refused));
                Ok(())
            }
            None => {
                self.malformed += 1;
                if self.malformed > self.connection.config().limits.malformed_messages {
                    return Err(DisconnectReason::TooManyMalformed);
                }
                Ok(())
            }
        }
    }

    // --- hello -----------------------------------------------------------------------------------

    fn handle_hello(
        &mut self,
        envelope: &Envelope<'_>,
        body: usize,
    ) -> Result<Directive, DisconnectReason> {
        match self.connection.side() {
            Side::Server => self.handle_client_hello(envelope, body),
            Side::Client => self.handle_hello_answer(envelope),
        }
    }

    fn handle_client_hello(
        &mut self,
        envelope: &Envelope<'_>,
        body: usize,
    ) -> Result<Directive, DisconnectReason> {
        if self.peer != PeerKind::Undecided {
            let late = HandlerError::new("a hello must be the first message")
                .with_code(ErrorCode::Malformed);
            self.acknowledge(&envelope.id, Err(&late));
            return Ok(Directive::Continue);
        }
        if body > MAX_HELLO_BODY {
            return Err(DisconnectReason::Refused(format!(
                "a hello of {body} bytes is over the limit of {MAX_HELLO_BODY}"
            )));
        }
        let hello: Hello = match envelope.payload() {
            Ok(hello) => hello,
            Err(error) => return Err(DisconnectReason::Refused(error.to_string())),
        };
        let limits = self.connection.config().limits;
        let credit = u32::try_from(limits.inbox_messages).unwrap_or(u32::MAX);
        let answer = match &hello.role {
            Role::Agent => hello.answer(CapabilitySet::all(), credit),
            Role::Operator if self.connection.peer().is_operator() => {
                hello.answer(CapabilitySet::all(), credit)
            }
            Role::Operator => {
                tracing::warn!(
                    target: "migration_ipc::audit",
                    connection = %self.connection.id(),
                    peer = %self.connection.peer(),
                    "refused: not an operator",
                );
                refuse_role("only administrators and the service's own account are operators")
            }
            Role::Other(_) => refuse_role("the service knows the roles agent and operator"),
        };
        let answered = push_control(self.connection.outbound(), Some(&envelope.id), &answer);
        log_unencodable(answered.err());
        match answer {
            HelloAnswer::Accepted(agreed) => {
                self.role = hello.role;
                self.receive_credit = credit;
                self.decide(PeerKind::New(agreed.capabilities), hello.credit);
                Ok(Directive::Continue)
            }
            HelloAnswer::Refused(refusal) => {
                self.connection.telemetry().refused("hello");
                Ok(Directive::Refuse(refusal.message))
            }
        }
    }

    fn handle_hello_answer(
        &mut self,
        envelope: &Envelope<'_>,
    ) -> Result<Directive, DisconnectReason> {
        let expected = self.hello_sent.is_some() && envelope.in_reply_to == self.hello_sent;
        if !expected {
            tracing::warn!(connection = %self.connection.id(), "a hello that answers nothing");
            return Ok(Directive::Continue);
        }
        self.hello_sent = None;
        match envelope.payload::<HelloAnswer>() {
            Ok(HelloAnswer::Accepted(agreed)) => {
                let ours = self.connection.config().limits.inbox_messages;
                self.receive_credit = u32::try_from(ours).unwrap_or(u32::MAX);
                // What went out with the hello was sent on this credit.
                let pipelined = u32::from(self.announcement_sent.is_some());
                let credit = agreed.credit.saturating_sub(pipelined);
                self.decide(PeerKind::New(agreed.capabilities), credit);
                Ok(Directive::Continue)
            }
            Ok(HelloAnswer::Refused(refusal)) => Err(DisconnectReason::Refused(refusal.message)),
            Err(error) => Err(DisconnectReason::Refused(error.to_string())),
        }
    }

    /// Settles what the peer is; from now on queued messages go out.
    fn decide(&mut self, kind: PeerKind, credit: u32) {
        self.peer = kind;
        self.hello_deadline = None;
        let (rule, credit, capabilities) = match kind {
            PeerKind::Undecided => return,
            PeerKind::Plain => (Rule::Plain, SendCredit::Unlimited, None),
            PeerKind::New(capabilities) if capabilities.contains(Capability::Credit) => {
                (Rule::New, SendCredit::Messages(credit), Some(capabilities))
            }
            PeerKind::New(capabilities) => (Rule::New, SendCredit::Unlimited, Some(capabilities)),
        };
        self.liveness.set_rule(rule);
        self.connection.outbound().set_credit(credit);
        self.observer.negotiated(capabilities);
    }

    /// Whether the peer has not shown yet what it is.
    pub(crate) fn is_undecided(&self) -> bool {
        self.peer == PeerKind::Undecided
    }

    fn has(&self, capability: Capability) -> bool {
        match self.peer {
            PeerKind::New(capabilities) => capabilities.contains(capability),
            PeerKind::Undecided | PeerKind::Plain => false,
        }
    }

    // --- what the driver consumes itself ---------------------------------------------------------

    fn handle_acknowledgment(&mut self, envelope: &Envelope<'_>, now: Instant) {
        let Ok(acknowledgment) = envelope.payload::<Acknowledgment>() else {
            self.connection.telemetry().refused("bad_acknowledgment");
            return;
        };
        let original = &acknowledgment.original_message_id;
        if self.hello_sent.as_ref() == Some(original) {
            // A service that knows no hello is a plain one.
            self.hello_sent = None;
            self.decide(PeerKind::Plain, 0);
            return;
        }
        if self.peer == PeerKind::Undecided {
            self.decide(PeerKind::Plain, 0);
        }
        let answer = if acknowledgment.success {
            Ok(Answer::Handled)
        } else {
            Err(SendError::Rejected(Rejection {
                error: acknowledgment.error.unwrap_or_default(),
                code: acknowledgment.code,
            }))
        };
        self.resolve(original, answer, now);
    }

    /// Whether anybody waited.
    fn resolve(&self, original: &MessageId, answer: AnswerResult, now: Instant) -> bool {
        let Some(sent) = self.connection.outbound().resolve(original, answer) else { return false };
        let took = now.saturating_duration_since(sent.at);
        self.connection.telemetry().answered(sent.message_type, took);
        true
    }

    fn handle_heartbeat(&mut self, id: &MessageId) {
        self.liveness.handle_heartbeat_received();
        // Deployed agents send one without waiting for anything; to be left without an
        // acknowledgment would be new to them.
        if self.connection.side() == Side::Server && self.peer == PeerKind::Plain {
            self.acknowledge(id, Ok(()));
        }
    }

    fn handle_credit(&mut self, envelope: &Envelope<'_>) {
        match envelope.payload::<Credit>() {
            Ok(credit) => self.connection.outbound().grant(credit.messages),
            Err(_) => self.connection.telemetry().refused("bad_credit"),
        }
    }

    // --- dispatch --------------------------------------------------------------------------------

    fn dispatch(
        &mut self,
        envelope: &Envelope<'_>,
        size: usize,
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let is_reply = envelope.in_reply_to.is_some();
        let credit = if self.has(Capability::Credit) && uses_credit(&envelope.message_type, is_reply)
        {
            let left = self.receive_credit.checked_sub(1);
            self.receive_credit = left.ok_or(DisconnectReason::CreditExceeded)?;
            CreditUse::Used
        } else {
            CreditUse::Exempt
        };
        self.observer.received(&self.connection, envelope);
        let route = self.dispatcher.route(&envelope.message_type);
        let (task, success, announcement) = match self.start(route, envelope) {
            Ok((task, success, announcement)) => (task, success, announcement),
            Err(refused) => (Task::Refused(refused), OnSuccess::Acknowledge, None),
        };
        let job = Job {
            id: envelope.id.clone(),
            message_type: self.connection.telemetry().known_type(&envelope.message_type),
            size,
            received: now,
            success,
            credit,
            announcement,
        };
        self.inbox.push(job, task);
        self.connection.telemetry().inbox_grew(1);
        Ok(())
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
            return Err(refuse("stopping".to_owned(), ErrorCode::Stopping, "stopping"));
        }
        let Some(route) = route else {
            let text = no_handler_text(&envelope.message_type);
            return Err(refuse(text, ErrorCode::NoHandler, "no_handler"));
        };
        if !self.may_send(route.sender) {
            let text = format!("this peer may not send {}", envelope.message_type);
            return Err(refuse(text, ErrorCode::NotPermitted, "not_permitted"));
        }
        // The payload's `Deserialize` is code of the user's, and may panic like a handler.
        let started = catch_unwind(AssertUnwindSafe(|| route.start(&self.connection, envelope)))
            .map_err(|panic| panicked(panic.as_ref()))?
            .map_err(|error| refuse(error.to_string(), ErrorCode::BadPayload, "bad_payload"))?;
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

    /// Runs handlers and answers what they have finished. `Ready` when at least one has.
    pub(crate) fn poll_handlers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DisconnectReason>> {
        let mut finished_any = false;
        while let Poll::Ready(finished) = self.inbox.poll_finished(cx) {
            finished_any = true;
            self.finish(finished);
        }
        if !finished_any {
            return Poll::Pending;
        }
        if self.connection.foreign_claims() > self.connection.config().limits.foreign_accounts {
            return Poll::Ready(Err(DisconnectReason::IdentityMismatch));
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, finished: Finished) {
        let Finished { job, outcome } = finished;
        let telemetry = self.connection.telemetry();
        telemetry.inbox_shrank(1);
        telemetry.handled(job.message_type, job.received.elapsed());
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
                    message_type = job.message_type,
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
        self.receive_credit = self.receive_credit.saturating_add(grant);
        let sent = push_control(self.connection.outbound(), None, &Credit::new(grant));
        log_unencodable(sent.err());
    }

    // --- answers ---------------------------------------------------------------------------------

    fn acknowledge(&self, original: &MessageId, outcome: Result<(), &HandlerError>) {
        // Deployed agents acknowledge nothing, and neither do ours to deployed services.
        let to_plain_service =
            self.connection.side() == Side::Client && !matches!(self.peer, PeerKind::New(_));
        if to_plain_service {
            return;
        }
        let mut acknowledgment = match outcome {
            Ok(()) => Acknowledgment::success(original.clone(), factory::now()),
            Err(error) => {
                Acknowledgment::failure(original.clone(), factory::now(), error.text.as_str())
            }
        };
        if let Err(error) = outcome
            && self.has(Capability::ErrorCodes)
        {
            acknowledgment.code = Some(error.code.clone());
        }
        log_unencodable(push_control(self.connection.outbound(), None, &acknowledgment).err());
    }

    /// Replies share the lane of acknowledgments, so that answers keep the order of their
    /// messages' ends.
    fn reply(&self, original: &MessageId, mut reply: Box<dyn ReplyPayload>) {
        self.connection.spell_user(reply.user_id_mut());
        let (id, timestamp) = factory::stamp();
        let in_reply_to = self.has(Capability::InReplyTo).then_some(original);
        let message_type = reply.message_type();
        let head = EnvelopeHead { id: &id, message_type, timestamp, in_reply_to };
        let encoded = with_scratch(|frame| {
            reply.encode(frame, head)?;
            self.connection.outbound().push_control(frame);
            self.connection.telemetry().sent(message_type, frame.len());
            Ok::<_, EncodeError>(())
        });
        if let Err(error) = encoded {
            let error = HandlerError::new(format_args!("the reply cannot be sent: {error}"));
            self.acknowledge(original, Err(&error));
        }
    }

    // --- the end ---------------------------------------------------------------------------------

    /// Dispatches nothing more; what waits unbegun is refused.
    pub(crate) fn refuse_waiting(&mut self) {
        self.accepting = Accepting::Nothing;
        let stopping = HandlerError::new("stopping").with_code(ErrorCode::Stopping);
        for finished in self.inbox.refuse_waiting(&stopping) {
            self.finish(finished);
        }
    }

    /// Dispatches nothing more; what was received is still handled.
    pub(crate) fn stop_accepting(&mut self) {
        self.accepting = Accepting::Nothing;
    }

    pub(crate) fn say_goodbye(&self, reason: &DisconnectReason) {
        if self.has(Capability::Goodbye) {
            let goodbye = match reason {
                DisconnectReason::Stopped => GoodbyeReason::Stopping,
                _ => GoodbyeReason::Done,
            };
            let said = push_control(self.connection.outbound(), None, &Goodbye::new(goodbye));
            log_unencodable(said.err());
        }
    }

    /// How many messages were received and never handled to the end.
    pub(crate) fn unhandled(&self) -> usize {
        self.inbox.len()
    }

    // --- time ------------------------------------------------------------------------------------

    pub(crate) fn deadline(&self) -> Instant {
        let deadline = self.liveness.deadline().min(self.next_expiry);
        self.hello_deadline.map_or(deadline, |hello| deadline.min(hello))
    }

    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        reading_paused: bool,
    ) -> Result<(), DisconnectReason> {
        if self.hello_deadline.is_some_and(|deadline| deadline <= now) {
            self.decide(PeerKind::Plain, 0);
        }
        if self.next_expiry <= now {
            let answer = self.connection.config().timeouts.answer;
            if let Some(limit) = now.checked_sub(answer) {
                self.connection.outbound().expire(limit);
            }
            // Eight looks per timeout keep an answer's wait within an eighth of what was asked.
            self.next_expiry = now + answer / 8;
        }
        match self.liveness.poll(now, reading_paused) {
            Verdict::Fine => Ok(()),
            Verdict::Stale => Err(DisconnectReason::Stale),
            Verdict::SendHeartbeat => {
                self.liveness.handle_heartbeat_sent(now);
                self.heartbeats += 1;
                let sender = match self.connection.side() {
                    Side::Server => "service",
                    Side::Client => "agent",
                };
                let heartbeat = Heartbeat::new(sender, factory::now(), self.heartbeats);
                log_unencodable(push_control(self.connection.outbound(), None, &heartbeat).err());
                Ok(())
            }
        }
    }
}

fn refuse_role(why: &str) -> HelloAnswer {
    HelloAnswer::Refused(Refusal::new(RefusalCode::Role, why))
}

fn goodbye_text(envelope: &Envelope<'_>) -> String {
    match envelope.payload::<Goodbye>() {
        Ok(goodbye) => goodbye.reason.to_string(),
        Err(error) => error.to_string(),
    }
}

/// What the connection itself says is small and always valid JSON.
fn log_unencodable(error: Option<EncodeError>) {
    if let Some(error) = error {
        tracing::error!(%error, "a control message could not be encoded");
    }
}
