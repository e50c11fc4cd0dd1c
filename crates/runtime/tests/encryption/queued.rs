//! A reconnecting client keeps what is sensitive for a connection that is encrypted.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::protocol::Sensitive;
use migration_ipc::storage::disk::Disk;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountId, Backoff, ConnectionTrouble, Encryption, Execution, Fate, IpcClient, IpcServer,
    MailOptions, MessageDispatcher, MessagePayload, OutboxId, ReconnectState,
    ReconnectingIpcClient, ReconnectingIpcClientBuilder, SendError, SendOptions, Sender, State,
    StoreOwner, StreamName,
};
use migration_ipc_testkit::disk::SimDisk;
use serde::{Deserialize, Serialize};

use crate::common::*;
use crate::stage::*;

/// Where a service may or may not be.
#[derive(Clone, Default)]
struct Site(Arc<Mutex<Option<MemoryConnector>>>);

impl Site {
    fn client(&self) -> ReconnectingIpcClientBuilder {
        let site = self.clone();
        ReconnectingIpcClient::builder(MessageDispatcher::empty())
            .connector(move || {
                let connector = site.0.lock().unwrap().clone();
                async move {
                    match connector {
                        Some(connector) => connector.connect(user("1000")).await,
                        None => Err(io::ErrorKind::ConnectionRefused.into()),
                    }
                }
            })
            .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
            .backoff(Backoff::default().unlimited())
            .execution(Execution::Inline)
            .connection_config(guarded())
            .seed(7)
    }

    /// A service that recognises repetitions, and may encrypt.
    async fn open(&self, encryption: Option<Encryption>) -> (IpcServer, Heard, StoreOwner) {
        let heard = Heard::default();
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(3));
        let fresh = OutboxId::from_bytes([9; 16]);
        let (store, _) = Store::open(disk, "store", StoreOptions::default(), fresh).unwrap();
        let owner = StoreOwner::start(store, Execution::Inline);
        let (server, connector) = serve_with(service_of(&heard), |server| {
            let server = server.store(owner.handle());
            match encryption {
                Some(encryption) => server.encryption(encryption),
                None => server,
            }
        })
        .await;
        *self.0.lock().unwrap() = Some(connector);
        (server, heard, owner)
    }

    fn close(&self) {
        *self.0.lock().unwrap() = None;
    }
}

async fn stop((server, _, owner): (IpcServer, Heard, StoreOwner)) {
    within(server.stop(Duration::from_secs(1))).await;
    drop(within(owner.close()).await);
}

fn outbox(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn stream(name: &str) -> SendOptions {
    SendOptions::new()
        .durable()
        .stream(StreamName::new(name).unwrap())
}

#[tokio::test(start_paused = true)]
async fn sensitive_messages_wait_for_an_encrypted_connection_and_hold_up_nobody_else() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site
        .client()
        .encryption(offered())
        .outbox(outbox(&disk), OutboxOptions::default())
        .start()
        .await
        .unwrap();
    let clear = site.open(None).await;

    let in_memory = client.send(unlock("memory")).await.unwrap();
    let on_disk = client.send_with(unlock("disk"), stream("a")).await.unwrap();
    let behind = client
        .send_with(UserAction::new("", "behind"), stream("a"))
        .await
        .unwrap();
    let beside = client
        .send_with(UserAction::new("", "beside"), stream("b"))
        .await
        .unwrap();
    let other = client.send(UserAction::new("", "other")).await.unwrap();
    assert!(within(beside.fate()).await.is_handled());
    assert!(within(other.fate()).await.is_handled());
    let mut came = clear.1.all();
    came.sort();
    assert_eq!(came, ["beside", "other"]);
    assert_eq!(client.outstanding(), 3);

    site.close();
    stop(clear).await;
    let encrypted = site.open(Some(offered())).await;
    for receipt in [in_memory, on_disk, behind] {
        let fate = tokio::time::timeout(LONG_PATIENCE, receipt.fate())
            .await
            .unwrap();
        assert!(fate.is_handled(), "{fate}");
    }
    let came = encrypted.1.all();
    let place = |what: &str| came.iter().position(|heard| heard == what).unwrap();
    assert_eq!(came.len(), 3, "{came:?}");
    assert!(
        place("disk") < place("behind"),
        "the stream keeps its order: {came:?}"
    );
    within(client.stop(PATIENCE)).await;
    stop(encrypted).await;
}

/// The outbox remembers over a restart what is sensitive.
#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_kept_waits_too() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site
        .client()
        .outbox(outbox(&disk), OutboxOptions::default())
        .start()
        .await
        .unwrap();
    client.send_durable(unlock("kept")).await.unwrap();
    assert_eq!(within(client.stop(Duration::ZERO)).await.kept, 1);

    let clear = site.open(None).await;
    let client = site
        .client()
        .encryption(offered())
        .outbox(outbox(&disk), OutboxOptions::default())
        .start()
        .await
        .unwrap();
    let later = client
        .send_with(UserAction::new("", "later"), stream("b"))
        .await
        .unwrap();
    assert!(within(later.fate()).await.is_handled());
    assert_eq!(clear.1.all(), ["later"]);
    site.close();
    stop(clear).await;
    let encrypted = site.open(Some(offered())).await;
    let mut restored = client.restored().unwrap();
    let told = tokio::time::timeout(LONG_PATIENCE, restored.recv())
        .await
        .unwrap();
    assert!(told.unwrap().fate.is_handled());
    assert_eq!(encrypted.1.all(), ["kept"]);
    within(client.stop(PATIENCE)).await;
    stop(encrypted).await;
}

#[tokio::test(start_paused = true)]
async fn what_still_waits_at_the_end_was_certainly_not_sent() {
    let site = Site::default();
    let clear = site.open(None).await;
    let client = site.client().start().await.unwrap();
    let receipt = client.send(unlock("never")).await.unwrap();
    let usual = client.send(UserAction::new("", "usual")).await.unwrap();
    assert!(within(usual.fate()).await.is_handled());
    assert_eq!(within(client.stop(Duration::ZERO)).await.dropped, 1);
    match within(receipt.fate()).await {
        Fate::NotSent(SendError::Closed(_)) => {}
        other => panic!("{other}"),
    }
    assert_eq!(clear.1.all(), ["usual"]);
    stop(clear).await;
}

/// The client says why it is not connected, and goes on trying.
#[tokio::test(start_paused = true)]
async fn a_client_that_demands_encryption_stays_away_from_services_without() {
    let site = Site::default();
    let clear = site.open(None).await;
    let client = site.client().encryption(required()).start().await.unwrap();
    let receipt = client
        .send(UserAction::new("", "secret enough"))
        .await
        .unwrap();
    let mut state = client.state();
    let waiting = state.wait_for(|state| matches!(state, ReconnectState::Waiting { .. }));
    match &*within(waiting).await.unwrap() {
        ReconnectState::Waiting {
            error: ConnectionTrouble::Failed(error),
            ..
        } => assert!(error.to_string().contains("not encrypted"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(clear.1.all(), Vec::<String>::new());
    site.close();
    stop(clear).await;
    let encrypted = site.open(Some(offered())).await;
    let fate = tokio::time::timeout(LONG_PATIENCE, receipt.fate())
        .await
        .unwrap();
    assert!(fate.is_handled(), "{fate}");
    within(client.stop(PATIENCE)).await;
    stop(encrypted).await;
}

/// A type that the service sends and takes no message of: mail for the user's agent.
#[derive(Serialize, Deserialize)]
struct Token {
    token: Sensitive<String>,
}

impl MessagePayload for Token {
    const TYPE: &'static str = "TOKEN";
    const SENDER: Sender = Sender::Service;
    const SENSITIVE: bool = true;
}

#[tokio::test(start_paused = true)]
async fn sensitive_mail_waits_for_an_agent_whose_connection_is_encrypted() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(3));
    let fresh = OutboxId::from_bytes([9; 16]);
    let (store, _) = Store::open(disk, "store", StoreOptions::default(), fresh).unwrap();
    let owner = StoreOwner::start(store, Execution::Inline);
    let (server, connector, _) = service(|server| {
        let server = server.store(owner.handle()).encryption(offered());
        server.connection_config(guarded())
    })
    .await;
    let token = Token {
        token: SECRET.to_owned().into(),
    };
    let sender = server.sender();
    let receipt = sender
        .send_to(&AccountId::new("1000"), &token, MailOptions::new())
        .await
        .unwrap();

    let mut plain = WirePeer::connect(&connector, user("1000")).await;
    plain
        .send("AGENT_STARTED", agent_started("", "plain"))
        .await;
    assert_eq!(plain.receive_acknowledgment().await["success"], true);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mailbox = sender.mailbox().unwrap();
    assert_eq!(mailbox.mail(0, 10).await.unwrap().len(), 1, "it is kept");

    let got = Heard::default();
    let dispatcher = MessageDispatcher::builder(got.clone())
        .handle(|token: Token, State(got): State<Heard>| async move {
            got.note(token.token.expose());
        })
        .build()
        .unwrap();
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = IpcClient::builder(dispatcher)
        .announce(&AgentStarted::new("", "1.0.0", "2"))
        .encryption(offered())
        .connect_over(stream)
        .await
        .unwrap();
    let fate = tokio::time::timeout(LONG_PATIENCE, receipt.fate()).await;
    assert!(fate.unwrap().is_handled());
    assert_eq!(got.all(), [SECRET]);
    drop(client);
    let beats = plain.receive_type("HEARTBEAT").await;
    assert!(!beats.to_string().contains(SECRET));
    within(server.stop(Duration::from_secs(1))).await;
    drop(within(owner.close()).await);
}
