//! The handle of a connection: cheap to clone, safe to keep after the connection is gone. What
//! sends is in `sending`.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use migration_ipc_protocol::hello::{Capability, CapabilitySet, Role};
use migration_ipc_protocol::messages::UserId;
use migration_ipc_protocol::{Announcement, Timestamp};
use migration_ipc_transport::{AccountId, PeerIdentity};
use tokio::sync::{SetOnce, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::claims::{AccountResolver, Claim, Claims, Settlement, foreign_account};
use super::outbound::{CloseRequest, Outbound};
use super::reason::{ConnectionState, DisconnectReason};
use super::secrecy::{Secrecy, SensitiveTypes};
use super::shelf::Shelf;
use crate::access::{RoleId, Table};
use crate::audit::{Audit, AuditEvent, AuditText};
use crate::config::ConnectionConfig;
use crate::dispatch::HandlerError;
use crate::encryption::Encryption;
use crate::store::StoreHandle;
use crate::telemetry::Telemetry;

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
    /// The longest body that the peer takes in chunks.
    pub(crate) chunked_bytes: u64,
}

/// A connection to one peer. Clones are handles to the same connection; its one driver task owns
/// everything that is not shared here.
#[derive(Clone)]
pub struct IpcConnection {
    shared: Arc<Shared>,
}

/// What a connection shares with the others of its server. There is one for all of them: it is read
/// for each message, and thousands of copies would find no place in a processor's cache.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) config: Arc<ConnectionConfig>,
    pub(crate) resolver: Arc<dyn AccountResolver>,
    pub(crate) telemetry: Telemetry,
    pub(crate) store: Option<StoreHandle>,
    /// What the peers of a server may send; a client has one peer, its service.
    pub(crate) access: Option<Arc<Table>>,
    pub(crate) audit: Audit,
    /// What had arrived of bodies on connections before.
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) encryption: Option<Arc<Encryption>>,
    pub(crate) sensitive: SensitiveTypes,
}

struct Shared {
    id: ConnectionId,
    side: Side,
    peer: PeerIdentity,
    surroundings: Arc<Surroundings>,
    connected_at: Timestamp,
    /// Microseconds since the Unix epoch; 0 before the first message.
    last_message_at: AtomicI64,
    /// The peer's.
    account: Arc<Account>,
    outbound: Outbound,
    state: watch::Sender<ConnectionState>,
    announcement: Mutex<Option<Announcement>>,
    /// Set once the peer has shown that it is a new one.
    agreed: OnceLock<Agreed>,
    /// Fires when what the peer is has been shown, and not only concluded from its silence.
    shown: CancellationToken,
    /// What the peer's last heartbeat said of its oldest unhandled message, and when it came.
    peer_backlog: Mutex<Option<(Duration, Instant)>>,
    claims: Claims,
    foreign_claims: AtomicU32,
    cancellation: CancellationToken,
    /// The index of the peer's [`RoleId`]; changed at most once, by its hello.
    role: AtomicU8,
    secrecy: SetOnce<Secrecy>,
}

impl IpcConnection {
    pub(crate) fn new(
        id: ConnectionId,
        side: Side,
        peer: PeerIdentity,
        account: Arc<Account>,
        surroundings: Arc<Surroundings>,
    ) -> Self {
        let config = &surroundings.config;
        Self {
            shared: Arc::new(Shared {
                claims: Claims::new(Arc::clone(&surroundings.resolver), peer.account()),
                id,
                side,
                peer,
                connected_at: config.clock.now(),
                last_message_at: AtomicI64::new(0),
                outbound: Outbound::new(Arc::clone(config), Arc::clone(&account)),
                account,
                state: watch::Sender::new(ConnectionState::Identified),
                announcement: Mutex::new(None),
                agreed: OnceLock::new(),
                shown: CancellationToken::new(),
                peer_backlog: Mutex::new(None),
                foreign_claims: AtomicU32::new(0),
                cancellation: CancellationToken::new(),
                role: AtomicU8::new(RoleId::AGENT.index()),
                secrecy: SetOnce::new(),
                surroundings,
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

    /// The role of the peer, settled by its first message; until then, and for those that say no
    /// hello, [`Role::Agent`]. `None` at a client, whose peer is the service.
    #[must_use]
    pub fn role(&self) -> Option<&Role> {
        let table = self.access()?;
        Some(table.role(self.role_id()))
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
        let timeouts = &self.config().timeouts;
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

    /// Whether the peer has shown that it is a new one.
    pub(crate) fn is_new(&self) -> bool {
        self.shared.agreed.get().is_some()
    }

    /// The highest number of the client's own outbox that its service has seen, by its hello.
    pub(crate) fn seen(&self) -> Option<u64> {
        self.shared.agreed.get()?.seen
    }

    /// The longest body that the peer takes in chunks; `None` unless that was negotiated.
    pub(crate) fn peer_chunked_bytes(&self) -> Option<u64> {
        let agreed = self.shared.agreed.get()?;
        let has_chunks = agreed.capabilities.contains(Capability::Chunks);
        has_chunks.then_some(agreed.chunked_bytes)
    }

    pub(crate) fn shelf(&self) -> &Shelf {
        &self.shared.surroundings.shelf
    }

    /// The store that what this connection brings is committed to.
    pub(crate) fn store(&self) -> Option<&StoreHandle> {
        self.shared.surroundings.store.as_ref()
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

    /// Ends the connection in an orderly way: nothing more is dispatched, handlers at work finish,
    /// what is queued is written, the peer is told goodbye and given
    /// [`ConnectionTimeouts::drain`](crate::ConnectionTimeouts::drain) to close. Returns at once;
    /// [`state`](Self::state) shows the end.
    pub fn close(&self) {
        let deadline = Instant::now() + self.config().timeouts.drain;
        let reason = DisconnectReason::ClosedLocally;
        self.shared
            .outbound
            .request_close(CloseRequest { reason, deadline });
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
                self.telemetry().refused("unresolved_user");
                Ok(())
            }
            Settlement::Foreign(named) => {
                self.shared.foreign_claims.fetch_add(1, Ordering::Relaxed);
                self.telemetry().refused("identity_mismatch");
                self.audit(AuditEvent::IdentityMismatch {
                    named: AuditText::new(named.as_str()),
                });
                Err(foreign_account(self.account(), &named))
            }
        }
    }

    pub(crate) fn foreign_claims(&self) -> u32 {
        self.shared.foreign_claims.load(Ordering::Relaxed)
    }

    pub(crate) fn access(&self) -> Option<&Arc<Table>> {
        self.shared.surroundings.access.as_ref()
    }

    pub(crate) fn role_id(&self) -> RoleId {
        RoleId::from_index(self.shared.role.load(Ordering::Relaxed))
    }

    pub(crate) fn set_role(&self, role: RoleId) {
        self.shared.role.store(role.index(), Ordering::Relaxed);
    }

    /// Records what the peer does, or may not do.
    pub(crate) fn audit(&self, event: AuditEvent) {
        self.shared
            .surroundings
            .audit
            .record_connection(self, event);
    }

    pub(crate) fn encryption(&self) -> Option<&Arc<Encryption>> {
        self.shared.surroundings.encryption.as_ref()
    }

    /// Set once it is known.
    pub(super) fn secrecy(&self) -> &SetOnce<Secrecy> {
        &self.shared.secrecy
    }

    /// Which types are sensitive, as far as that is known.
    pub(crate) fn sensitive_types(&self) -> &SensitiveTypes {
        &self.shared.surroundings.sensitive
    }

    pub(crate) fn cancellation(&self) -> &CancellationToken {
        &self.shared.cancellation
    }

    // --- for the driver and its owner -----------------------------------------------------------

    pub(crate) fn account(&self) -> &AccountId {
        self.shared.peer.account()
    }

    /// What all connections of the peer's account share.
    pub(crate) fn shared_account(&self) -> &Arc<Account> {
        &self.shared.account
    }

    /// Writes a line of the log about what the peer does wrong, unless it has caused too many.
    pub(crate) fn complain(&self, write: impl FnOnce()) {
        self.shared.account.misdeeds().line(write);
    }

    pub(crate) fn side(&self) -> Side {
        self.shared.side
    }

    pub(crate) fn config(&self) -> &ConnectionConfig {
        self.shared_config()
    }

    pub(crate) fn shared_config(&self) -> &Arc<ConnectionConfig> {
        &self.shared.surroundings.config
    }

    pub(crate) fn outbound(&self) -> &Outbound {
        &self.shared.outbound
    }

    /// Why nothing more can be sent.
    pub(crate) fn closed_for(&self) -> DisconnectReason {
        let closed = self.shared.outbound.closed();
        closed.unwrap_or(DisconnectReason::Aborted)
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.shared.surroundings.telemetry
    }

    pub(crate) fn note_message(&self, at: Timestamp) {
        self.shared
            .last_message_at
            .store(at.unix_micros(), Ordering::Relaxed);
    }

    /// The peer is a new one. A peer says hello at most once.
    pub(crate) fn set_agreed(&self, agreed: Agreed) {
        self.shared.agreed.get_or_init(|| agreed);
        self.set_shown();
    }

    /// Fires when it is certain what the peer is. A service that says nothing for a while is treated
    /// as a plain one, and may turn out to be a new one that was slow.
    pub(crate) fn shown(&self) -> &CancellationToken {
        &self.shared.shown
    }

    pub(crate) fn set_shown(&self) {
        self.shared.shown.cancel();
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
