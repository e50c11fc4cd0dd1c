//! What the two ends say to each other: hello, answers, heartbeats, credit, goodbye; and which
//! messages go to handlers. The driver moves the bytes; here is what they mean.

mod acknowledging;
mod answering;
mod batch;
mod chunks;
mod compression;
mod dispatching;
mod encrypting;
mod hello;
mod requests;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use encrypting::Offer;
use migration_ipc_crypto::Channel;
use migration_ipc_protocol::extensions::{Acknowledgments, BodyKind};
use migration_ipc_protocol::hello::{
    Capability, CapabilitySet, Credit, Goodbye, GoodbyeReason, Hello,
};
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use migration_ipc_protocol::messages::{Acknowledgment, ErrorCode, Heartbeat};
use migration_ipc_protocol::{
    Announcement, EncodeError, Envelope, EnvelopeError, EnvelopeHead, JsonLimits, MessageId,
    MessagePayload, Timestamp, message_types,
};
use tokio::time::Instant;

use self::batch::OpenBatches;
pub(crate) use self::batch::Seat;
use self::chunks::{Arriving, Carriage};
use self::encrypting::Encrypting;
use super::error::{Answer, Rejection, SendError};
use super::handle::{IpcConnection, Side};
use super::in_flight::AnswerResult;
use super::inbox::Inbox;
use super::layers::Opens;
use super::liveness::{Handlers, Liveness, Verdict};
use super::reason::DisconnectReason;
use super::secrecy::Secrecy;
use crate::access::RoleId;
use crate::clock::Clock;
use crate::dispatch::{HandlerError, MessageDispatcher};
use crate::factory;
use crate::store::Speaker;
use crate::telemetry::{InboxGauge, TypeMetrics};
use acknowledging::Acknowledging;

/// Whoever owns the connection and wants to know what happens on it.
pub(crate) trait Observer: Send + Sync {
    /// An announcement was accepted.
    fn announced(&self, connection: &IpcConnection, announcement: Announcement);
    /// Whether anybody observes messages.
    fn wants_messages(&self) -> bool;
    /// A message for handlers arrived.
    fn received(&self, connection: &IpcConnection, envelope: &Envelope<'_>);
    /// The client knows now what its service is.
    fn negotiated(&self, capabilities: Option<CapabilitySet>);
}

/// How a client begins.
#[derive(Debug)]
pub(crate) struct Preamble {
    pub(crate) hello: Option<Hello>,
    /// Sent right behind the hello; behind the handshake, if the client demands encryption.
    pub(crate) announcement: Option<Box<EncodedAnnouncement>>,
    /// The rest of the handshake that is in the hello.
    pub(crate) encryption: Option<Offer>,
}

/// An announcement as the wire has it.
#[derive(Debug)]
pub(crate) struct EncodedAnnouncement {
    pub(crate) id: MessageId,
    pub(crate) message_type: &'static str,
    pub(crate) sensitive: bool,
    pub(crate) frame: Vec<u8>,
}

impl EncodedAnnouncement {
    /// With a fresh id.
    pub(crate) fn new<P: MessagePayload>(
        clock: Clock,
        announcement: &P,
    ) -> Result<Self, EncodeError> {
        let mut frame = Vec::new();
        let id = factory::encode(clock, &mut frame, announcement)?;
        Ok(Self {
            id,
            message_type: P::TYPE,
            sensitive: P::SENSITIVE,
            frame,
        })
    }
}

/// What is known of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerKind {
    /// Its first frame is awaited.
    Undecided,
    Plain,
    New(CapabilitySet),
}

/// What a frame, or a handler's end, asks the driver for.
#[derive(Debug)]
pub(crate) enum Directive {
    Continue,
    /// Read no further, finish what was read before, and end for this reason.
    Finish(DisconnectReason),
    /// Seal what goes out behind the last frame in the clear, and open what comes in.
    Encrypt(Box<Channel>, Opens),
    /// Open what comes in behind this frame.
    Open,
}

pub(crate) struct Session {
    connection: IpcConnection,
    dispatcher: MessageDispatcher,
    observer: Arc<dyn Observer>,
    peer: PeerKind,
    /// What the client is; frozen with the hello.
    role: RoleId,
    /// The client's own hello, until it is answered; a late answer still counts.
    hello_sent: Option<MessageId>,
    hello_deadline: Option<Instant>,
    /// What the client's hello has.
    offered: CapabilitySet,
    announcement_sent: Option<MessageId>,
    /// An announcement that is not sent yet.
    held: Option<Box<EncodedAnnouncement>>,
    encrypting: Encrypting,
    /// The peer's outbox, as far as there is a ledger for it: its numbers mean something.
    outbox: Option<Arc<Speaker>>,
    inbox: Inbox,
    acknowledging: Acknowledging,
    batches: OpenBatches,
    /// Messages handled and not yet granted anew.
    to_grant: u32,
    liveness: Liveness,
    heartbeats: u64,
    malformed: u32,
    next_expiry: Instant,
    inbox_gauge: InboxGauge,
    accepting: Accepting,
    json: JsonLimits,
    requests: requests::Requests,
    /// Bodies that arrive in pieces, from the first one on.
    arriving: Option<Box<Arriving>>,
    /// How what is being handled came.
    carriage: Carriage,
    /// Bytes that decompression has added to what was read, since the driver last asked.
    unpacked: usize,
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
        let config = connection.shared_config();
        let timeouts = config.timeouts;
        let demanded = connection.side() == Side::Server
            && connection
                .encryption()
                .is_some_and(|encryption| encryption.is_required());
        Self {
            dispatcher,
            observer,
            peer: PeerKind::Undecided,
            role: RoleId::AGENT,
            hello_sent: None,
            hello_deadline: None,
            offered: CapabilitySet::EMPTY,
            announcement_sent: None,
            held: None,
            encrypting: if demanded {
                Encrypting::Demanded
            } else {
                Encrypting::Settled
            },
            outbox: None,
            inbox: Inbox::new(Arc::clone(config)),
            acknowledging: Acknowledging::default(),
            batches: OpenBatches::default(),
            to_grant: 0,
            liveness: Liveness::new(timeouts.heartbeat_interval, timeouts.stale_intervals, now),
            heartbeats: 0,
            malformed: 0,
            next_expiry: now + timeouts.answer,
            inbox_gauge: connection.telemetry().inbox_gauge(),
            accepting: Accepting::Messages,
            json: config.limits.json(),
            requests: requests::Requests::default(),
            arriving: None,
            carriage: Carriage::Frame,
            unpacked: 0,
            connection,
        }
    }

    // --- frames ----------------------------------------------------------------------------------

    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.liveness.handle_received(now);
        let arrived = self.connection.config().clock.now();
        self.connection.note_message(arrived);
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
        self.acknowledging.count_frame();
        if !matches!(self.encrypting, Encrypting::Settled)
            && let Some(directive) = self.handle_while_encrypting(body)?
        {
            return Ok(directive);
        }
        match BodyKind::of(body) {
            BodyKind::Compressed if self.has(Capability::Lz4) => self.handle_compressed(body, now),
            BodyKind::Compressed => self.handle_of_another_kind(body, "compressed", now),
            BodyKind::Json | BodyKind::Chunk => self.handle_unpacked(body, now),
        }
    }

    /// Takes a body as it is without compression.
    fn handle_unpacked(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        match BodyKind::of(body) {
            BodyKind::Chunk if self.has(Capability::Chunks) => self.handle_piece(body, now),
            BodyKind::Chunk => self.handle_of_another_kind(body, "chunked", now),
            BodyKind::Json | BodyKind::Compressed => self.handle_body(body, now),
        }
    }

    /// Takes a body of a kind that was not negotiated. What it says is lost, and nobody can be told
    /// so: whoever has agreed on what it sends and sends this is not understood any more. One that has
    /// agreed on nothing has sent a body that is no envelope, like others.
    fn handle_of_another_kind(
        &mut self,
        body: &[u8],
        kind: &str,
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        match self.peer {
            PeerKind::New(_) => Err(DisconnectReason::Violation(format!(
                "a {kind} body, which was not negotiated"
            ))),
            PeerKind::Undecided | PeerKind::Plain => self.handle_body(body, now),
        }
    }

    /// Takes a whole body, however it came.
    fn handle_body(&mut self, body: &[u8], now: Instant) -> Result<Directive, DisconnectReason> {
        if self.dispatch_presumed(body, now)? {
            return Ok(Directive::Continue);
        }
        let envelope = match Envelope::parse_within(body, self.json.for_body(body.len())) {
            Ok(envelope) => envelope,
            Err(error) => return Ok(self.handle_malformed(error, now)),
        };
        let size = LENGTH_PREFIX + body.len();
        let metrics = Arc::clone(self.note_received(&envelope.message_type, size));
        match &*envelope.message_type {
            message_types::HELLO => return self.handle_hello(&envelope, body, now),
            message_types::ACKNOWLEDGMENT => {
                self.acknowledging.waits_for_nothing();
                match envelope.payload() {
                    Ok(acknowledgment) => self.handle_acknowledgment(acknowledgment, now),
                    Err(_) => self.connection.telemetry().refused("bad_acknowledgment"),
                }
                return Ok(Directive::Continue);
            }
            _ => {}
        }
        if self.peer == PeerKind::Undecided {
            // New peers say hello first: clients before anything, services in answer.
            self.decide(PeerKind::Plain, 0);
        }
        if envelope.message_type != message_types::HEARTBEAT {
            self.conclude_plain();
        }
        match &*envelope.message_type {
            message_types::HEARTBEAT => {
                self.acknowledging.waits_for_nothing();
                self.handle_heartbeat(&envelope, now);
            }
            message_types::CREDIT if self.has(Capability::Credit) => {
                self.acknowledging.waits_for_nothing();
                self.handle_credit(&envelope);
            }
            message_types::ACKNOWLEDGMENTS if self.has(Capability::AckRanges) => {
                let acknowledgments: Acknowledgments = envelope
                    .payload()
                    .map_err(|error| DisconnectReason::Violation(error.to_string()))?;
                self.acknowledging.waits_for_nothing();
                self.handle_acknowledgments(acknowledgments, now)?;
            }
            message_types::CHUNKS_BEGIN
            | message_types::CHUNKS_TAKE
            | message_types::CHUNKS_END
                if self.has(Capability::Chunks) =>
            {
                self.acknowledging.waits_for_nothing();
                self.handle_of_transfer(&envelope)?;
            }
            message_types::GOODBYE if self.has(Capability::Goodbye) => {
                let reason = DisconnectReason::Goodbye(goodbye_text(&envelope));
                return Ok(Directive::Finish(reason));
            }
            message_types::CANCEL if self.has(Capability::Requests) => {
                self.handle_cancel(&envelope)
            }
            message_types::ITEMS if self.has(Capability::Requests) => {
                self.handle_item_grant(&envelope);
            }
            message_types::BATCH if self.has(Capability::Batch) => {
                self.handle_batch(&envelope, now);
            }
            message_types::BATCH_OUTCOMES if self.has(Capability::Batch) => {
                self.acknowledging.waits_for_nothing();
                self.handle_outcomes(&envelope, now)?;
            }
            _ => {
                if self.handle_item(&envelope, size)? {
                    self.acknowledging.waits_for_nothing();
                    return Ok(Directive::Continue);
                }
                if self.handle_reply(&envelope, now) {
                    self.acknowledging.waits_for_nothing();
                } else {
                    self.dispatch(&envelope, metrics, size, now, None);
                }
            }
        }
        Ok(Directive::Continue)
    }

    /// Gives a reply to whoever waits for it. A reply that nobody waits for is a message like
    /// any other; so is the one to an announcement, which is answered with the work to do.
    fn handle_reply(&self, envelope: &Envelope<'_>, now: Instant) -> bool {
        let Some(original) = &envelope.in_reply_to else {
            return false;
        };
        if !self.has(Capability::InReplyTo) {
            return false;
        }
        if self.announcement_sent.as_ref() == Some(original) {
            self.resolve(original, Ok(Answer::Handled), now);
            return false;
        }
        self.resolve(original, Ok(Answer::Replied(envelope.to_message())), now)
    }

    fn handle_malformed(&mut self, mut error: EnvelopeError, now: Instant) -> Directive {
        let telemetry = self.connection.telemetry();
        telemetry.refused(error.kind.as_str());
        self.connection.complain(|| {
            tracing::warn!(
                connection = %self.connection.id(),
                peer = %self.connection.peer(),
                cause = error.kind.as_str(),
                error = %error.to_string().escape_debug(),
                "a malformed message",
            );
        });
        if self.peer == PeerKind::Undecided {
            self.decide(PeerKind::Plain, 0);
        }
        let Some(id) = error.id.take() else {
            self.malformed += 1;
            if self.malformed > self.connection.config().limits.malformed_messages {
                return Directive::Finish(DisconnectReason::TooManyMalformed);
            }
            return Directive::Continue;
        };
        let named = self.expect_answer(None);
        self.refuse_malformed(id, &error, named, now);
        Directive::Continue
    }

    /// A service has answered something that came after the hello, and not the hello: it is a plain
    /// one. Its silence alone may mean that it is slow, or that this machine was asleep.
    fn conclude_plain(&mut self) {
        if self.peer == PeerKind::Undecided {
            self.decide(PeerKind::Plain, 0);
        }
        if self.hello_sent.take().is_some() {
            self.encrypting = Encrypting::Settled;
            self.connection.settle_secrecy(Secrecy::Clear);
            self.connection.set_shown();
            self.connection.outbound().forget_frames();
        }
    }

    // --- what the driver consumes itself ---------------------------------------------------------

    fn handle_acknowledgment(&mut self, acknowledgment: Acknowledgment, now: Instant) {
        let original = &acknowledgment.original_message_id;
        if self.hello_sent.as_ref() == Some(original) {
            // A service that knows no hello is a plain one.
            self.conclude_plain();
            return;
        }
        self.conclude_plain();
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

    /// Whether anybody waited, or did so once.
    fn resolve(&self, original: &MessageId, answer: AnswerResult, now: Instant) -> bool {
        let Some(sent) = self.connection.outbound().resolve(original, answer) else {
            return self.drop_late(original);
        };
        let took = now.saturating_duration_since(sent.at);
        let telemetry = self.connection.telemetry();
        telemetry.type_of(sent.message_type).answered(took);
        true
    }

    fn handle_heartbeat(&mut self, envelope: &Envelope<'_>, now: Instant) {
        self.liveness.handle_heartbeat_received();
        if self.has(Capability::Backlog) {
            match envelope.payload::<Heartbeat>() {
                Ok(heartbeat) => self.note_peer_backlog(heartbeat.oldest_unhandled_ms, now),
                Err(_) => self.connection.telemetry().refused("bad_heartbeat"),
            }
        }
        // Deployed agents send one without waiting for anything; to be left without an
        // acknowledgment would be new to them.
        let answer = self.connection.side() == Side::Server
            && self.peer == PeerKind::Plain
            && !self.connection.outbound().control_is_full();
        if answer {
            self.acknowledge(&envelope.id, Ok(()));
        }
    }

    fn note_peer_backlog(&self, oldest_ms: Option<u64>, now: Instant) {
        let oldest = oldest_ms.map(Duration::from_millis);
        let stuck = |oldest: Option<Duration>| oldest >= Some(self.liveness.interval());
        let before = self.connection.peer_backlog();
        self.connection.set_peer_backlog(oldest, now);
        if stuck(oldest) && !stuck(before) {
            self.connection.telemetry().peer_stuck();
            self.connection.complain(|| {
                tracing::warn!(
                    connection = %self.connection.id(),
                    peer = %self.connection.peer(),
                    ?oldest,
                    "the peer reads, and its handlers are stuck",
                );
            });
        }
    }

    fn handle_credit(&mut self, envelope: &Envelope<'_>) {
        match envelope.payload::<Credit>() {
            Ok(credit) => self.connection.outbound().grant(credit.messages),
            Err(_) => self.connection.telemetry().refused("bad_credit"),
        }
    }

    /// Counts a message that was understood.
    fn note_received(&self, message_type: &str, size: usize) -> &Arc<TypeMetrics> {
        let metrics = self.connection.telemetry().type_of(message_type);
        metrics.received(size);
        metrics
    }

    fn stamp(&self) -> (MessageId, Timestamp) {
        factory::stamp(self.connection.config().clock)
    }

    /// Sends what the connection itself has to say: small, and always valid JSON.
    fn say<P: MessagePayload>(&self, in_reply_to: Option<&MessageId>, payload: &P) {
        let (id, timestamp) = self.stamp();
        self.say_as(&id, timestamp, in_reply_to, payload);
    }

    fn say_as<P: MessagePayload>(
        &self,
        id: &MessageId,
        timestamp: Timestamp,
        in_reply_to: Option<&MessageId>,
        payload: &P,
    ) {
        let head = EnvelopeHead {
            in_reply_to,
            ..EnvelopeHead::new(id, P::TYPE, timestamp)
        };
        if let Err(error) = self.connection.push_control(head, payload) {
            tracing::error!(%error, message_type = P::TYPE, "a control message cannot be encoded");
        }
    }

    // --- the end ---------------------------------------------------------------------------------

    /// Dispatches nothing more; what waits unbegun is refused. Returns how much that was.
    pub(crate) fn refuse_waiting(&mut self) -> usize {
        self.accepting = Accepting::Nothing;
        let stopping = HandlerError::new("stopping").with_code(ErrorCode::Stopping);
        let waiting = self.inbox.take_waiting();
        let refused = waiting.len();
        for job in waiting {
            self.refuse(job, stopping.clone());
        }
        refused
    }

    pub(crate) fn say_goodbye(&self, reason: &DisconnectReason) {
        if self.has(Capability::Goodbye) {
            let goodbye = match reason {
                DisconnectReason::Stopped => GoodbyeReason::Stopping,
                _ => GoodbyeReason::Done,
            };
            self.say(None, &Goodbye::new(goodbye));
        }
    }

    /// How many messages were received whose handling has not ended.
    pub(crate) fn unhandled(&self) -> usize {
        self.inbox.len()
    }

    /// Bytes of messages that are received and not answered, those that have arrived in part among
    /// them.
    pub(crate) fn inbox_bytes(&self) -> usize {
        self.inbox.bytes() + self.arriving_bytes()
    }

    /// Brings the metric of waiting messages up to date.
    pub(crate) fn report_inbox(&mut self) {
        self.inbox_gauge.set(self.inbox.len());
    }

    // --- time ------------------------------------------------------------------------------------

    /// When [`handle_timeout`](Self::handle_timeout) has something to do, at the earliest.
    pub(crate) fn deadline(&self, answers_awaited: bool) -> Instant {
        let expiry = answers_awaited.then_some(self.next_expiry);
        let deadlines = [
            self.hello_deadline,
            expiry,
            self.requests.next_deadline(),
            self.transfers_deadline(),
            self.encrypting.deadline(),
        ];
        deadlines
            .into_iter()
            .flatten()
            .fold(self.liveness.deadline(), Instant::min)
    }

    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        reading_paused: bool,
    ) -> Result<(), DisconnectReason> {
        if self.hello_deadline.is_some_and(|deadline| deadline <= now) {
            if self.demands_encryption() {
                return Err(DisconnectReason::NotEncrypted(
                    "the service did not answer the hello, and this client demands encryption"
                        .to_owned(),
                ));
            }
            self.decide(PeerKind::Plain, 0);
        }
        self.requests.expire(now);
        self.handle_encrypting_timeout(now)?;
        if self.next_expiry <= now {
            let answer = self.connection.config().timeouts.answer;
            if let Some(limit) = now.checked_sub(answer) {
                self.connection.outbound().expire(limit, now);
            }
            // Eight looks per timeout keep an answer's wait within an eighth of what was asked.
            self.next_expiry = now + answer / 8;
        }
        self.give_up_stalled(now, reading_paused);
        let unhandled = self
            .inbox
            .oldest()
            .filter(|_| self.has(Capability::Backlog));
        let unhandled_for = unhandled.map(|oldest| now.saturating_duration_since(oldest));
        let handlers = if unhandled_for >= Some(self.liveness.interval()) {
            Handlers::Stuck
        } else {
            Handlers::Fine
        };
        match self.liveness.poll(now, reading_paused, handlers) {
            Verdict::Fine => Ok(()),
            Verdict::Stale => Err(DisconnectReason::Stale),
            Verdict::SendHeartbeat => {
                self.liveness.handle_heartbeat_sent(now);
                let sender = match self.connection.side() {
                    Side::Server => "service",
                    Side::Client => "agent",
                };
                let mut heartbeat = Heartbeat::new(
                    sender,
                    self.connection.config().clock.now(),
                    self.heartbeats,
                );
                heartbeat.oldest_unhandled_ms =
                    unhandled_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
                self.heartbeats += 1;
                self.say(None, &heartbeat);
                Ok(())
            }
        }
    }
}

fn goodbye_text(envelope: &Envelope<'_>) -> String {
    match envelope.payload::<Goodbye>() {
        Ok(goodbye) => goodbye.reason.to_string(),
        Err(error) => error.to_string(),
    }
}
