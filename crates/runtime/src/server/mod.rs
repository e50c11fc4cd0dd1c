//! The service's side: listeners, connections, and sending to users.

mod acceptor;
mod accounts;
mod builder;
mod events;
mod mailbox;
mod manager;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use acceptor::StopReport;
pub use builder::{IpcServerBuilder, StartError};
pub use events::{ConnectionEvent, EventStream, MessageStream, Observed, ReceivedMessage};
pub use mailbox::{MailError, MailOptions, Mailbox, RequeueError, Requeued};
pub use manager::{ConnectionCounts, ConnectionManager};
use migration_ipc_protocol::MessagePayload;
use migration_ipc_protocol::hello::Role;
use migration_ipc_protocol::messages::SessionId;
use migration_ipc_transport::{AccountId, Listener};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::acceptor::{Service, accept};
use self::mailbox::{Postman, Receipts};
use crate::access::Table;
use crate::audit::{AUDIT_WINDOW, Audit, AuditEvent, AuditText};
use crate::clock::Clock;
use crate::config::MAX_TIMEOUT;
use crate::connection::{
    Account, ConnectionId, IpcConnection, SendError, SensitiveTypes, Shelf, Surroundings, pack,
};
use crate::dispatch::MessageDispatcher;
use crate::factory;
use crate::store::StoreHandle;
use crate::telemetry::Telemetry;

/// A server: accepts clients, dispatches their messages, sends to users.
///
/// ```no_run
/// use migration_ipc::{Endpoint, IpcServer, MessageDispatcher, Peer, messages::AgentStarted};
///
/// async fn on_started(started: AgentStarted, peer: Peer) {
///     println!("{} runs version {}", peer.account(), started.agent_version);
/// }
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let dispatcher = MessageDispatcher::builder(()).handle(on_started).build()?;
/// let server =
///     IpcServer::builder(dispatcher).endpoint(Endpoint::service_default()?).start().await?;
/// # server.stop(std::time::Duration::from_secs(5)).await;
/// # Ok(()) }
/// ```
///
/// Dropping a server stops it in the background, as [`stop`](Self::stop) does with
/// [`ConnectionTimeouts::drain`](crate::ConnectionTimeouts::drain) as its time.
#[derive(Debug)]
pub struct IpcServer {
    service: Arc<Service>,
    /// Owns the acceptors, which own the connections; ends when all of them have.
    supervisor: JoinHandle<StopReport>,
}

/// What became of a message to several connections. Nobody waits for a slow client: one whose
/// outbound lane is full does not get the message, and is counted.
#[derive(Debug, Clone, Default)]
pub struct Broadcast {
    /// Connections that accepted the message.
    pub accepted: Vec<ConnectionId>,
    /// Connections that did not, and why.
    pub refused: Vec<(ConnectionId, SendError)>,
}

impl Broadcast {
    /// Whether there was nobody to send to.
    #[must_use]
    pub fn had_no_recipient(&self) -> bool {
        self.accepted.is_empty() && self.refused.is_empty()
    }
}

impl IpcServer {
    /// Begins a server whose messages go to this dispatcher.
    pub fn builder(dispatcher: MessageDispatcher) -> IpcServerBuilder {
        IpcServerBuilder::new(dispatcher)
    }

    fn start(setup: IpcServerBuilder, access: Table, listeners: Vec<Box<dyn Listener>>) -> Self {
        let audit = Audit::new(setup.audit, setup.config.clock);
        audit.record(in_force(&access));
        let service = Arc::new(Service {
            surroundings: Arc::new(Surroundings {
                config: Arc::new(setup.config),
                resolver: setup.resolver,
                telemetry: Telemetry::new(setup.dispatcher.message_types()),
                store: setup.store,
                encryption: setup.encryption,
                sensitive: SensitiveTypes::new(setup.dispatcher.sensitive_types()),
                access: Some(Arc::new(access)),
                audit,
                shelf: Arc::new(Shelf::new(setup.config.timeouts.chunks_kept)),
            }),
            departed: Arc::new(Account::unlimited(
                "senders that are gone",
                &setup.limits.account,
            )),
            questions: Semaphore::new(setup.limits.identifications),
            manager: ConnectionManager::new(setup.limits),
            messages: broadcast::Sender::new(setup.limits.observer_backlog),
            observed: AtomicBool::new(false),
            dispatcher: setup.dispatcher,
            receipts: Receipts::default(),
            stopping: CancellationToken::new(),
        });
        let supervisor = tokio::spawn(supervise(Arc::clone(&service), listeners));
        Self {
            service,
            supervisor,
        }
    }

    /// The server's connections.
    #[must_use]
    pub fn connections(&self) -> &ConnectionManager {
        &self.service.manager
    }

    /// Connections and disconnections from now on.
    #[must_use]
    pub fn events(&self) -> EventStream {
        self.service.manager.events()
    }

    /// The messages that arrive from now on, beside their handlers. Control messages (hello,
    /// heartbeats, acknowledgments) are not among them, and one that is longer than a frame is without
    /// its payload.
    #[must_use]
    pub fn messages(&self) -> MessageStream {
        self.service.observed.store(true, Ordering::Relaxed);
        MessageStream::new(self.service.messages.subscribe())
    }

    /// A handle that sends and can be kept by handlers.
    #[must_use]
    pub fn sender(&self) -> ServerSender {
        ServerSender {
            manager: self.service.manager.clone(),
            clock: self.service.surroundings.config.clock,
            store: self.service.surroundings.store.clone(),
            receipts: self.service.receipts.clone(),
            service: Arc::downgrade(&self.service),
        }
    }

    /// As [`ServerSender::send_to_user`].
    ///
    /// # Errors
    /// As [`ServerSender::send_to_user`].
    pub fn send_to_user<P: MessagePayload>(
        &self,
        user: &AccountId,
        payload: P,
    ) -> Result<Broadcast, SendError> {
        self.sender().send_to_user(user, payload)
    }

    /// As [`ServerSender::send_to_session`].
    ///
    /// # Errors
    /// As [`ServerSender::send_to_session`].
    pub fn send_to_session<P: MessagePayload>(
        &self,
        user: &AccountId,
        session: &SessionId,
        payload: P,
    ) -> Result<Broadcast, SendError> {
        self.sender().send_to_session(user, session, payload)
    }

    /// As [`ServerSender::broadcast`].
    ///
    /// # Errors
    /// As [`ServerSender::broadcast`].
    pub fn broadcast<P: MessagePayload>(&self, payload: &P) -> Result<Broadcast, SendError> {
        self.sender().broadcast(payload)
    }

    /// Stops: accepts nobody, dispatches nothing more, lets handlers finish, writes what is
    /// queued, says goodbye, waits for the peers to close, and disconnects those that have not
    /// by the end of `timeout`. Handlers that are still at work then get
    /// [`ConnectionTimeouts::handler_grace`](crate::ConnectionTimeouts::handler_grace) to react
    /// to their cancellation.
    ///
    /// Cancel safe: the stop goes on; the report is lost.
    pub async fn stop(mut self, timeout: Duration) -> StopReport {
        self.begin_stop(timeout);
        (&mut self.supervisor).await.unwrap_or_else(|error| {
            tracing::error!(%error, "the server's task failed");
            StopReport::default()
        })
    }

    fn begin_stop(&self, timeout: Duration) {
        self.service
            .manager
            .stop(Instant::now() + timeout.min(MAX_TIMEOUT));
        self.service.stopping.cancel();
    }
}

impl Drop for IpcServer {
    fn drop(&mut self) {
        if !self.service.stopping.is_cancelled() {
            self.begin_stop(self.service.surroundings.config.timeouts.drain);
        }
    }
}

/// Serves every listener until the server stops.
async fn supervise(service: Arc<Service>, listeners: Vec<Box<dyn Listener>>) -> StopReport {
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        tracing::info!(endpoint = %listener.endpoint(), "listening");
        acceptors.spawn(accept(Arc::clone(&service), listener));
    }
    let postman = service.surroundings.store.clone().map(|store| {
        let postman = Arc::new(Postman {
            store,
            manager: service.manager.clone(),
            receipts: service.receipts.clone(),
            clock: service.surroundings.config.clock,
            stopping: service.stopping.clone(),
        });
        tokio::spawn(postman.run())
    });
    let mut report = StopReport::default();
    let mut look = interval(AUDIT_WINDOW);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            stopped = acceptors.join_next() => match stopped {
                Some(Ok(part)) => report.add(part),
                Some(Err(error)) => tracing::error!(%error, "an acceptor failed"),
                None => break,
            },
            _ = look.tick() => service.surroundings.audit.turn(),
        }
    }
    service.surroundings.audit.finish();
    if let Some(postman) = postman
        && let Err(error) = postman.await
    {
        tracing::error!(%error, "the delivery of mail failed");
    }
    report.connections = service.manager.open_at_stop();
    report
}

/// The record of a policy.
fn in_force(access: &Table) -> AuditEvent {
    let text = |name: &str| AuditText::new(name);
    let listed = |(role, types): &(Role, Vec<Box<str>>)| {
        let types = types.iter().map(|name| text(name)).collect();
        (text(role.as_str()), types)
    };
    AuditEvent::PolicyInForce {
        table: access.listing().iter().map(listed).collect(),
    }
}

/// Sends to the announced agents of a server. Cheap to clone; handlers may keep one in their
/// state.
#[derive(Debug, Clone)]
pub struct ServerSender {
    manager: ConnectionManager,
    clock: Clock,
    store: Option<StoreHandle>,
    receipts: Receipts,
    /// Weak, because handlers keep senders, and the service keeps handlers.
    service: Weak<Service>,
}

impl ServerSender {
    /// The server's connections.
    #[must_use]
    pub fn connections(&self) -> &ConnectionManager {
        &self.manager
    }

    /// Sends to every announced agent of a user. A `userId` in the payload that is the user's
    /// account is written as each agent announced it.
    ///
    /// # Errors
    /// [`SendError::Encode`] when the message cannot be encoded; what became of it at each
    /// connection is in the [`Broadcast`].
    pub fn send_to_user<P: MessagePayload>(
        &self,
        user: &AccountId,
        payload: P,
    ) -> Result<Broadcast, SendError> {
        send_to_each(self.manager.by_user(user), payload)
    }

    /// Sends to every announced agent of one session of a user. The user's agents chose the session's
    /// name, and those of another user may have chosen the same: they do not get the message.
    ///
    /// # Errors
    /// As [`send_to_user`](Self::send_to_user).
    pub fn send_to_session<P: MessagePayload>(
        &self,
        user: &AccountId,
        session: &SessionId,
        payload: P,
    ) -> Result<Broadcast, SendError> {
        send_to_each(self.manager.by_session(user, session), payload)
    }

    /// Sends the same message to every announced agent. It is encoded once.
    ///
    /// # Errors
    /// [`SendError::Encode`] when the message cannot be encoded.
    pub fn broadcast<P: MessagePayload>(&self, payload: &P) -> Result<Broadcast, SendError> {
        let mut frame = Vec::new();
        let id = factory::encode(self.clock, &mut frame, payload)?;
        let mut delivery = Broadcast::default();
        // Compressed once too, for all that can read that.
        pack(&frame, |frame| {
            for connection in self.manager.announced() {
                connection.sensitive_types().learn::<P>();
                match connection.try_send_frame::<P>(&id, frame) {
                    Ok(()) => delivery.accepted.push(connection.id()),
                    Err(error) => delivery.refuse(&connection, error),
                }
            }
        });
        Ok(delivery)
    }
}

impl Broadcast {
    fn refuse(&mut self, connection: &IpcConnection, error: SendError) {
        let reason = match &error {
            SendError::Full => "outbound_full",
            SendError::NotEncrypted => "not_encrypted",
            _ => "connection_ended",
        };
        connection.telemetry().refused(reason);
        tracing::warn!(connection = %connection.id(), %error, "a message was not delivered");
        self.refused.push((connection.id(), error));
    }
}

fn send_to_each<P: MessagePayload>(
    connections: Vec<IpcConnection>,
    mut payload: P,
) -> Result<Broadcast, SendError> {
    let addressed = payload.user_id_mut().map(|user| user.clone());
    let mut delivery = Broadcast::default();
    for connection in connections {
        if let (Some(user), Some(addressed)) = (payload.user_id_mut(), &addressed) {
            user.clone_from(addressed);
        }
        match connection.try_send_ref(&mut payload) {
            Ok(_) => delivery.accepted.push(connection.id()),
            Err(error @ SendError::Encode(_)) => return Err(error),
            Err(error) => delivery.refuse(&connection, error),
        }
    }
    Ok(delivery)
}
