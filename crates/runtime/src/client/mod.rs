//! The agent's side: one connection to the service.

mod builder;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use builder::Speech;
pub use builder::{ConnectError, DEFAULT_CONNECT_TIMEOUT, IpcClientBuilder};
use futures_util::FutureExt as _;
use migration_ipc_protocol::hello::CapabilitySet;
use migration_ipc_protocol::{
    Announcement, Envelope, FrameDecoder, IpcMessage, MessageId, MessagePayload, Request,
    StreamingRequest,
};
use migration_ipc_transport::Stream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

use crate::audit::{Audit, TracingAudit};
use crate::config::AccountLimits;
use crate::connection::{
    Account, Answer, AnswerResult, Batch, ConnectionId, ConnectionState, DisconnectReason, Driver,
    Ended, IpcConnection, LargeSend, Observer, OsAccounts, PendingRequest, PendingStream, Preamble,
    SendError, Session, Shelf, Side, Surroundings,
};
use crate::dispatch::MessageDispatcher;
use crate::telemetry::Telemetry;

/// What a client found its service to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// It speaks the plain protocol only.
    Plain,
    /// It said hello; both can do this.
    New(CapabilitySet),
}

/// A client: one connection to a service.
///
/// ```no_run
/// use migration_ipc::messages::{AgentStarted, BackupRequest, UserAction};
/// use migration_ipc::{Endpoint, IpcClient, MessageDispatcher};
///
/// async fn on_request(request: BackupRequest) {
///     println!("back up {:?} until {}", request.categories, request.deadline);
/// }
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = IpcClient::builder(MessageDispatcher::builder(()).handle(on_request).build()?)
///     .endpoint(Endpoint::client_default()?)
///     .announce(&AgentStarted::new("", "1.0.0", "1"))
///     .connect()
///     .await?;
/// client.send(UserAction::new("", "opened")).await?;
/// println!("ended: {}", client.closed().await);
/// # Ok(()) }
/// ```
///
/// Dropping a client closes its connection in the background, in an orderly way.
#[derive(Debug)]
pub struct IpcClient {
    connection: IpcConnection,
    kind: ServiceKind,
    driver: JoinHandle<()>,
    announced: Option<oneshot::Receiver<AnswerResult>>,
}

impl IpcClient {
    /// Begins a client whose incoming messages go to this dispatcher.
    pub fn builder(dispatcher: MessageDispatcher) -> IpcClientBuilder {
        IpcClientBuilder::new(dispatcher)
    }

    async fn start(
        setup: Arc<IpcClientBuilder>,
        stream: Box<dyn Stream>,
        preamble: Preamble,
    ) -> Result<Self, ConnectError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let service = stream
            .identify()
            .await
            .map_err(|error| ConnectError::Ended(DisconnectReason::from(error)))?;
        let connection = IpcConnection::new(
            ConnectionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            Side::Client,
            service,
            Arc::new(Account::unlimited("service", &AccountLimits::default())),
            Arc::new(Surroundings {
                config: Arc::new(setup.config),
                resolver: Arc::new(OsAccounts),
                telemetry: Telemetry::new(setup.dispatcher.message_types()),
                store: setup.store.clone(),
                access: None,
                audit: Audit::new(Arc::new(TracingAudit), setup.config.clock),
                shelf: setup
                    .shelf
                    .clone()
                    .unwrap_or_else(|| Arc::new(Shelf::none())),
                encryption: setup.encryption.clone(),
                sensitive: setup.sensitive.clone(),
            }),
        );
        let announced = preamble.announcement.as_ref().map(|announcement| {
            let id = announcement.id.clone();
            let outbound = connection.outbound();
            outbound.track(id, announcement.message_type)
        });
        let (settled, mut kind) = watch::channel(None);
        let mut session = Session::new(
            connection.clone(),
            setup.dispatcher.clone(),
            Arc::new(ClientObserver { settled }),
            Instant::now(),
        );
        session.begin(preamble, Instant::now());
        let driver = Driver::new(
            stream,
            FrameDecoder::new(),
            session,
            connection.clone(),
            None,
        );
        let end = EndOfConnection {
            connection: connection.clone(),
            ended: None,
        };
        let span = tracing::info_span!(parent: None, "connection", id = %connection.id());
        let running = driver.run().instrument(span);
        let mut client = Self {
            driver: tokio::spawn(running.map(|ended| end.finish(ended))),
            connection,
            kind: ServiceKind::Plain,
            announced,
        };
        // The sender lives in the driver: if that ends first, the connection has ended.
        match kind
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|kind| *kind)
        {
            Some(kind) => {
                client.kind = kind;
                Ok(client)
            }
            None => Err(ConnectError::Ended(client.closed().await)),
        }
    }

    /// What the service is.
    #[must_use]
    pub fn service_kind(&self) -> ServiceKind {
        self.kind
    }

    /// The connection, to be kept where messages are sent from.
    #[must_use]
    pub fn connection(&self) -> &IpcConnection {
        &self.connection
    }

    /// Watches the state of the connection.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.connection.state()
    }

    /// As [`IpcConnection::send`].
    ///
    /// # Errors
    /// As [`IpcConnection::send`].
    pub fn send<P: MessagePayload>(
        &self,
        payload: P,
    ) -> impl Future<Output = Result<MessageId, SendError>> {
        self.connection.send(payload)
    }

    /// As [`IpcConnection::send_acknowledged`].
    ///
    /// # Errors
    /// As [`IpcConnection::send_acknowledged`].
    pub fn send_acknowledged<P: MessagePayload>(
        &self,
        payload: P,
    ) -> impl Future<Output = Result<Answer, SendError>> {
        self.connection.send_acknowledged(payload)
    }

    /// As [`IpcConnection::request`].
    ///
    /// # Errors
    /// As [`IpcConnection::request`].
    pub fn request<P: Request>(&self, payload: P) -> PendingRequest<P> {
        self.connection.request(payload)
    }

    /// As [`IpcConnection::request_stream`].
    ///
    /// # Errors
    /// As [`IpcConnection::request_stream`].
    pub fn request_stream<P: StreamingRequest>(&self, payload: P) -> PendingStream<P> {
        self.connection.request_stream(payload)
    }

    /// As [`IpcConnection::send_large`].
    ///
    /// # Errors
    /// As [`IpcConnection::send_large`].
    pub fn send_large<P: MessagePayload>(&self, payload: P) -> Result<LargeSend, SendError> {
        self.connection.send_large(payload)
    }

    /// As [`IpcConnection::send_batch`].
    ///
    /// # Errors
    /// As [`IpcConnection::send_batch`].
    pub async fn send_batch(
        &self,
        batch: Batch,
    ) -> Result<Vec<Result<Answer, SendError>>, SendError> {
        self.connection.send_batch(batch).await
    }

    /// As [`IpcConnection::send_message`].
    ///
    /// # Errors
    /// As [`IpcConnection::send_message`].
    pub async fn send_message(&self, message: IpcMessage) -> Result<(), SendError> {
        self.connection.send_message(message).await
    }

    /// Waits for the service's answer to the announcement. A message that it answers with (the
    /// work that is pending) goes to its handler.
    ///
    /// A plain service that answers with a message does not say that it does, so this resolves as
    /// [`SendError::Unanswered`] then. Cancel safe: the answer is there for the next call.
    ///
    /// # Errors
    /// [`SendError::Rejected`] when the service refused it; otherwise what is known.
    pub async fn announced(&mut self) -> Result<(), SendError> {
        match &mut self.announced {
            None => Ok(()),
            Some(answer) => {
                let lost = Err(SendError::Lost(DisconnectReason::Aborted));
                let answer = answer.await.unwrap_or(lost);
                self.announced = None;
                answer.map(drop)
            }
        }
    }

    /// Waits for the end of the connection. Cancel safe.
    pub async fn closed(&self) -> DisconnectReason {
        let mut state = self.connection.state();
        let gone = state
            .wait_for(|state| matches!(state, ConnectionState::Gone(_)))
            .await;
        match gone.as_deref() {
            Ok(ConnectionState::Gone(reason)) => reason.clone(),
            Ok(_) | Err(_) => DisconnectReason::Aborted,
        }
    }

    /// Ends the connection in an orderly way: see [`IpcConnection::close`].
    ///
    /// Cancel safe: the connection ends all the same.
    pub async fn disconnect(mut self) -> DisconnectReason {
        self.connection.close();
        if let Err(error) = (&mut self.driver).await {
            tracing::error!(%error, "the task of a connection failed");
        }
        self.closed().await
    }
}

impl Drop for IpcClient {
    fn drop(&mut self) {
        self.connection.close();
    }
}

/// Tells watchers of the end, whatever ends the task.
struct EndOfConnection {
    connection: IpcConnection,
    ended: Option<Ended>,
}

impl EndOfConnection {
    fn finish(mut self, ended: Ended) {
        self.ended = Some(ended);
    }
}

impl Drop for EndOfConnection {
    fn drop(&mut self) {
        let (reason, unsent) = match self.ended.take() {
            Some(ended) => (ended.reason, ended.unsent),
            None => {
                let unsent = self
                    .connection
                    .outbound()
                    .finish(&DisconnectReason::Aborted);
                (DisconnectReason::Aborted, unsent)
            }
        };
        self.connection
            .telemetry()
            .disconnected(reason.label(), unsent);
        tracing::info!(connection = %self.connection.id(), %reason, unsent, "disconnected");
        self.connection.advance_state(ConnectionState::Gone(reason));
    }
}

struct ClientObserver {
    settled: watch::Sender<Option<ServiceKind>>,
}

impl Observer for ClientObserver {
    fn announced(&self, _connection: &IpcConnection, _announcement: Announcement) {}

    fn wants_messages(&self) -> bool {
        false
    }

    fn received(&self, _connection: &IpcConnection, _envelope: &Envelope<'_>) {}

    fn negotiated(&self, capabilities: Option<CapabilitySet>) {
        let kind = capabilities.map_or(ServiceKind::Plain, ServiceKind::New);
        self.settled.send_replace(Some(kind));
    }
}
