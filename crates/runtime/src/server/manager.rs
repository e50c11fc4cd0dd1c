//! All connections of a server, by id, user and session.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::gauge;
use migration_ipc_protocol::Announcement;
use migration_ipc_protocol::messages::SessionId;
use migration_ipc_transport::{AccountId, PeerIdentity};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::accounts::{AccountKey, Accounts, NoPlace};
use super::events::{ConnectionEvent, EventStream};
use crate::config::ServerLimits;
use crate::connection::{
    Account, CloseRequest, ConnectionId, ConnectionState, DisconnectReason, Ended, IpcConnection,
    Waiting,
};

/// How many connections a server has, by where they are in their life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// The operating system has not said yet who the peer is.
    pub pending: usize,
    /// Identified, and nothing announced: operators, further lanes, agents at their start.
    pub identified: usize,
    /// Announced agents: those that can be addressed.
    pub announced: usize,
    /// Being wound up.
    pub closing: usize,
}

impl ConnectionCounts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        self.pending + self.identified + self.announced + self.closing
    }
}

/// All active connections of a server. Cheap to clone; every view is true at the moment in which
/// it is taken.
#[derive(Debug, Clone)]
pub struct ConnectionManager {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    events: broadcast::Sender<ConnectionEvent>,
    limits: ServerLimits,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Registry {
    /// Whose peers are not known yet, in the order in which they came.
    pending: BTreeMap<PendingId, Pending>,
    next_pending: PendingId,
    accounts: Accounts,
    connections: BTreeMap<ConnectionId, IpcConnection>,
    /// Invariant: names exactly the connections whose announcement was accepted.
    announced: BTreeMap<ConnectionId, Announcement>,
    by_user: HashMap<AccountId, Vec<ConnectionId>>,
    by_session: HashMap<SessionId, Vec<ConnectionId>>,
    /// Set when the server stops: whoever registers later is asked to close at once.
    stopping: Option<Instant>,
    open_at_stop: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct PendingId(u64);

#[derive(Debug)]
struct Pending {
    speech: Speech,
    /// Fires when the connection has lost its place to a newcomer.
    gives_way: CancellationToken,
}

/// Whether a peer has sent anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Silent,
    Heard,
}

/// The place of a connection that is not identified yet; given back when dropped.
#[derive(Debug)]
pub(crate) struct PendingPlace {
    manager: ConnectionManager,
    id: PendingId,
    gives_way: CancellationToken,
}

/// The place of a connection whose account is known; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    manager: ConnectionManager,
    key: AccountKey,
    account: Arc<Account>,
}

/// An identified connection; forgotten when dropped, whatever ends its task.
#[derive(Debug)]
pub(crate) struct Registration {
    manager: ConnectionManager,
    connection: IpcConnection,
    ended: Option<Ended>,
    /// Given back behind everything else.
    _place: Place,
}

impl ConnectionManager {
    pub(crate) fn new(limits: ServerLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                registry: Mutex::default(),
                events: broadcast::Sender::new(limits.observer_backlog),
                limits,
                next_id: AtomicU64::new(1),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Every section leaves the registry whole, so a panic elsewhere changes nothing.
        self.shared
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    // --- views -----------------------------------------------------------------------------------

    /// Every identified connection, announced or not.
    #[must_use]
    pub fn all(&self) -> Vec<IpcConnection> {
        self.lock().connections.values().cloned().collect()
    }

    /// The announced connections: those that a broadcast reaches.
    #[must_use]
    pub fn announced(&self) -> Vec<IpcConnection> {
        let registry = self.lock();
        registry.addressable(registry.announced.keys())
    }

    /// The connection with this id, while it is active.
    #[must_use]
    pub fn by_id(&self, id: ConnectionId) -> Option<IpcConnection> {
        self.lock().connections.get(&id).cloned()
    }

    /// The announced connections of a user.
    #[must_use]
    pub fn by_user(&self, user: &AccountId) -> Vec<IpcConnection> {
        let registry = self.lock();
        registry.addressable(registry.by_user.get(user).into_iter().flatten())
    }

    /// The announced connections of one session of a user, as the agents named it. Agents of another
    /// user may name the same one, and are not among them.
    #[must_use]
    pub fn by_session(&self, user: &AccountId, session: &SessionId) -> Vec<IpcConnection> {
        let registry = self.lock();
        let mut found =
            registry.addressable(registry.by_session.get(session).into_iter().flatten());
        found.retain(|connection| connection.account() == user);
        found
    }

    /// How many connections there are, by state.
    #[must_use]
    pub fn counts(&self) -> ConnectionCounts {
        let registry = self.lock();
        let mut counts = ConnectionCounts {
            pending: registry.pending.len(),
            ..Default::default()
        };
        for connection in registry.connections.values() {
            match connection.current_state() {
                ConnectionState::Identified => counts.identified += 1,
                ConnectionState::Announced => counts.announced += 1,
                ConnectionState::Closing | ConnectionState::Gone(_) => counts.closing += 1,
            }
        }
        counts
    }

    /// Connections and disconnections from now on.
    #[must_use]
    pub fn events(&self) -> EventStream {
        EventStream::new(self.shared.events.subscribe())
    }

    // --- for the server --------------------------------------------------------------------------

    /// A place for a newcomer whom nobody knows yet. Where all are taken the one that has been
    /// silent for longest gives way: whoever means it sends its first bytes at once.
    pub(crate) fn admit_unknown(&self) -> Result<PendingPlace, NoPlace> {
        let mut registry = self.lock();
        if registry.pending.len() >= self.shared.limits.pending_connections {
            let silent = |(_, pending): &(&PendingId, &Pending)| pending.speech == Speech::Silent;
            let oldest = registry.pending.iter().find(silent).map(|(id, _)| *id);
            let Some(oldest) = oldest.and_then(|id| registry.forget_pending(id)) else {
                return Err(NoPlace::PendingConnections);
            };
            oldest.gives_way.cancel();
        }
        let id = registry.next_pending;
        registry.next_pending = PendingId(id.0 + 1);
        let gives_way = CancellationToken::new();
        registry.pending.insert(
            id,
            Pending {
                speech: Speech::Silent,
                gives_way: gives_way.clone(),
            },
        );
        gauge!("ipc_connections", "state" => "pending").increment(1);
        Ok(PendingPlace {
            manager: self.clone(),
            id,
            gives_way,
        })
    }

    /// A place for a newcomer whose account is known.
    pub(crate) fn admit(&self, peer: &PeerIdentity) -> Result<Place, NoPlace> {
        let limits = &self.shared.limits;
        let (key, account) = self.lock().accounts.take_place(peer, limits)?;
        Ok(Place {
            manager: self.clone(),
            key,
            account,
        })
    }

    pub(crate) fn next_id(&self) -> ConnectionId {
        ConnectionId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The peer is known, and there is a place for it.
    pub(crate) fn register(&self, place: Place, connection: &IpcConnection) -> Registration {
        let mut registry = self.lock();
        registry
            .connections
            .insert(connection.id(), connection.clone());
        if let Some(deadline) = registry.stopping {
            request_stop(connection, deadline);
        }
        drop(registry);
        gauge!("ipc_connections", "state" => "identified").increment(1);
        self.publish(ConnectionEvent::Connected {
            connection: connection.clone(),
        });
        Registration {
            manager: self.clone(),
            connection: connection.clone(),
            ended: None,
            _place: place,
        }
    }

    pub(crate) fn announce(&self, connection: &IpcConnection, announcement: Announcement) {
        connection.set_announcement(announcement.clone());
        let mut registry = self.lock();
        let id = connection.id();
        if !registry.connections.contains_key(&id) {
            return;
        }
        let first = registry.forget_announcement(connection).is_none();
        registry
            .by_user
            .entry(connection.peer().account().clone())
            .or_default()
            .push(id);
        registry
            .by_session
            .entry(announcement.session_id.clone())
            .or_default()
            .push(id);
        registry.announced.insert(id, announcement.clone());
        connection.advance_state(ConnectionState::Announced);
        drop(registry);
        if first {
            gauge!("ipc_connections", "state" => "identified").decrement(1);
            gauge!("ipc_connections", "state" => "announced").increment(1);
        }
        self.publish(ConnectionEvent::Announced {
            connection: connection.clone(),
            announcement,
        });
    }

    fn remove(&self, connection: &IpcConnection, ended: Ended) {
        let mut registry = self.lock();
        if registry.connections.remove(&connection.id()).is_none() {
            return;
        }
        let announced = registry.forget_announcement(connection).is_some();
        connection.advance_state(ConnectionState::Gone(ended.reason.clone()));
        drop(registry);
        let state = if announced { "announced" } else { "identified" };
        gauge!("ipc_connections", "state" => state).decrement(1);
        self.publish(ConnectionEvent::Disconnected {
            connection: connection.clone(),
            reason: ended.reason,
            unsent_messages: ended.unsent,
            unhandled_messages: ended.unhandled,
        });
    }

    /// Asks every connection, present and to come, to end by the deadline.
    pub(crate) fn stop(&self, deadline: Instant) {
        let mut registry = self.lock();
        registry.stopping = Some(deadline);
        registry.open_at_stop = registry.connections.len();
        for connection in registry.connections.values() {
            request_stop(connection, deadline);
        }
    }

    /// How many connections were identified and not gone when the stop began.
    pub(crate) fn open_at_stop(&self) -> usize {
        self.lock().open_at_stop
    }

    pub(super) fn publish(&self, event: ConnectionEvent) {
        // Nobody has to listen.
        drop(self.shared.events.send(event));
    }
}

fn request_stop(connection: &IpcConnection, deadline: Instant) {
    let reason = DisconnectReason::Stopped;
    connection
        .outbound()
        .request_close(CloseRequest { reason, deadline });
}

impl Registry {
    /// `None` when it has been forgotten before.
    fn forget_pending(&mut self, id: PendingId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        gauge!("ipc_connections", "state" => "pending").decrement(1);
        Some(pending)
    }

    fn addressable<'a>(&self, ids: impl Iterator<Item = &'a ConnectionId>) -> Vec<IpcConnection> {
        ids.filter_map(|id| self.connections.get(id))
            .filter(|connection| connection.is_announced())
            .cloned()
            .collect()
    }

    fn forget_announcement(&mut self, connection: &IpcConnection) -> Option<Announcement> {
        let id = connection.id();
        let announcement = self.announced.remove(&id)?;
        forget(&mut self.by_user, connection.peer().account(), id);
        forget(&mut self.by_session, &announcement.session_id, id);
        Some(announcement)
    }
}

fn forget<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, Vec<ConnectionId>>,
    key: &K,
    id: ConnectionId,
) {
    if let Some(ids) = index.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

impl PendingPlace {
    /// Fires when the place has been given to somebody else.
    pub(crate) async fn lost(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Waiting for PendingPlace {
    fn heard(&self) {
        if let Some(pending) = self.manager.lock().pending.get_mut(&self.id) {
            pending.speech = Speech::Heard;
        }
    }
}

impl Drop for PendingPlace {
    fn drop(&mut self) {
        self.manager.lock().forget_pending(self.id);
    }
}

impl Place {
    /// What the connections of the account share.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.manager.lock().accounts.give_back(&self.key);
    }
}

impl Registration {
    pub(crate) fn end(mut self, ended: Ended) {
        self.ended = Some(ended);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let ended = self.ended.take().unwrap_or_else(|| {
            let reason = DisconnectReason::Aborted;
            let unsent = self.connection.outbound().finish(&reason);
            Ended {
                reason,
                unhandled: 0,
                unsent,
            }
        });
        self.manager.remove(&self.connection, ended);
    }
}
