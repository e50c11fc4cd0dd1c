//! The first words of a connection: what both ends can do, and whether the peer is a plain one.

use std::sync::Arc;

use migration_ipc_crypto::Channel;
use migration_ipc_protocol::hello::{
    Capability, CapabilitySet, Hello, HelloAnswer, Refusal, RefusalCode, Role,
};
use migration_ipc_protocol::limits::MAX_HELLO_BODY;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, MessagePayload, MessageSerializer, OutboxId, Schema,
};
use migration_ipc_store::OutboxKey;
use tokio::time::Instant;

use super::encrypting::{Encrypting, Responded};
use super::{Directive, PeerKind, Preamble, Session};
use crate::access::{RoleDenied, RoleId};
use crate::audit::{AuditEvent, AuditText};
use crate::connection::handle::{Agreed, Side};
use crate::connection::lanes::SendCredit;
use crate::connection::layers::Opens;
use crate::connection::liveness::Rule;
use crate::connection::reason::DisconnectReason;
use crate::connection::secrecy::Secrecy;
use crate::dispatch::HandlerError;

impl Session {
    /// The client's first words. Without a hello the service counts as plain from the start.
    pub(crate) fn begin(&mut self, preamble: Preamble, now: Instant) {
        match preamble.hello {
            Some(hello) => {
                // What an operator is told is not for the journal of this end either.
                if hello.role == Role::Operator {
                    self.role = RoleId::OPERATOR;
                }
                let (id, timestamp) = self.stamp();
                let head = EnvelopeHead::new(&id, Hello::TYPE, timestamp);
                let frame = encode(head, &hello);
                self.connection.push_control_frame(Hello::TYPE, &frame);
                self.offer_encryption(preamble.encryption, &frame);
                self.offered = hello.capabilities;
                self.hello_sent = Some(id);
                self.hello_deadline = Some(now + self.connection.config().timeouts.hello);
            }
            None => {
                self.decide(PeerKind::Plain, 0);
                self.connection.set_shown();
                self.connection.outbound().forget_frames();
                self.connection.settle_secrecy(Secrecy::Clear);
            }
        }
        self.held = preamble.announcement;
        if !self.demands_encryption() {
            self.announce_held();
        }
    }

    /// Sends the announcement, unless it went out before.
    pub(super) fn announce_held(&mut self) {
        if let Some(announcement) = self.held.take() {
            self.connection.push_announcement(&announcement);
            self.announcement_sent = Some(announcement.id);
        }
    }

    pub(super) fn handle_hello(
        &mut self,
        envelope: &Envelope<'_>,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        match self.connection.side() {
            Side::Server => self.handle_client_hello(envelope, body, now),
            Side::Client => self.handle_hello_answer(envelope, body, now),
        }
    }

    fn handle_client_hello(
        &mut self,
        envelope: &Envelope<'_>,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        if self.peer != PeerKind::Undecided {
            let late = HandlerError::new("a hello must be the first message")
                .with_code(ErrorCode::Malformed);
            if !self.connection.outbound().control_is_full() {
                self.acknowledge(&envelope.id, Err(&late));
            }
            return Ok(Directive::Continue);
        }
        if body.len() > MAX_HELLO_BODY {
            let size = body.len();
            return Err(DisconnectReason::Refused(format!(
                "a hello of {size} bytes is over the limit of {MAX_HELLO_BODY}"
            )));
        }
        let hello: Hello = match envelope.payload() {
            Ok(hello) => hello,
            Err(error) => return Err(DisconnectReason::Refused(error.to_string())),
        };
        let limits = self.connection.config().limits;
        let credit = u32::try_from(limits.inbox_messages).unwrap_or(u32::MAX);
        let offered = self.offered(&hello);
        let (role, answer) = match self.grant(&hello.role) {
            Ok(role) => (role, hello.answer(offered, credit)),
            Err(denied) => {
                self.connection.audit(AuditEvent::RoleRefused {
                    role: AuditText::new(hello.role.as_str()),
                    reason: denied.label(),
                });
                (RoleId::AGENT, refuse_role(&hello.role))
            }
        };
        let (answer, channel) = match answer {
            HelloAnswer::Accepted(agreed) => match self.respond(&hello) {
                Ok(responded) => {
                    let mut agreed = self.agree_on_outboxes(hello.outbox, agreed);
                    if let Some(theirs) = &hello.schema {
                        self.compare_schema(theirs);
                        agreed.schema = Some(self.connection.config().schema.into());
                    }
                    agreed.limits = self.chunk_limits(agreed.capabilities);
                    let (agreed, channel) = agree_on_encryption(agreed, responded);
                    (HelloAnswer::Accepted(agreed), channel)
                }
                Err(refusal) => (HelloAnswer::Refused(refusal), None),
            },
            refused @ HelloAnswer::Refused(_) => (refused, None),
        };
        let (id, timestamp) = self.stamp();
        let head = EnvelopeHead {
            in_reply_to: Some(&envelope.id),
            ..EnvelopeHead::new(&id, Hello::TYPE, timestamp)
        };
        let frame = encode(head, &answer);
        match &channel {
            Some(_) => self.encrypt_as_service(body, &frame, now)?,
            None => {
                self.encrypting = Encrypting::Settled;
                self.connection.push_control_frame(Hello::TYPE, &frame);
            }
        }
        match answer {
            HelloAnswer::Accepted(agreed) => {
                self.role = role;
                self.connection.set_role(role);
                self.connection.set_agreed(Agreed {
                    // What the client takes; the answer says what we do.
                    chunked_bytes: hello.limits.unwrap_or_default().payload,
                    ..Agreed::from(&agreed)
                });
                self.decide(PeerKind::New(agreed.capabilities), hello.credit);
                Ok(match channel {
                    Some(channel) => Directive::Encrypt(channel, Opens::Later),
                    None => Directive::Continue,
                })
            }
            HelloAnswer::Refused(refusal) => {
                self.connection.telemetry().refused("hello");
                Ok(Directive::Finish(DisconnectReason::Refused(
                    refusal.message,
                )))
            }
        }
    }

    /// Notes that the peer was built with other payload types. What of them differs shows when one
    /// comes, so nobody is refused for it.
    fn compare_schema(&self, theirs: &Schema) {
        let ours = self.connection.config().schema;
        if *theirs != Schema::from(ours) {
            self.connection.complain(|| {
                tracing::info!(
                    connection = %self.connection.id(),
                    peer = %self.connection.peer(),
                    %ours,
                    theirs = %theirs.as_str().escape_debug(),
                    "the peer was built with other message types",
                );
            });
        }
    }

    /// The role of a client that asks for it, decided once, on the identity of its connection.
    fn grant(&self, role: &Role) -> Result<RoleId, RoleDenied> {
        let table = self.connection.access().ok_or(RoleDenied::Unknown)?;
        table.grant(role, self.connection.peer())
    }

    /// What this service can do for the client. Whoever numbers its messages has to be told which
    /// of them to send again.
    fn offered(&self, hello: &Hello) -> CapabilitySet {
        let mut all = self
            .connection
            .config()
            .capabilities
            .without(Capability::Encryption);
        if self.chunk_limit() == 0 {
            all = all.without(Capability::Chunks);
        }
        let understands = |capability| hello.capabilities.contains(capability);
        let tells = understands(Capability::ErrorCodes) && understands(Capability::InReplyTo);
        match self.connection.store() {
            Some(_) if tells => all,
            Some(_) | None => all.without(Capability::Durable),
        }
    }

    /// Remembers the client's outbox, and says what is known of it, and which our own one is.
    fn agree_on_outboxes(&mut self, outbox: Option<OutboxId>, mut agreed: Hello) -> Hello {
        if let Some(store) = self.connection.store()
            && agreed.capabilities.contains(Capability::Durable)
        {
            agreed.outbox = Some(store.outbox());
            if let Some(outbox) = outbox {
                let key = OutboxKey::new(self.connection.account().as_str(), outbox);
                agreed.seen = Some(store.ledger().highest(&key));
                self.outbox = Some(Arc::new(store.introduce(key)));
            }
        }
        agreed
    }

    fn handle_hello_answer(
        &mut self,
        envelope: &Envelope<'_>,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        let expected = self.hello_sent.is_some() && envelope.in_reply_to == self.hello_sent;
        if !expected {
            self.connection.complain(|| {
                tracing::warn!(connection = %self.connection.id(), "a hello that answers nothing");
            });
            return Ok(Directive::Continue);
        }
        self.hello_sent = None;
        match envelope.payload::<HelloAnswer>() {
            Ok(HelloAnswer::Accepted(mut agreed)) => {
                // A service cannot have from us what we did not offer; but what it numbers we can
                // always answer, with nothing to remember it by too.
                let ours = self.offered.with(Capability::Durable);
                agreed.capabilities = agreed.capabilities.intersection(ours).complete();
                if agreed.capabilities.contains(Capability::Encryption) {
                    return self.encrypt_as_client(agreed, body, now);
                }
                if self.demands_encryption() {
                    return Err(DisconnectReason::NotEncrypted(
                        "the service does not encrypt, and this client demands it: give the \
                         service a keyring"
                            .to_owned(),
                    ));
                }
                self.encrypting = Encrypting::Settled;
                self.accept_answer(&agreed);
                Ok(Directive::Continue)
            }
            Ok(HelloAnswer::Refused(refusal)) => Err(DisconnectReason::Refused(refusal.message)),
            Err(error) => Err(DisconnectReason::Refused(error.to_string())),
        }
    }

    /// The client knows what both can do, and does it from now on.
    pub(super) fn accept_answer(&mut self, agreed: &Hello) {
        // What went out with the hello was sent on this credit.
        let pipelined = u32::from(self.announcement_sent.is_some());
        let credit = agreed.credit.saturating_sub(pipelined);
        if let Some(outbox) = agreed.outbox
            && let Some(store) = self.connection.store()
        {
            let account = self.connection.account().as_str();
            let speaker = store.introduce(OutboxKey::new(account, outbox));
            self.outbox = Some(Arc::new(speaker));
        }
        if let Some(theirs) = &agreed.schema {
            self.compare_schema(theirs);
        }
        self.connection.set_agreed(Agreed::from(agreed));
        self.decide(PeerKind::New(agreed.capabilities), credit);
    }

    /// Settles what the peer is; from now on queued messages go out.
    pub(super) fn decide(&mut self, kind: PeerKind, credit: u32) {
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
        // A service that is plain by its silence may still turn out to be a new one.
        let may_be_new = self.hello_sent.is_some();
        if !self.has(Capability::AckRanges) && !may_be_new {
            self.connection.outbound().forget_frames();
        }
        let is_clear = match kind {
            // A service that is silent may be slow, and encrypt yet.
            PeerKind::Undecided | PeerKind::Plain => self.connection.side() == Side::Server,
            PeerKind::New(capabilities) => !capabilities.contains(Capability::Encryption),
        };
        if is_clear {
            self.connection.settle_secrecy(Secrecy::Clear);
        }
        self.liveness.set_rule(rule);
        self.connection.outbound().set_credit(credit);
        self.observer.negotiated(capabilities);
        if self.connection.side() == Side::Server
            && let Some(role) = self.connection.role()
        {
            let role = AuditText::new(role.as_str());
            self.connection.audit(AuditEvent::Connected { role });
        }
    }

    /// Whether the peer has not shown yet what it is.
    pub(crate) fn is_undecided(&self) -> bool {
        self.peer == PeerKind::Undecided
    }

    pub(super) fn has(&self, capability: Capability) -> bool {
        match self.peer {
            PeerKind::New(capabilities) => capabilities.contains(capability),
            PeerKind::Undecided | PeerKind::Plain => false,
        }
    }
}

impl From<&Hello> for Agreed {
    fn from(hello: &Hello) -> Self {
        Self {
            capabilities: hello.capabilities,
            seen: hello.seen,
            chunked_bytes: hello.limits.unwrap_or_default().payload,
        }
    }
}

/// The whole frame of a message that the connection itself says: small, and always valid JSON.
fn encode<P: MessagePayload>(head: EnvelopeHead<'_>, payload: &P) -> Vec<u8> {
    let mut frame = Vec::new();
    if let Err(error) = MessageSerializer::encode(&mut frame, head, payload) {
        tracing::error!(%error, message_type = P::TYPE, "a control message cannot be encoded");
    }
    frame
}

/// Adds the service's part of the handshake to what was agreed on.
fn agree_on_encryption(
    mut agreed: Hello,
    responded: Option<Responded>,
) -> (Hello, Option<Box<Channel>>) {
    let Some(Responded { channel, handshake }) = responded else {
        return (agreed, None);
    };
    agreed.capabilities = agreed.capabilities.with(Capability::Encryption);
    agreed.encryption = Some(handshake);
    (agreed, Some(channel))
}

/// Tells nobody which roles there are.
fn refuse_role(role: &Role) -> HelloAnswer {
    let why = match role {
        Role::Operator => "only administrators and the service's own account are operators",
        Role::Agent | Role::Other(_) => {
            "the service knows the roles agent and operator, and no other that this peer may have"
        }
    };
    HelloAnswer::Refused(Refusal::new(RefusalCode::Role, why))
}
