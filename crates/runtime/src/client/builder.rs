//! How a client connects.

use std::sync::Arc;
use std::time::Duration;

use migration_ipc_protocol::hello::{Capability, Hello, PeerLimits, Role};
use migration_ipc_protocol::{EncodeError, MessagePayload, OutboxId};
use migration_ipc_transport::{
    ConnectError as TransportError, ConnectOptions, Endpoint, Stream, Trust, connect_with,
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::IpcClient;
use crate::config::{ConfigError, ConnectionConfig, MAX_TIMEOUT};
use crate::connection::{DisconnectReason, EncodedAnnouncement, Shelf};
use crate::dispatch::MessageDispatcher;
use crate::store::StoreHandle;

/// How long connecting may take, unless set otherwise.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a client did not connect.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No endpoint was given.
    #[error("the client has no endpoint: give it one with `endpoint`")]
    NoEndpoint,
    /// A limit or timeout cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The announcement cannot be encoded.
    #[error("the announcement cannot be sent: {0}")]
    Announcement(#[from] EncodeError),
    /// The service cannot be reached, or is not one to be trusted.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The source of connections, where it is not an endpoint, has none.
    #[error("no connection: {0}")]
    Source(std::io::Error),
    /// The service was reached, and ended the connection before it was set up; or it refused us.
    #[error("the service ended the connection: {0}")]
    Ended(DisconnectReason),
    /// The service was reached and is not set up in time.
    #[error("the connection was not set up within {0:?}")]
    TimedOut(Duration),
}

/// Whether a client says hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Negotiating,
    Plain,
}

/// Sets up an [`IpcClient`].
#[derive(Debug)]
#[must_use = "a client is connected by `connect`"]
pub struct IpcClientBuilder {
    pub(super) dispatcher: MessageDispatcher,
    endpoint: Option<Endpoint>,
    transport: ConnectOptions,
    timeout: Duration,
    pub(super) config: ConnectionConfig,
    role: Role,
    speech: Speech,
    announcement: Option<Result<EncodedAnnouncement, EncodeError>>,
    pub(super) store: Option<StoreHandle>,
    outbox: Option<OutboxId>,
    pub(super) shelf: Option<Arc<Shelf>>,
}

impl IpcClientBuilder {
    pub(super) fn new(dispatcher: MessageDispatcher) -> Self {
        Self {
            dispatcher,
            endpoint: None,
            transport: ConnectOptions::default(),
            timeout: DEFAULT_CONNECT_TIMEOUT,
            config: ConnectionConfig::default(),
            role: Role::Agent,
            speech: Speech::Negotiating,
            announcement: None,
            store: None,
            outbox: None,
            shelf: None,
        }
    }

    /// Where the service is.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Which account may serve beside those that always may; nobody else unless set. Clients of a
    /// service in development mode need it on Windows. See
    /// [`transport::connect`](crate::transport::connect).
    pub fn trust(mut self, trust: Trust) -> Self {
        self.transport = self.transport.trust(trust);
        self
    }

    /// What the client wants to be: an agent unless set. The service lets only administrators
    /// and its own account be operators.
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Announces the client, as agents do: sent with the hello, before anything else.
    pub fn announce<P: MessagePayload>(self, announcement: &P) -> Self {
        let announcement = EncodedAnnouncement::new(self.config.clock, announcement);
        self.announce_encoded(announcement)
    }

    pub(crate) fn announce_encoded(
        mut self,
        announcement: Result<EncodedAnnouncement, EncodeError>,
    ) -> Self {
        self.announcement = Some(announcement);
        self
    }

    /// Says which outbox the client's durable messages come from.
    pub(crate) fn outbox(mut self, outbox: OutboxId) -> Self {
        self.outbox = Some(outbox);
        self
    }

    /// Where what had arrived of bodies is kept for the next connection.
    pub(crate) fn shelf(mut self, shelf: Arc<Shelf>) -> Self {
        self.shelf = Some(shelf);
        self
    }

    /// How long connecting may take, the hello included; 30 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Limits and timeouts of the connection.
    pub fn connection_config(mut self, config: ConnectionConfig) -> Self {
        self.config = config;
        self
    }

    /// Keeps the effects of handlers in this store, and the ledger of the service's mail: mail that
    /// comes again is not handled again.
    pub fn store(mut self, store: StoreHandle) -> Self {
        self.store = Some(store);
        self
    }

    /// Says no hello: the connection is that of a plain peer, with neither correlated replies nor
    /// credit. For tests, and for services known to be plain.
    pub fn without_hello(self) -> Self {
        self.speech(Speech::Plain)
    }

    pub(crate) fn speech(mut self, speech: Speech) -> Self {
        self.speech = speech;
        self
    }

    /// Connects. On return it is settled whether the service is a plain or a new one.
    ///
    /// Cancel safe: dropping the future drops the connection.
    ///
    /// # Errors
    /// When the service cannot be reached in time or refuses the client.
    pub async fn connect(mut self) -> Result<IpcClient, ConnectError> {
        let endpoint = self.endpoint.take().ok_or(ConnectError::NoEndpoint)?;
        let deadline = Instant::now() + self.timeout;
        let stream = connect_with(&endpoint, self.timeout, &self.transport).await?;
        self.set_up(stream, deadline).await
    }

    /// Connects over a stream that exists already: one in memory, or one of your own.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_over(
        self,
        stream: impl Stream + 'static,
    ) -> Result<IpcClient, ConnectError> {
        let deadline = Instant::now() + self.timeout;
        self.set_up(Box::new(stream), deadline).await
    }

    pub(crate) async fn set_up(
        mut self,
        stream: Box<dyn Stream>,
        deadline: Instant,
    ) -> Result<IpcClient, ConnectError> {
        self.config.validate()?;
        let timeout = self.timeout;
        let announcement = self.announcement.take().transpose()?;
        let hello = match self.speech {
            Speech::Negotiating => {
                let credit = self.config.limits.inbox_messages;
                let credit = u32::try_from(credit).unwrap_or(u32::MAX);
                let mut hello = Hello::new(self.role.clone(), credit);
                if self.store.is_some() {
                    hello.capabilities = hello.capabilities.with(Capability::Durable);
                }
                if let Some(outbox) = self.outbox {
                    hello = hello.with_outbox(outbox);
                }
                hello.capabilities = hello.capabilities.intersection(self.config.capabilities);
                hello.schema = Some(self.config.schema.into());
                let payload = self.config.limits.chunked_bytes as u64;
                if payload == 0 {
                    hello.capabilities = hello.capabilities.without(Capability::Chunks);
                }
                if hello.capabilities.contains(Capability::Chunks) {
                    hello.limits = Some(PeerLimits { payload });
                }
                Some(hello)
            }
            Speech::Plain => None,
        };
        let starting = IpcClient::start(Arc::new(self), stream, hello, announcement);
        match timeout_at(deadline, starting).await {
            Ok(client) => client,
            Err(_) => Err(ConnectError::TimedOut(timeout)),
        }
    }
}
