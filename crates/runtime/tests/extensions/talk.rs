//! The conversation that every configuration holds.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, UserAction};
use migration_ipc::storage::disk::Disk;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::{
    Answer, Capability, CapabilitySet, Compression, ConnectionConfig, Demand, Encryption,
    Execution, HandlerError, IpcConnection, IpcServer, MessageDispatcher, OutboxId, ReconnectState,
    ReconnectingIpcClient, Reply, SendError, ServiceKind, State, StoreOwner,
};
use migration_ipc_testkit::disk::SimDisk;

use crate::asked::answering;
use crate::common::*;
use crate::keys::encryption;
use crate::record::{FirstFrame, Record, Recorded};
use crate::transcript::Transcript;

/// How a client and a service meet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meeting {
    /// `None` for a client that says no hello.
    pub(crate) client: Option<CapabilitySet>,
    pub(crate) service: Service,
    pub(crate) closes: End,
}

/// A kind of service.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Service {
    New(CapabilitySet),
    /// Plain ones, which say nothing to a hello, or that they do not know it.
    IgnoresHellos,
    RefusesHellos,
}

impl Service {
    fn capabilities(self) -> Option<CapabilitySet> {
        match self {
            Self::New(capabilities) => Some(capabilities),
            Self::IgnoresHellos | Self::RefusesHellos => None,
        }
    }

    fn first_frame(self) -> FirstFrame {
        match self {
            Self::New(_) => FirstFrame::Passes,
            Self::IgnoresHellos => FirstFrame::IsIgnored,
            Self::RefusesHellos => FirstFrame::IsRefused,
        }
    }
}

/// An end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Service,
}

impl Meeting {
    /// What both have; `None` where one is plain.
    pub(crate) fn negotiates(self) -> Option<CapabilitySet> {
        let (client, service) = (self.client?, self.service.capabilities()?);
        Some(client.intersection(service).complete())
    }

    /// Every end has the key, and both insist on it where both may encrypt.
    fn encryption(self, end: End) -> Encryption {
        let negotiated = self.negotiates().unwrap_or_default();
        let demand = match negotiated.contains(Capability::Encryption) {
            true => Demand::Required,
            false => Demand::Offered,
        };
        encryption(end, demand)
    }
}

/// What the handlers of one side were entered with, and what they should have been.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    entered: Arc<Mutex<Vec<String>>>,
    expected: Arc<Mutex<Vec<String>>>,
}

impl Log {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.entered.lock().unwrap().push(what.into());
    }

    /// What the next message to this side is called.
    pub(crate) fn expect(&self, what: impl Into<String>) {
        self.expected.lock().unwrap().push(what.into());
    }

    /// Waits until everything that is expected has come.
    pub(crate) async fn catch_up(&self) {
        eventually("everything has come", || {
            self.entered.lock().unwrap().len() >= self.expected.lock().unwrap().len()
        })
        .await;
    }

    fn check(&self) {
        assert_eq!(
            *self.entered.lock().unwrap(),
            *self.expected.lock().unwrap()
        );
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) log: Log,
    gate: Gate,
}

impl Scene {
    /// A message does as its name says: it fails, waits, or is replied to.
    async fn play(&self, name: &str) -> Result<bool, HandlerError> {
        self.log.note(name);
        match name {
            "fail" => return Err(HandlerError::new("failed")),
            "wait" => self.gate.pass().await,
            _ => {}
        }
        Ok(name == "reply")
    }
}

async fn on_action(
    action: UserAction,
    State(scene): State<Scene>,
) -> Result<Option<Reply<ConfigurationUpdate>>, HandlerError> {
    let replies = scene.play(&action.action).await?;
    Ok(replies.then(|| Reply(update("answer"))))
}

async fn on_update(
    update: ConfigurationUpdate,
    State(scene): State<Scene>,
) -> Result<Option<Reply<UserAction>>, HandlerError> {
    let replies = scene.play(&update.key).await?;
    Ok(replies.then(|| Reply(act("answer"))))
}

/// What clients say here.
pub(crate) fn act(name: &str) -> UserAction {
    UserAction::new("", name)
}

/// What services say here.
pub(crate) fn update(name: &str) -> ConfigurationUpdate {
    ConfigurationUpdate::new(name, 1.into())
}

/// A client and a service that talk.
pub(crate) struct Talk {
    pub(crate) client: ReconnectingIpcClient,
    pub(crate) server: IpcServer,
    pub(crate) at_client: IpcConnection,
    pub(crate) at_service: IpcConnection,
    /// `None` where one is plain.
    pub(crate) negotiated: Option<CapabilitySet>,
    /// What came to the client's handlers, and to the service's.
    pub(crate) to_client: Log,
    pub(crate) to_service: Log,
    /// Where messages named `wait` wait, on both sides.
    pub(crate) gate: Gate,
    record: Record,
    closes: End,
    store: StoreOwner,
}

/// Inboxes are so small that credit has to come back soon, and everything is compressed that may be.
fn config(capabilities: Option<CapabilitySet>) -> ConnectionConfig {
    let mut config = ConnectionConfig {
        capabilities: capabilities.unwrap_or(CapabilitySet::all()),
        compression: Compression::From(Compression::MIN_THRESHOLD),
        ..ConnectionConfig::default()
    };
    config.limits.inbox_messages = 4;
    config
}

impl Talk {
    /// Connects, and has the client announced.
    pub(crate) async fn begin(meeting: Meeting) -> Self {
        let gate = Gate::closed();
        let (to_client, to_service) = (Log::default(), Log::default());
        let scene = |log: &Log| Scene {
            log: log.clone(),
            gate: gate.clone(),
        };
        let at_service = answering(MessageDispatcher::builder(scene(&to_service)))
            .handle(|_: AgentStarted| async {})
            .handle(on_action)
            .build()
            .unwrap();
        let at_client = answering(MessageDispatcher::builder(scene(&to_client)))
            .handle(on_update)
            .build()
            .unwrap();

        let fresh = OutboxId::from_bytes([9; 16]);
        let disk = Arc::new(SimDisk::new(1));
        let (store, _) = Store::open(disk, "store", StoreOptions::default(), fresh).unwrap();
        let store = StoreOwner::start(store, Execution::Inline);
        let (server, connector) = serve_with(at_service, |server| {
            server
                .store(store.handle())
                .connection_config(config(meeting.service.capabilities()))
                .encryption(meeting.encryption(End::Service))
        })
        .await;

        let record = Record::default();
        let recorded = record.clone();
        let first_frame = meeting.service.first_frame();
        let connect = move || {
            let (connector, record) = (connector.clone(), recorded.clone());
            async move {
                let stream = connector.connect(user("1000")).await?;
                io::Result::Ok(Recorded::new(stream, record, first_frame))
            }
        };
        let outbox: Arc<dyn Disk> = Arc::new(SimDisk::new(2));
        let mut client = ReconnectingIpcClient::builder(at_client)
            .connector(connect)
            .connection_config(config(meeting.client))
            .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
            .outbox(outbox, OutboxOptions::default())
            .execution(Execution::Inline)
            .encryption(meeting.encryption(End::Client))
            .seed(1);
        if meeting.client.is_none() {
            client = client.without_hello();
        }
        let client = client.start().await.unwrap();

        let mut state = client.state();
        let connected = within(state.wait_for(ReconnectState::is_connected)).await;
        let negotiated = match &*connected.unwrap() {
            ReconnectState::Connected {
                service: ServiceKind::New(capabilities),
                ..
            } => Some(*capabilities),
            _ => None,
        };
        assert_eq!(negotiated, meeting.negotiates(), "{meeting:?}");
        eventually("the announcement", || {
            server.connections().counts().announced == 1
        })
        .await;
        Self {
            at_client: client.connection().unwrap(),
            at_service: only_connection(&server).await,
            client,
            server,
            negotiated,
            to_client,
            to_service,
            gate,
            record,
            closes: meeting.closes,
            store,
        }
    }

    /// A few words in both directions that need nothing negotiated.
    pub(crate) async fn greet(&self) {
        self.to_service.expect("one");
        self.at_client.send(act("one")).await.unwrap();
        self.to_service.expect("two");
        let answer = self.at_client.send_acknowledged(act("two")).await;
        assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
        self.to_client.expect("one");
        self.at_service.send(update("one")).await.unwrap();
        self.to_client.expect("two");
        let answer = self.at_service.send_acknowledged(update("two")).await;
        self.check_agents_answer(&answer);
        self.catch_up().await;
    }

    /// A new agent has handled what it was sent. A plain one answers nothing.
    pub(crate) fn check_agents_answer(&self, answer: &Result<Answer, SendError>) {
        match (answer, self.negotiated) {
            (Ok(Answer::Handled), Some(_)) | (Err(SendError::Unanswered), None) => {}
            (other, negotiated) => panic!("{other:?} with {negotiated:?}"),
        }
    }

    pub(crate) async fn catch_up(&self) {
        self.to_client.catch_up().await;
        self.to_service.catch_up().await;
    }

    /// Closes, and shows what was said.
    pub(crate) async fn end(self) -> Transcript {
        self.catch_up().await;
        match self.closes {
            End::Client => {
                self.client.stop(PATIENCE).await;
                self.server.stop(PATIENCE).await;
            }
            End::Service => {
                self.server.stop(PATIENCE).await;
                self.client.stop(Duration::ZERO).await;
            }
        }
        drop(self.store.close().await.unwrap());
        self.to_client.check();
        self.to_service.check();
        self.record.transcript()
    }
}
