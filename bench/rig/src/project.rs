//! The project as a peer: its real server, client and dispatcher, with everything switched on that
//! a user gets: identity, hello, credit, heartbeats, metrics and logs.

use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};
use migration_ipc::messages::{AgentStarted, BackupProgress};
use migration_ipc::transport::{BoxFuture, ResolveError};
use migration_ipc::{
    AccountId, AccountResolver, Answer, BindOptions, ConnectionConfig, Encryption, Endpoint,
    HandlerError, HandlerOptions, IpcClient, IpcServer, MessageDispatcher, Reply, ServerSender,
    ServiceMode, State, Trust,
};

use crate::durable::{self, ServerStore};
use crate::manifest::Manifest;
use crate::message::{Count, CountRequest, Question, Sample, Trigger, USER, consume, progress};
use crate::modes::Task;
use crate::peer::{Arrivals, Peer};
use crate::report::Report;

/// What the handlers of the server share.
#[derive(Debug, Default)]
struct Server {
    handled: AtomicU64,
    /// Set once the server has started.
    sender: OnceLock<ServerSender>,
    /// Whose the clients are; all of them are of one account.
    account: OnceLock<AccountId>,
}

impl Server {
    fn handle(&self, progress: &BackupProgress) {
        consume(progress);
        self.handled.fetch_add(1, Ordering::Relaxed);
    }
}

type Shared = State<Arc<Server>>;

async fn on_started(_: AgentStarted, peer: migration_ipc::Peer, State(server): Shared) {
    server.account.get_or_init(|| peer.account().clone());
}

async fn on_progress(progress: BackupProgress, State(server): Shared) {
    server.handle(&progress);
}

async fn on_sample(Sample(progress): Sample, State(server): Shared) {
    server.handle(&progress);
}

async fn on_count(_: CountRequest, State(server): Shared) -> Reply<Count> {
    let handled = server.handled.load(Ordering::Relaxed);
    Reply(Count { handled })
}

async fn on_question(Question(progress): Question, State(server): Shared) -> Reply<Count> {
    server.handle(&progress);
    let handled = server.handled.load(Ordering::Relaxed);
    Reply(Count { handled })
}

async fn on_manifest(manifest: Manifest, State(server): Shared) {
    manifest.consume();
    server.handled.fetch_add(1, Ordering::Relaxed);
}

async fn on_trigger(_: Trigger, State(server): Shared) -> Result<(), HandlerError> {
    if let Some(sender) = server.sender.get() {
        sender.broadcast(&Sample(progress(0)))?;
    }
    Ok(())
}

/// A server, and its store if it keeps one. It serves for as long as this lives.
#[derive(Debug)]
pub(crate) struct Serving {
    _server: IpcServer,
    _store: Option<ServerStore>,
}

/// Starts the server as it is unless configured.
pub(crate) async fn serve(endpoint: &str, store: bool) -> Result<Serving> {
    serve_with(endpoint, store, ConnectionConfig::default(), None).await
}

/// Starts the server.
pub(crate) async fn serve_with(
    endpoint: &str,
    store: bool,
    config: ConnectionConfig,
    encryption: Option<Encryption>,
) -> Result<Serving> {
    let shared = Arc::new(Server::default());
    let silent = HandlerOptions::new().silent();
    let dispatcher = MessageDispatcher::builder(Arc::clone(&shared))
        .handle(on_started)
        .handle(on_progress)
        .handle_with(silent, on_sample)
        .handle(on_count)
        .handle(on_question)
        .handle_with(silent, on_manifest)
        .handle_with(silent, on_trigger)
        .build()?;
    let options = BindOptions::new().mode(ServiceMode::Development);
    let mut builder = IpcServer::builder(dispatcher)
        .endpoint_with(Endpoint::parse(endpoint)?, options)
        .connection_config(config)
        .account_resolver(UserOfTheMessages(Arc::clone(&shared)));
    if let Some(encryption) = encryption {
        builder = builder.encryption(encryption);
    }
    let store = store.then(ServerStore::open).transpose()?;
    if let Some(store) = &store {
        builder = builder.store(store.owner.handle());
    }
    let server = builder.start().await?;
    shared.sender.get_or_init(|| server.sender());
    Ok(Serving {
        _server: server,
        _store: store,
    })
}

/// Says that the user whom the messages name is the clients' own account, so that names are
/// resolved and compared as those of a domain's users are.
#[derive(Debug)]
struct UserOfTheMessages(Arc<Server>);

impl AccountResolver for UserOfTheMessages {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let account = self.0.account.get().filter(|_| name == USER);
        Box::pin(ready(Ok(account.cloned())))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Client(Arc<IpcClient>);

impl From<IpcClient> for Client {
    fn from(client: IpcClient) -> Self {
        Self(Arc::new(client))
    }
}

impl Peer for Client {
    async fn connect(endpoint: &str, arrivals: Arrivals) -> Result<Self> {
        let on_sample = |Sample(progress): Sample, State(arrivals): State<Arrivals>| async move {
            consume(&progress);
            arrivals.add();
        };
        let dispatcher = MessageDispatcher::builder(arrivals)
            .handle_with(HandlerOptions::new().silent(), on_sample)
            .build()?;
        let mut client = IpcClient::builder(dispatcher)
            .endpoint(Endpoint::parse(endpoint)?)
            .trust(Trust::OwnAccount)
            .announce(&AgentStarted::new("", env!("CARGO_PKG_VERSION"), "rig"))
            .connect()
            .await?;
        client.announced().await?;
        Ok(client.into())
    }

    async fn call(&self, number: u64) -> Result<()> {
        self.0.send_acknowledged(progress(number)).await?;
        Ok(())
    }

    async fn send(&self, number: u64) -> Result<()> {
        self.0.send(Sample(progress(number))).await?;
        Ok(())
    }

    async fn handled(&self) -> Result<u64> {
        match self.0.send_acknowledged(CountRequest {}).await? {
            Answer::Replied(reply) => Ok(reply.payload::<Count>()?.handled),
            Answer::Handled => bail!("the server did not say how many messages it has handled"),
        }
    }

    async fn trigger(&self) -> Result<()> {
        self.0.send(Trigger {}).await?;
        Ok(())
    }

    async fn durable(task: Task) -> Result<Option<Report>> {
        durable::stream(task).await.map(Some)
    }
}
