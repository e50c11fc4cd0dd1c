//! The handle of a connection: cheap to clone, safe to keep after the connection is gone.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use migration_ipc_protocol::hello::{Capability, CapabilitySet};
use migration_ipc_protocol::messages::UserId;
use migration_ipc_protocol::{
    Announcement, DeliveryHead, EncodeError, EnvelopeHead, IpcMessage, MessageId, MessagePayload,
    MessageSerializer, RawValue, Timestamp,
};
use migration_ipc_transport::{AccountId, PeerIdentity};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claims::{AccountResolver, Claim, Claims, Settlement, foreign_account, respell};
use super::error::{Answer, SendError};
use super::in_flight::AnswerResult;
use super::outbound::{CloseRequest, Outbound, Refused, Tracking};
use super::reason::{ConnectionState, DisconnectReason};
use crate::config::ConnectionConfig;
use crate::dispatch::HandlerError;
use crate::factory;
use crate::store::StoreHandle;
use crate::telemetry::Telemetry;

/// A scratch buffer that grew beyond this is given back.
const SCRATCH_CAPACITY: usize = 64 * 1024;

/// The number of a connection: unique for its server, or among the clients of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(crate) u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// What both ends have agreed on in their hellos.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) capabilities: CapabilitySet,
    /// What the service has seen of the client's outbox.
    pub(crate) seen: Option<u64>,
}

/// A message that exists as JSON already, with the envelope that it is sent in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel<'a> {
    pub(crate) id: &'a MessageId,
    pub(crate) message_type: &'a str,
    pub(crate) timestamp: Timestamp,
    pub(crate) payload: &'a RawValue,
    /// Its place in the order of its outbox; written only if that was negotiated.
    pub(crate) delivery: Option<DeliveryHead<'a>>,
}

/// A connection to one peer. Clones are handles to the same connection; its one driver task owns
/// everything that is not shared here.
#[derive(Clone)]
pub struct IpcConnection {
    shared: Arc<Shared>,
}

/// What a connection shares with the others of its server or client.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) config: ConnectionConfig,
    pub(crate) resolver: Arc<dyn AccountResolver>,
    pub(crate) telemetry: Telemetry,
    pub(crate) store: Option<StoreHandle>,
}

struct Shared {
    id: ConnectionId,
    side: Side,
    peer: PeerIdentity,
    config: ConnectionConfig,
    store: Option<StoreHandle>,
    connected_at: Timestamp,
    /// Microseconds since the Unix epoch; 0 before the first message.
    last_message_at: AtomicI64,
    outbound: Outbound,
    state: watch::Sender<ConnectionState>,
    announcement: Mutex<Option<Announcement>>,
    /// Set once the peer has shown that it is a new one.
    agreed: OnceLock<Agreed>,
    /// What the peer's last heartbeat said of its oldest unhandled message, and when it came.
    peer_backlog: Mutex<Option<(Duration, Instant)>>,
    claims: Claims,
    foreign_claims: AtomicU32,
    cancellation: CancellationToken,
    telemetry: Telemetry,
}

impl IpcConnection {
    pub(crate) fn new(
        id: ConnectionId,
        side: Side,
        peer: PeerIdentity,
        surroundings: Surroundings,
    ) -> Self {
        let Surroundings {
            config,
            resolver,
            telemetry,
            store,
        } = surroundings;
        Self {
            shared: Arc::new(Shared {
                claims: Claims::new(resolver, peer.account()),
                id,
                side,
                peer,
                config,
                store,
                connected_at: config.clock.now(),
                last_message_at: AtomicI64::new(0),
                outbound: Outbound::new(config.limits),
                state: watch::Sender::new(ConnectionState::Identified),
                announcement: Mutex::new(None),
                agreed: OnceLock::new(),
                peer_backlog: Mutex::new(None),
                foreign_claims: AtomicU32::new(0),
                cancellation: CancellationToken::new(),
                telemetry,
            }),
        }
    }

    /// The connection's number.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.shared.id
    }

    /// Who the peer is, as the operating system says. Never changes.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.shared.peer
    }

    /// What the peer announced, once that was accepted. Labels of the peer's own; its account is
    /// that of [`peer`](Self::peer).
    #[must_use]
    pub fn announcement(&self) -> Option<Announcement> {
        self.shared
            .announcement
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// When the connection was identified.
    #[must_use]
    pub fn connected_at(&self) -> Timestamp {
        self.shared.connected_at
    }

    /// When the peer's last bytes arrived.
    #[must_use]
    pub fn last_message_at(&self) -> Option<Timestamp> {
        match self.shared.last_message_at.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Timestamp::from_unix_micros(micros)),
        }
    }

    /// For how long the oldest message that the peer has received and not handled had been waiting
    /// when its last heartbeat was sent; `None` when there is none, or when the peer does not say:
    /// it is a plain one, or its heartbeats say nothing of late. A peer that still reads, and whose
    /// handlers are stuck, says so in one heartbeat per interval.
    #[must_use]
    pub fn peer_backlog(&self) -> Option<Duration> {
        let timeouts = &self.shared.config.timeouts;
        let of_late = timeouts.heartbeat_interval * timeouts.stale_intervals;
        let backlog = *self
            .shared
            .peer_backlog
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        backlog
            .filter(|(_, said)| said.elapsed() <= of_late)
            .map(|(oldest, _)| oldest)
    }

    /// The state of the connection at this moment.
    #[must_use]
    pub fn current_state(&self) -> ConnectionState {
        self.shared.state.borrow().clone()
    }

    /// Whether the connection can be addressed by user, session and broadcast.
    pub(crate) fn is_announced(&self) -> bool {
        matches!(*self.shared.state.borrow(), ConnectionState::Announced)
    }

    /// Whether both ends can do this. A plain peer can do nothing of the kind, and neither can one
    /// that has not shown yet what it is.
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.shared
            .agreed
            .get()
            .is_some_and(|agreed| agreed.capabilities.contains(capability))
    }

    /// The highest number of the client's own outbox that its service has seen, by its hello.
    pub(crate) fn seen(&self) -> Option<u64> {
        self.shared.agreed.get()?.seen
    }

    /// The store that what this connection brings is committed to.
    pub(crate) fn store(&self) -> Option<&StoreHandle> {
        self.shared.store.as_ref()
    }

    /// Watches the state of the connection.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.shared.state.subscribe()
    }

    /// Messages accepted by [`send`](Self::send) and not yet handed to the operating system.
    #[must_use]
    pub fn queued_messages(&self) -> usize {
        self.shared.outbound.queued_messages()
    }

    /// Sends a message, waiting for room in the outbound lane.
    ///
    /// `Ok` means accepted: it will be written in its turn unless the connection ends before.
    /// To know what became of it, use [`send_acknowledged`](Self::send_acknowledged).
    ///
    /// Cancel safe: dropping the future leaves the message wholly accepted or wholly absent.
    ///
    /// # Errors
    /// [`SendError::Encode`] when the message cannot be encoded (over 1 MiB, for example) and
    /// [`SendError::Closed`] when the connection has ended; nothing was written in either case.
    pub async fn send<P: MessagePayload>(&self, payload: P) -> Result<MessageId, SendError> {
        self.post(payload, Tracking::None).await.map(|(id, _)| id)
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
        self.spell_user(payload.user_id_mut());
        with_scratch(|frame| {
            let id = factory::encode(self.config().clock, frame, payload)?;
            self.try_send_frame(P::TYPE, &id, frame)?;
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
    pub async fn send_acknowledged<P: MessagePayload>(
        &self,
        payload: P,
    ) -> Result<Answer, SendError> {
        let (_, answer) = self.post(payload, Tracking::Answer).await?;
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
        let message_type = self.shared.telemetry.known_type(&message.message_type);
        let offered = with_scratch(|frame| {
            MessageSerializer::encode_message(frame, &message)?;
            self.offer(message_type, &message.id, frame, Tracking::None)
        })?;
        self.finish_post(message_type, &message.id, Tracking::None, offered)
            .await
            .map(drop)
    }

    /// Sends a message that was kept as JSON, waiting for room, and tells its answer. Cancel safe as
    /// [`send`](Self::send).
    ///
    /// An agent that is a plain one never answers: to it the message counts as unanswered once it
    /// is written. A numbered message is always answered, so it is never given up for want of time.
    pub(crate) async fn post_parcel(
        &self,
        parcel: Parcel<'_>,
    ) -> Result<oneshot::Receiver<AnswerResult>, SendError> {
        tokio::task::coop::consume_budget().await;
        let message_type = self.shared.telemetry.known_type(parcel.message_type);
        let delivery = parcel.delivery.filter(|_| self.has(Capability::Durable));
        let is_plain_agent = self.side() == Side::Server && self.shared.agreed.get().is_none();
        let tracking = if is_plain_agent {
            Tracking::Written
        } else if delivery.is_some() {
            Tracking::SureAnswer
        } else {
            Tracking::Answer
        };
        let head = EnvelopeHead {
            id: parcel.id,
            message_type: parcel.message_type,
            timestamp: parcel.timestamp,
            delivery,
            in_reply_to: None,
        };
        let offered = with_scratch(|frame| {
            MessageSerializer::encode(frame, head, parcel.payload)?;
            self.offer(message_type, parcel.id, frame, tracking)
        })?;
        let answer = self
            .finish_post(message_type, parcel.id, tracking, offered)
            .await?;
        answer.ok_or(SendError::Unanswered)
    }

    /// Ends the connection in an orderly way: nothing more is dispatched, handlers at work finish,
    /// what is queued is written, the peer is told goodbye and given
    /// [`ConnectionTimeouts::drain`](crate::ConnectionTimeouts::drain) to close. Returns at once;
    /// [`state`](Self::state) shows the end.
    pub fn close(&self) {
        let deadline = Instant::now() + self.shared.config.timeouts.drain;
        let reason = DisconnectReason::ClosedLocally;
        self.shared
            .outbound
            .request_close(CloseRequest { reason, deadline });
    }

    // --- sending -------------------------------------------------------------------------------

    async fn post<P: MessagePayload>(
        &self,
        mut payload: P,
        tracking: Tracking,
    ) -> Result<(MessageId, Option<oneshot::Receiver<AnswerResult>>), SendError> {
        // A sender that never waits would keep the driver, on the same worker, from writing.
        tokio::task::coop::consume_budget().await;
        self.spell_user(payload.user_id_mut());
        let (id, offered) = with_scratch(|frame| {
            let id = factory::encode(self.config().clock, frame, &payload)?;
            let offered = self.offer(P::TYPE, &id, frame, tracking)?;
            Ok::<_, SendError>((id, offered))
        })?;
        drop(payload);
        let answer = self.finish_post(P::TYPE, &id, tracking, offered).await?;
        Ok((id, answer))
    }

    /// Offers a frame; one that finds no room is copied to wait for it.
    fn offer(
        &self,
        message_type: &'static str,
        id: &MessageId,
        frame: &[u8],
        tracking: Tracking,
    ) -> Result<Offered, SendError> {
        match self
            .shared
            .outbound
            .offer(frame, id, message_type, tracking)
        {
            Ok(answer) => {
                self.shared.telemetry.sent(message_type, frame.len());
                Ok(Offered::Taken(answer))
            }
            Err(Refused::Full) => Ok(Offered::Waits(frame.into())),
            Err(Refused::Closed(reason)) => Err(SendError::Closed(reason)),
        }
    }

    async fn finish_post(
        &self,
        message_type: &'static str,
        id: &MessageId,
        tracking: Tracking,
        offered: Offered,
    ) -> Result<Option<oneshot::Receiver<AnswerResult>>, SendError> {
        let frame = match offered {
            Offered::Taken(answer) => return Ok(answer),
            Offered::Waits(frame) => frame,
        };
        let answer = self
            .shared
            .outbound
            .accept(&frame, id, message_type, tracking)
            .await
            .map_err(SendError::Closed)?;
        self.shared.telemetry.sent(message_type, frame.len());
        Ok(answer)
    }

    /// Takes a frame that was encoded before if there is room for it now.
    pub(crate) fn try_send_frame(
        &self,
        message_type: &'static str,
        id: &MessageId,
        frame: &[u8],
    ) -> Result<(), SendError> {
        match self
            .shared
            .outbound
            .offer(frame, id, message_type, Tracking::None)
        {
            Ok(_) => {
                self.shared.telemetry.sent(message_type, frame.len());
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
        self.shared.outbound.push_control(frame);
        self.shared.telemetry.sent(message_type, frame.len());
    }

    /// To an announced agent its own account is written as it announced it: deployed agents
    /// compare the text.
    pub(crate) fn spell_user(&self, user: Option<&mut UserId>) {
        let Some(user) = user else { return };
        if self.shared.side == Side::Client || user.as_str() != self.account().as_str() {
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
        if self.shared.side == Side::Client {
            return None;
        }
        let spelling = self.announcement()?.user_id;
        let account = self.account().as_str();
        if spelling.is_empty() || spelling.as_str() == account {
            return None;
        }
        respell(payload, account, spelling.as_str())
    }

    // --- for dispatch --------------------------------------------------------------------------

    /// Replaces a member that names the peer's own account by the canonical id, if that can be
    /// said at once. Only a service checks: a client's service names its own agents.
    pub(crate) fn check_claim(&self, user: &mut UserId) -> Claim {
        match self.shared.side {
            Side::Server => self.shared.claims.check(user),
            Side::Client => Claim::Settled,
        }
    }

    pub(crate) async fn settle_claim(&self, user: &mut UserId) -> Result<(), HandlerError> {
        match self.shared.claims.settle(user).await {
            Settlement::Own => Ok(()),
            Settlement::Nobody => {
                self.shared.telemetry.refused("unresolved_user");
                Ok(())
            }
            Settlement::Foreign(named) => {
                self.shared.foreign_claims.fetch_add(1, Ordering::Relaxed);
                self.shared.telemetry.refused("identity_mismatch");
                tracing::warn!(
                    target: "migration_ipc::audit",
                    connection = %self.id(),
                    peer = %self.peer(),
                    named = %named,
                    "a message that names another account was refused",
                );
                Err(foreign_account(self.account(), &named))
            }
        }
    }

    pub(crate) fn foreign_claims(&self) -> u32 {
        self.shared.foreign_claims.load(Ordering::Relaxed)
    }

    pub(crate) fn cancellation(&self) -> &CancellationToken {
        &self.shared.cancellation
    }

    // --- for the driver and its owner -----------------------------------------------------------

    pub(crate) fn account(&self) -> &AccountId {
        self.shared.peer.account()
    }

    pub(crate) fn side(&self) -> Side {
        self.shared.side
    }

    pub(crate) fn config(&self) -> &ConnectionConfig {
        &self.shared.config
    }

    pub(crate) fn outbound(&self) -> &Outbound {
        &self.shared.outbound
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }

    pub(crate) fn note_message(&self, at: Timestamp) {
        self.shared
            .last_message_at
            .store(at.unix_micros(), Ordering::Relaxed);
    }

    /// The peer is a new one. A peer says hello at most once.
    pub(crate) fn set_agreed(&self, agreed: Agreed) {
        self.shared.agreed.get_or_init(|| agreed);
    }

    pub(crate) fn set_peer_backlog(&self, oldest: Option<Duration>, now: Instant) {
        *self
            .shared
            .peer_backlog
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = oldest.map(|oldest| (oldest, now));
    }

    pub(crate) fn set_announcement(&self, announcement: Announcement) {
        *self
            .shared
            .announcement
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(announcement);
    }

    /// Moves on to a later state; a state once left never comes back.
    pub(crate) fn advance_state(&self, next: ConnectionState) {
        self.shared.state.send_if_modified(|state| {
            let later = next.rank() > state.rank();
            if later {
                *state = next;
            }
            later
        });
    }
}

impl fmt::Debug for IpcConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IpcConnection")
            .field("id", &self.shared.id)
            .field("peer", &self.shared.peer)
            .field("state", &*self.shared.state.borrow())
            .finish_non_exhaustive()
    }
}

enum Offered {
    Taken(Option<oneshot::Receiver<AnswerResult>>),
    Waits(Box<[u8]>),
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
