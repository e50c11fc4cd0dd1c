//! How a client connects.

use std::sync::Arc;
use std::time::Duration;

use migration_ipc_crypto::HandshakeError;
use migration_ipc_protocol::hello::{Capability, Handshake, Hello, PeerLimits, Role};
use migration_ipc_protocol::{EncodeError, MessagePayload, OutboxId};
use migration_ipc_transport::{
    ConnectError as TransportError, ConnectOptions, Endpoint, Stream, Trust, connect_with,
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::IpcClient;
use crate::config::{ConfigError, ConnectionConfig, MAX_TIMEOUT, SensitivePolicy};
use crate::connection::{
    DisconnectReason, EncodedAnnouncement, Offer, Preamble, SensitiveTypes, Shelf,
};
use crate::dispatch::MessageDispatcher;
use crate::encryption::Encryption;
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
    /// The handshake cannot be begun: the provider of the keyring lacks something.
    #[error("encryption cannot be begun: {0}")]
    Encryption(#[from] HandshakeError),
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
    pub(super) encryption: Option<Arc<Encryption>>,
    pub(super) sensitive: SensitiveTypes,
    outbox: Option<OutboxId>,
    pub(super) shelf: Option<Arc<Shelf>>,
}

impl IpcClientBuilder {
    pub(super) fn new(dispatcher: MessageDispatcher) -> Self {
        Self {
            sensitive: SensitiveTypes::new(dispatcher.sensitive_types()),
            dispatcher,
            endpoint: None,
            transport: ConnectOptions::default(),
            timeout: DEFAULT_CONNECT_TIMEOUT,
            config: ConnectionConfig::default(),
            role: Role::Agent,
            speech: Speech::Negotiating,
            announcement: None,
            store: None,
            encryption: None,
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

    /// Encrypts the connection, if the service can do so too; or in any case: see [`Encryption`].
    pub fn encryption(self, encryption: Encryption) -> Self {
        self.shared_encryption(Some(Arc::new(encryption)))
    }

    pub(crate) fn shared_encryption(mut self, encryption: Option<Arc<Encryption>>) -> Self {
        self.encryption = encryption;
        self
    }

    /// Shares what is known of sensitive types with other connections.
    pub(crate) fn sensitive_types(mut self, types: SensitiveTypes) -> Self {
        self.sensitive = types;
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
        self.check_encryption(announcement.as_ref())?;
        let mut offer = None;
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
                let capable = self.config.capabilities.contains(Capability::Encryption);
                if let Some(encryption) = self.encryption.as_ref().filter(|_| capable) {
                    let (opening, initiator) = encryption.keyring.initiate(encryption.suite)?;
                    hello.capabilities = hello.capabilities.with(Capability::Encryption);
                    hello.encryption = Some(Handshake {
                        protocol: Some(opening.protocol.to_string()),
                        key: Some(opening.key.to_string()),
                        message: opening.message.to_string(),
                    });
                    offer = Some(Offer::new(initiator, opening.key));
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
        let preamble = Preamble {
            hello,
            announcement: announcement.map(Box::new),
            encryption: offer,
        };
        let starting = IpcClient::start(Arc::new(self), stream, preamble);
        match timeout_at(deadline, starting).await {
            Ok(client) => client,
            Err(_) => Err(ConnectError::TimedOut(timeout)),
        }
    }

    /// Checks that what is demanded of the connection can be had of it.
    fn check_encryption(
        &self,
        announcement: Option<&EncodedAnnouncement>,
    ) -> Result<(), ConfigError> {
        let mut required = false;
        if let Some(encryption) = &self.encryption {
            encryption.validate(&self.config)?;
            required = encryption.is_required();
            if required && self.speech == Speech::Plain {
                let expected = "offered only, by a client that says no hello";
                return Err(ConfigError::new("encryption", expected));
            }
        }
        let guarded = self.config.sensitive == SensitivePolicy::Encrypted
            && announcement.is_some_and(|announcement| announcement.sensitive);
        if guarded && !required {
            let expected = "demanded by a client whose announcement is sensitive";
            return Err(ConfigError::new("encryption", expected));
        }
        Ok(())
    }
}
