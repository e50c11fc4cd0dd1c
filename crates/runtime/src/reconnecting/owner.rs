//! The one task of a reconnecting client: it connects, serves the connection to its end, waits, and
//! connects again; beside that it keeps the outbox.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use migration_ipc_protocol::hello::Role;
use migration_ipc_protocol::{EncodeError, OutboxId};
use migration_ipc_store::outbox::Outbox;
use migration_ipc_transport::{BoxFuture, ConnectOptions, Endpoint, Stream, connect_with};
use tokio::time::{Instant, sleep, timeout_at};

use super::backoff::{Backoff, Next, Tries};
use super::log;
use super::sending::serve;
use super::shared::Shared;
use super::state::{ConnectionTrouble, ReconnectState};
use crate::client::{ConnectError, IpcClient, Speech};
use crate::clock::Clock;
use crate::config::ConnectionConfig;
use crate::connection::{EncodedAnnouncement, SendError, SensitiveTypes, Shelf};
use crate::delivery::Execution;
use crate::dispatch::MessageDispatcher;
use crate::encryption::Encryption;
use crate::store::StoreHandle;

/// Where connections come from.
#[derive(Clone)]
pub(super) enum Source {
    Endpoint(Endpoint),
    Custom(Connector),
}

type Connecting = BoxFuture<'static, io::Result<Box<dyn Stream>>>;
type Connector = Arc<dyn Fn() -> Connecting + Send + Sync>;

type Announce = Arc<dyn Fn(Clock) -> Result<EncodedAnnouncement, EncodeError> + Send + Sync>;

/// How each connection begins.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) source: Source,
    pub(super) transport: ConnectOptions,
    pub(super) dispatcher: MessageDispatcher,
    pub(super) config: ConnectionConfig,
    pub(super) role: Role,
    pub(super) speech: Speech,
    pub(super) announce: Option<Announce>,
    pub(super) timeout: Duration,
    pub(super) outbox: Option<OutboxId>,
    pub(super) store: Option<StoreHandle>,
    pub(super) encryption: Option<Arc<Encryption>>,
    pub(super) sensitive: SensitiveTypes,
}

impl Setup {
    async fn connect(&self, shelf: &Arc<Shelf>) -> Result<IpcClient, ConnectError> {
        let deadline = Instant::now() + self.timeout;
        let stream = async {
            match &self.source {
                Source::Endpoint(endpoint) => {
                    Ok(connect_with(endpoint, self.timeout, &self.transport).await?)
                }
                Source::Custom(source) => source().await.map_err(ConnectError::Source),
            }
        };
        let stream = match timeout_at(deadline, stream).await {
            Ok(stream) => stream?,
            Err(_) => return Err(ConnectError::TimedOut(self.timeout)),
        };
        let mut client = IpcClient::builder(self.dispatcher.clone())
            .connection_config(self.config)
            .connect_timeout(self.timeout)
            .role(self.role.clone())
            .speech(self.speech)
            .shelf(Arc::clone(shelf))
            .shared_encryption(self.encryption.clone())
            .sensitive_types(self.sensitive.clone());
        if let Some(announce) = &self.announce {
            client = client.announce_encoded(announce(self.config.clock));
        }
        if let Some(outbox) = self.outbox {
            client = client.outbox(outbox);
        }
        if let Some(store) = &self.store {
            client = client.store(store.clone());
        }
        client.set_up(stream, deadline).await
    }
}

pub(super) struct Owner {
    pub(super) shared: Arc<Shared>,
    /// What had arrived of large messages of the service when a connection was lost.
    pub(super) shelf: Arc<Shelf>,
    pub(super) setup: Setup,
    pub(super) backoff: Backoff,
    pub(super) rng: Rng,
}

/// Runs a client until it is stopped.
pub(super) async fn run(mut owner: Owner, outbox: Option<Outbox>, execution: Execution) {
    let end = End(Arc::clone(&owner.shared));
    let shared = Arc::clone(&owner.shared);
    let shelf = Arc::clone(&owner.shelf);
    let keeping = async {
        if let Some(outbox) = outbox {
            log::keep(&shared, outbox, execution).await;
        }
    };
    let connecting = async {
        tokio::select! {
            biased;
            () = owner.keep_connected() => {}
            () = shared.watch_time() => {}
            () = shelf.watch() => {}
        }
        shared.close();
    };
    tokio::join!(Box::pin(connecting), Box::pin(keeping));
    drop(end);
}

/// Tells everybody of the end, whatever ends the task.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.close();
        self.0.finish();
    }
}

impl Owner {
    async fn keep_connected(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut tries = Tries::new(self.backoff);
        while shared.stop_deadline().is_none() {
            let attempt = tries.handle_try();
            shared
                .state
                .send_replace(ReconnectState::Connecting { attempt });
            let connected = tokio::select! {
                biased;
                connected = self.setup.connect(&self.shelf) => connected,
                () = shared.emptied_or_late() => return,
            };
            let (trouble, next) = match connected {
                Ok(client) => {
                    shared.lock().metrics.tried("connected");
                    let connected_at = Instant::now();
                    let trouble = self.converse(client).await;
                    let now = Instant::now();
                    (trouble, tries.handle_lost(connected_at, now, &mut self.rng))
                }
                Err(error) => {
                    shared.lock().metrics.tried("failed");
                    let trouble = ConnectionTrouble::Failed(Arc::new(error));
                    (trouble, tries.handle_failed(&mut self.rng))
                }
            };
            if shared.stop_deadline().is_some() {
                return;
            }
            match next {
                Next::TryAfter(delay) => {
                    tracing::info!(error = %trouble, attempt, ?delay, "not connected; trying again");
                    shared.state.send_replace(ReconnectState::Waiting {
                        next_try: Instant::now() + delay,
                        attempts: attempt,
                        error: trouble,
                    });
                    tokio::select! {
                        biased;
                        () = sleep(delay) => {}
                        () = shared.stop_requested() => return,
                    }
                }
                Next::GiveUp => {
                    tracing::warn!(error = %trouble, attempt, "not connected; giving up");
                    shared.give_up(&trouble);
                    shared
                        .state
                        .send_replace(ReconnectState::GaveUp { error: trouble });
                    shared.retry_requested().await;
                    tries = Tries::new(self.backoff);
                }
            }
        }
    }

    /// Serves a connection to its end.
    async fn converse(&mut self, mut client: IpcClient) -> ConnectionTrouble {
        let shared = Arc::clone(&self.shared);
        let connection = client.connection().clone();
        shared.connection.send_replace(Some(connection.clone()));
        shared.state.send_replace(ReconnectState::Connected {
            connection: connection.id(),
            service: client.service_kind(),
        });
        let refusal = {
            let mut serving = std::pin::pin!(serve(&shared, &connection, &mut self.rng));
            let mut announced = std::pin::pin!(client.announced());
            let mut stopping = std::pin::pin!(shared.emptied_or_late());
            let (mut refusal, mut answered, mut stopped) = (None, false, false);
            loop {
                tokio::select! {
                    biased;
                    () = &mut serving => break refusal,
                    answer = &mut announced, if !answered => {
                        answered = true;
                        if let Err(SendError::Rejected(rejection)) = answer {
                            refusal = Some(rejection.error);
                            connection.close();
                        }
                    }
                    () = &mut stopping, if !stopped => {
                        stopped = true;
                        connection.close();
                    }
                }
            }
        };
        let reason = client.closed().await;
        shared.connection.send_replace(None);
        match refusal {
            Some(text) => ConnectionTrouble::AnnouncementRefused(text),
            None => ConnectionTrouble::Lost(reason),
        }
    }
}
