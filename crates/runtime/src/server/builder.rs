//! How a server is set up.

use std::sync::Arc;

use migration_ipc_transport::{BindError, BindOptions, Endpoint, Listener, bind};
use thiserror::Error;

use super::IpcServer;
use crate::access::{Policy, PolicyError, Table};
use crate::audit::{AuditSink, TracingAudit};
use crate::config::{ConfigError, ConnectionConfig, ServerLimits};
use crate::connection::{AccountResolver, OsAccounts};
use crate::dispatch::MessageDispatcher;
use crate::encryption::Encryption;
use crate::store::StoreHandle;

/// Why a server did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// Neither an endpoint nor a listener was given.
    #[error("the server has no endpoint: give it one with `endpoint` or `listener`")]
    NoEndpoint,
    /// A limit or timeout cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The policy cannot be meant.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The endpoint cannot be served.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Sets up an [`IpcServer`].
#[derive(Debug)]
#[must_use = "a server is started by `start`"]
pub struct IpcServerBuilder {
    pub(super) dispatcher: MessageDispatcher,
    endpoints: Vec<(Endpoint, BindOptions)>,
    listeners: Vec<Box<dyn Listener>>,
    pub(super) config: ConnectionConfig,
    pub(super) limits: ServerLimits,
    pub(super) resolver: Arc<dyn AccountResolver>,
    pub(super) store: Option<StoreHandle>,
    policy: Policy,
    pub(super) encryption: Option<Arc<Encryption>>,
    pub(super) audit: Arc<dyn AuditSink>,
}

impl IpcServerBuilder {
    pub(super) fn new(dispatcher: MessageDispatcher) -> Self {
        Self {
            dispatcher,
            endpoints: Vec::new(),
            listeners: Vec::new(),
            config: ConnectionConfig::default(),
            limits: ServerLimits::default(),
            resolver: Arc::new(OsAccounts),
            store: None,
            policy: Policy::default(),
            encryption: None,
            audit: Arc::new(TracingAudit),
        }
    }

    /// Serves this endpoint with the options of production. May be called several times.
    pub fn endpoint(self, endpoint: Endpoint) -> Self {
        self.endpoint_with(endpoint, BindOptions::default())
    }

    /// Serves this endpoint with other options.
    pub fn endpoint_with(mut self, endpoint: Endpoint, options: BindOptions) -> Self {
        self.endpoints.push((endpoint, options));
        self
    }

    /// Serves a listener that exists already: one in memory, or one of your own.
    pub fn listener(mut self, listener: impl Listener + 'static) -> Self {
        self.listeners.push(Box::new(listener));
        self
    }

    /// Limits and timeouts of each connection.
    pub fn connection_config(mut self, config: ConnectionConfig) -> Self {
        self.config = config;
        self
    }

    /// Limits of the server as a whole.
    pub fn limits(mut self, limits: ServerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Who knows which account a name means; the operating system unless set.
    pub fn account_resolver(mut self, resolver: impl AccountResolver) -> Self {
        self.resolver = Arc::new(resolver);
        self
    }

    /// Keeps effects, mail and the ledger of durable messages in this store. Without one, no client
    /// can send durable messages, and handlers that return effects fail.
    ///
    /// Stop the server before its store is closed: its handlers' effects are committed by then.
    pub fn store(mut self, store: StoreHandle) -> Self {
        self.store = Some(store);
        self
    }

    /// Who may send what; [`Policy::migration`] unless set. It is recorded at the start and does not
    /// change afterwards.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Encrypts the connections of clients that can do so too, or of all of them: see
    /// [`Encryption`].
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = Some(Arc::new(encryption));
        self
    }

    /// Where the records of the audit log go; to `tracing` unless set.
    pub fn audit(mut self, sink: impl AuditSink) -> Self {
        self.audit = Arc::new(sink);
        self
    }

    /// Binds the endpoints and starts to serve them. On return clients can connect.
    ///
    /// Cancel safe: dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// When an endpoint cannot be served, a limit cannot work, or the policy cannot be meant.
    pub async fn start(mut self) -> Result<IpcServer, StartError> {
        self.config.validate()?;
        self.limits.validate()?;
        if let Some(encryption) = &self.encryption {
            encryption.validate(&self.config)?;
        }
        let access = Table::new(std::mem::take(&mut self.policy), &self.dispatcher)?;
        let mut listeners = std::mem::take(&mut self.listeners);
        for (endpoint, options) in &self.endpoints {
            listeners.push(bind(endpoint, options).await?);
        }
        if listeners.is_empty() {
            return Err(StartError::NoEndpoint);
        }
        Ok(IpcServer::start(self, access, listeners))
    }
}
