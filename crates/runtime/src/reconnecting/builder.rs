//! How a reconnecting client is set up.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use migration_ipc_protocol::hello::Role;
use migration_ipc_protocol::{MessagePayload, OutboxId, Timestamp};
use migration_ipc_store::disk::Disk;
use migration_ipc_store::outbox::OutboxOptions;
use migration_ipc_transport::{ConnectOptions, Endpoint, Stream, Trust};
use thiserror::Error;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::client::{ReconnectingIpcClient, Remaining, has_rivals};
use super::desk::Desk;
use super::large::Large;
use super::log::{self, Found, Opened, OutboxFailure};
use super::options::{Durability, Policies};
use super::outbox_keys::OutboxKeys;
use super::owner::{self, Owner, Setup, Source};
use super::pool::{IpcClientPool, MAX_LANES};
use super::queue::{Awaited, Confidence, Entry, History, Overflow, Queue, QueueLimits};
use super::sealing::{AtRest, LockedMessages, OutboxKey, Sealer};
use super::shared::{Core, Doors, OnDisk, Outcomes, Shared};
use super::telemetry::Metrics;
use crate::client::{DEFAULT_CONNECT_TIMEOUT, Speech};
use crate::config::{ConfigError, ConnectionConfig, MAX_TIMEOUT};
use crate::connection::{EncodedAnnouncement, SendError, SensitiveTypes, Shelf};
use crate::delivery::{Execution, Fate};
use crate::dispatch::MessageDispatcher;
use crate::encryption::Encryption;
use crate::store::StoreHandle;

/// Why a reconnecting client did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientStartError {
    /// It was not told where to connect to.
    #[error("the client has no endpoint: give it one with `endpoint`")]
    NoEndpoint,
    /// A limit or timeout cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A type is durable, and there is no outbox to keep its messages in.
    #[error("a type is durable and the client has no outbox: give it one with `outbox`")]
    NoOutbox,
    /// Everything in the outbox is to be encrypted, and there is no key.
    #[error(
        "everything in the outbox is to be encrypted and the client has no key for it: give it one \
         with `outbox_key` or `outbox_key_file`"
    )]
    NoOutboxKey,
    /// The outbox cannot be opened.
    #[error("the outbox cannot be opened: {0}")]
    Outbox(#[from] OutboxFailure),
}

/// Sets up a [`ReconnectingIpcClient`].
#[must_use = "a client is started by `start`"]
pub struct ReconnectingIpcClientBuilder {
    setup: Setup,
    /// Whether the source of the setup was chosen.
    has_source: bool,
    backoff: Backoff,
    policies: Policies,
    in_memory: QueueLimits,
    on_disk: QueueLimits,
    outbox: Option<(Arc<dyn Disk>, OutboxOptions)>,
    keys: OutboxKeys,
    locked: LockedMessages,
    execution: Execution,
    rng: Rng,
}

impl ReconnectingIpcClientBuilder {
    pub(super) fn new(dispatcher: MessageDispatcher) -> Self {
        let sensitive = SensitiveTypes::new(dispatcher.sensitive_types());
        Self {
            setup: Setup {
                source: Source::Custom(Arc::new(|| {
                    Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
                })),
                transport: ConnectOptions::default(),
                dispatcher,
                config: ConnectionConfig::default(),
                role: Role::Agent,
                speech: Speech::Negotiating,
                announce: None,
                timeout: DEFAULT_CONNECT_TIMEOUT,
                outbox: None,
                store: None,
                encryption: None,
                sensitive,
            },
            has_source: false,
            backoff: Backoff::default(),
            policies: Policies::default(),
            in_memory: QueueLimits::MEMORY,
            on_disk: QueueLimits::DISK,
            outbox: None,
            keys: OutboxKeys::default(),
            locked: LockedMessages::default(),
            execution: Execution::default(),
            rng: Rng::new(),
        }
    }

    // --- connections ---------------------------------------------------------------------------

    /// Where the service is.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.setup.source = Source::Endpoint(endpoint);
        self.has_source = true;
        self
    }

    /// Which account may serve beside those that always may: see
    /// [`IpcClientBuilder::trust`](crate::IpcClientBuilder::trust).
    pub fn trust(mut self, trust: Trust) -> Self {
        self.setup.transport = self.setup.transport.trust(trust);
        self
    }

    /// Where connections come from, in place of an endpoint: called for each of them.
    pub fn connector<F, C, S>(mut self, connect: C) -> Self
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: Stream + 'static,
    {
        self.setup.source = Source::Custom(Arc::new(move || {
            let connecting = connect();
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Stream>) })
        }));
        self.has_source = true;
        self
    }

    /// What the client wants to be: an agent unless set.
    pub fn role(mut self, role: Role) -> Self {
        self.setup.role = role;
        self
    }

    /// Announces the client on each connection, right behind the hello and before anything else.
    /// Called for each of them: what it returns may change, and the message has a new id each time.
    pub fn announce_with<P: MessagePayload>(
        mut self,
        announcement: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        self.setup.announce = Some(Arc::new(move |clock| {
            EncodedAnnouncement::new(clock, &announcement())
        }));
        self
    }

    /// How long one try to connect may take, the hello included; 30 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.setup.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Limits and timeouts of each connection.
    pub fn connection_config(mut self, config: ConnectionConfig) -> Self {
        self.setup.config = config;
        self
    }

    /// Encrypts each connection, if the service can do so too; or in any case: see [`Encryption`].
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.setup.encryption = Some(Arc::new(encryption));
        self
    }

    /// Says no hello: see
    /// [`IpcClientBuilder::without_hello`](crate::IpcClientBuilder::without_hello).
    pub fn without_hello(mut self) -> Self {
        self.setup.speech = Speech::Plain;
        self
    }

    /// When to try again, and how often.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Makes every random choice of the client follow from this, so that a test can be repeated. A
    /// new outbox gets its id from it too.
    pub fn seed(mut self, seed: u64) -> Self {
        self.rng = Rng::with_seed(seed);
        self
    }

    // --- messages ------------------------------------------------------------------------------

    /// Keeps durable messages in an outbox on this disk, which belongs to this client alone.
    pub fn outbox(mut self, disk: Arc<dyn Disk>, options: OutboxOptions) -> Self {
        self.outbox = Some((disk, options));
        self
    }

    /// Encrypts with this key what [`at_rest`](Self::at_rest) says: the payloads of
    /// [sensitive](MessagePayload::SENSITIVE) types, unless set. What was kept in the clear before
    /// stays as it is until it is sent.
    pub fn outbox_key(mut self, key: OutboxKey) -> Self {
        self.keys.key = Some(key);
        self
    }

    /// Opens with this key what was encrypted with it, and encrypts nothing: one that was replaced.
    pub fn former_outbox_key(mut self, key: OutboxKey) -> Self {
        self.keys.former.push(key);
        self
    }

    /// Takes the keys for the outbox from this file, unless one is set: the first of the kind
    /// `outbox` is the one that encrypts, and further ones open what they encrypted before. If the
    /// file is not there it is made, with a new key and the strongest protection that the system has;
    /// but not if messages are encrypted already, whose key is gone then. Its format and who may
    /// read it is checked as [`read_key_file`](crate::keys::read_key_file) does. Loading it is part
    /// of [`start`](Self::start).
    pub fn outbox_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.keys.file = Some(path.into());
        self
    }

    /// Which payloads are encrypted in the outbox.
    pub fn at_rest(mut self, at_rest: AtRest) -> Self {
        self.keys.at_rest = at_rest;
        self
    }

    /// What is done with messages of earlier runs that no key opens; they are kept unless set.
    pub fn locked_messages(mut self, locked: LockedMessages) -> Self {
        self.locked = locked;
        self
    }

    /// Keeps the effects of handlers in this store, and the ledger of the service's mail: see
    /// [`IpcClientBuilder::store`](crate::IpcClientBuilder::store).
    pub fn store(mut self, store: StoreHandle) -> Self {
        self.setup.store = Some(store);
        self
    }

    /// Makes messages of this type durable, unless said otherwise for one of them.
    pub fn durable<P: MessagePayload>(mut self) -> Self {
        self.policies.entry::<P>().durability = Durability::Disk;
        self
    }

    /// What happens to messages of this type when their queue is full;
    /// [`Overflow::Wait`] unless set.
    pub fn overflow<P: MessagePayload>(mut self, overflow: Overflow) -> Self {
        self.policies.entry::<P>().overflow = overflow;
        self
    }

    /// How much may wait in memory; [`QueueLimits::MEMORY`] unless set.
    pub fn queue_limits(mut self, limits: QueueLimits) -> Self {
        self.in_memory = limits;
        self
    }

    /// How much may wait in the outbox; [`QueueLimits::DISK`] unless set.
    pub fn outbox_limits(mut self, limits: QueueLimits) -> Self {
        self.on_disk = limits;
        self
    }

    /// Where the work of the outbox is done.
    pub fn execution(mut self, execution: Execution) -> Self {
        self.execution = execution;
        self
    }

    /// Opens the outbox and starts to connect. Returns before there is a connection:
    /// [`state`](ReconnectingIpcClient::state) shows it.
    ///
    /// # Errors
    /// When something does not fit together, or the outbox cannot be opened.
    pub async fn start(mut self) -> Result<ReconnectingIpcClient, ClientStartError> {
        self.validate()?;
        let opened = match self.outbox.take() {
            Some((disk, options)) => Some(self.open(disk, options).await?),
            None => None,
        };
        Ok(self.launch(opened))
    }

    /// As [`start`](Self::start), with several lanes; at most [`MAX_LANES`](crate::MAX_LANES).
    /// Each lane has the limits of this builder for itself.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_pool(
        mut self,
        lanes: NonZeroUsize,
    ) -> Result<IpcClientPool, ClientStartError> {
        if lanes > MAX_LANES {
            return Err(ConfigError::new("lanes", "at most 16").into());
        }
        let mut further: Vec<_> = (1..lanes.get()).map(|_| self.further_lane()).collect();
        let mut started = vec![self.start().await?];
        started.extend(further.drain(..).map(|lane| lane.launch(None)));
        Ok(IpcClientPool::new(started))
    }

    /// The same without what only one lane has.
    fn further_lane(&mut self) -> Self {
        Self {
            setup: Setup {
                announce: None,
                ..self.setup.clone()
            },
            has_source: self.has_source,
            backoff: self.backoff,
            policies: self.policies.clone(),
            in_memory: self.in_memory,
            on_disk: self.on_disk,
            outbox: None,
            keys: OutboxKeys::default(),
            locked: self.locked,
            execution: self.execution,
            rng: self.rng.fork(),
        }
    }

    fn validate(&self) -> Result<(), ClientStartError> {
        if !self.has_source {
            return Err(ClientStartError::NoEndpoint);
        }
        self.setup.config.validate()?;
        self.backoff.validate()?;
        self.in_memory.validate()?;
        self.on_disk.validate()?;
        if self.outbox.is_none() && self.policies.any_durable() {
            return Err(ClientStartError::NoOutbox);
        }
        if self.outbox.is_some() && self.keys.at_rest == AtRest::All && !self.keys.has_any() {
            return Err(ClientStartError::NoOutboxKey);
        }
        Ok(())
    }

    fn launch(mut self, opened: Option<(Opened, Sealer)>) -> ReconnectingIpcClient {
        let found = opened.as_ref().map_or(0, |(opened, _)| opened.found.len());
        let (restored, fates) = Outcomes::new(found);
        let mut core = Core {
            doors: Doors::Open,
            memory: Queue::new(self.in_memory),
            memory_under_way: 0,
            large: Large::default(),
            next_company: 0,
            next_number: 0,
            disk: None,
            memory_first: false,
            restored,
            remaining: Remaining::default(),
            metrics: Metrics::new(),
        };
        let (outbox, report, sealer) = match opened {
            Some((opened, sealer)) => {
                self.setup.outbox = Some(opened.report.id);
                let now = self.setup.config.clock.now();
                core.restore(&opened, self.on_disk, &self.policies, self.locked, now);
                (Some(opened.outbox), Some(opened.report), sealer)
            }
            None => (None, None, Sealer::default()),
        };
        let shared = Arc::new(Shared::new(
            core,
            self.policies,
            self.setup.config.clock,
            self.setup.sensitive.clone(),
            sealer,
        ));
        let owner = Owner {
            shared: Arc::clone(&shared),
            shelf: Arc::new(Shelf::new(self.setup.config.timeouts.chunks_kept)),
            setup: self.setup,
            backoff: self.backoff,
            rng: self.rng,
        };
        // The client's handle owns it: it asks the task to stop, which tells of its end.
        tokio::spawn(owner::run(owner, outbox, self.execution));
        ReconnectingIpcClient::new(shared, report, fates)
    }

    async fn open(
        &mut self,
        disk: Arc<dyn Disk>,
        options: OutboxOptions,
    ) -> Result<(Opened, Sealer), OutboxFailure> {
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes);
        let fresh = OutboxId::from_bytes(bytes);
        let (keys, locked) = (std::mem::take(&mut self.keys), self.locked);
        let open = move || {
            let found = keys.find()?;
            let opened = log::open(disk, options, fresh, &found.sealer)?;
            let sealer = found.complete(&opened.report.locked, locked)?;
            Ok((opened, sealer))
        };
        self.execution.run(open).await?
    }
}

impl Core {
    /// Takes over what earlier runs accepted.
    fn restore(
        &mut self,
        opened: &Opened,
        limits: QueueLimits,
        policies: &Policies,
        locked_messages: LockedMessages,
        now: Timestamp,
    ) {
        let instant = Instant::now();
        let mut disk = OnDisk {
            queue: Queue::new(limits),
            desk: Desk::new(opened.outbox.settled_floor(), opened.outbox.next_seq()),
            under_way: 0,
            lost: false,
        };
        let (mut tried, mut dropped) = (Vec::new(), Vec::new());
        for found in &opened.found {
            let Found {
                seq,
                bytes,
                head,
                locked,
            } = found;
            let message_type = head.message_type();
            let overflow = policies.of(&message_type).overflow;
            let key = head.key.as_deref().unwrap_or_default();
            let key = if overflow == Overflow::KeepLatest {
                key
            } else {
                ""
            };
            let entry = Entry {
                body: (),
                bytes: u32::try_from(*bytes).unwrap_or(u32::MAX),
                stream: head.stream(),
                rivals: has_rivals(overflow).then(|| Box::new((message_type, key.into()))),
                expires: head
                    .expires
                    .map(|expires| instant + expires.saturating_duration_since(now)),
                awaited: Awaited::Restored(head.id.clone()),
                history: History {
                    idempotent: head.idempotent,
                    confidence: Confidence::of(head.sensitive),
                    ..History::default()
                },
                company: None,
            };
            disk.queue.hold(1, u64::from(entry.bytes));
            match (locked, locked_messages) {
                (None, _) => disk.queue.insert(*seq, entry),
                (Some(_), LockedMessages::Hold) => {
                    disk.queue.lock_from(entry.stream.clone(), *seq);
                    disk.queue.insert(*seq, entry.locked());
                }
                (Some((key, by)), LockedMessages::Drop) => dropped.push((
                    *seq,
                    entry,
                    OutboxFailure::Locked {
                        seq: *seq,
                        key: *key,
                        by: *by,
                    },
                )),
            }
        }
        for (mark, seq) in &opened.marks {
            match disk.queue.entry_mut(*seq) {
                Some(entry) => {
                    entry.history.mark = Some(*mark);
                    tried.push(*seq);
                }
                None => disk.desk.settle(*mark, instant),
            }
        }
        // An earlier run may have sent these to a service that cannot tell a repetition.
        let tried: Vec<_> = tried
            .into_iter()
            .filter_map(|seq| Some((seq, disk.queue.take(seq)?)))
            .collect();
        self.disk = Some(disk);
        for (seq, entry, failure) in dropped {
            let unknown = Fate::Unknown(SendError::NotStored(Arc::new(failure)));
            self.settle_disk(seq, entry, unknown, instant);
        }
        for (seq, entry) in tried {
            let unknown = Fate::Unknown(SendError::Unanswered);
            self.settle_disk(seq, entry, unknown, instant);
        }
    }
}

impl fmt::Debug for ReconnectingIpcClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReconnectingIpcClientBuilder")
            .field("backoff", &self.backoff)
            .field("outbox", &self.outbox)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}
