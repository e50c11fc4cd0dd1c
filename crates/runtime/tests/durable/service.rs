//! A service with a store, whose handlers do as the messages tell them, and a numbering peer.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use migration_ipc::messages::{
    BackupCompleted, BackupProgress, ConfigurationUpdate, DelayRequest, ErrorReport, OverallStatus,
    StatusUpdate, UserAction,
};
use migration_ipc::storage::{
    DeadLetter, Journal, JournalEntry, Mail, Reader, Rows, Store, StoreError, StoreOptions,
};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    Clock, Commit, ConnectionConfig, Delivery, Effects, ErrorCode, Execution, HandlerError,
    HandlerOptions, IpcServer, MessageDispatcher, MessageFactory, Peer, Refusal, Reply, SendError,
    State, StopReport, StoreHandle, StoreOwner,
};
use migration_ipc_protocol::OutboxId;
use migration_ipc_testkit::disk::SimDisk;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::*;

pub(crate) const OUTBOX: &str = "00112233445566778899aabbccddeeff";

/// What handlers were entered, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entered {
    entries: Arc<Mutex<Vec<String>>>,
    lenient: Arc<AtomicBool>,
}

impl Entered {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.entries.lock().unwrap().push(what.into());
    }

    /// From now on actions named `strict` and `stuck` are handled.
    pub(crate) fn be_lenient(&self) {
        self.lenient.store(true, Ordering::Relaxed);
    }

    /// The entries since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.entries.lock().unwrap())
    }
}

/// Counts how often an action took effect.
fn count(rows: &mut Rows<'_>, action: &str) -> Result<(), Refusal> {
    let before = rows.get("actions", action)?.map_or(0, |row| row[0]);
    rows.put("actions", action, [before + 1]);
    Ok(())
}

/// An action takes effect; one named `refuse` or `busy` fails, `veto` is refused by the store.
async fn on_action(
    action: UserAction,
    State(entered): State<Entered>,
    peer: Peer,
) -> Result<Effects, HandlerError> {
    let name = action.action;
    entered.note(&*name);
    match &*name {
        "refuse" => Err(HandlerError::new("refused")),
        "stuck" if !entered.lenient.load(Ordering::Relaxed) => std::future::pending().await,
        "mail" => {
            let message = MessageFactory::create(&ConfigurationUpdate::new("mailed", true.into()))?;
            let mail = Mail {
                message,
                expires: None,
            };
            Ok(Effects::new().mail(peer.account().as_str(), mail))
        }
        "strict" => {
            let session = peer.announced_session();
            let sent = peer.connection().try_send(StatusUpdate::new(
                OverallStatus::Waiting,
                vec![],
                vec![],
                1,
            ));
            entered.note(format!(
                "{} {session:?} {}",
                peer.account(),
                matches!(sent, Err(SendError::Closed(_)))
            ));
            if entered.lenient.load(Ordering::Relaxed) {
                Ok(Effects::new().update(|rows| count(rows, "strict")))
            } else {
                Err(HandlerError::new("too strict"))
            }
        }
        "busy" => Err(HandlerError::new("not now").with_code(ErrorCode::Busy)),
        "veto" => Ok(Effects::new()
            .put("actions", "veto", [1])
            .update(|_| Err(Refusal::new("vetoed")))),
        _ => Ok(Effects::new().update(move |rows| count(rows, &name))),
    }
}

async fn on_completed(
    completed: BackupCompleted,
    State(entered): State<Entered>,
) -> Reply<ConfigurationUpdate> {
    entered.note("completed");
    let mut update = ConfigurationUpdate::new("user", json!(completed.user_id.as_str()));
    update.scope = "session".into();
    Reply(update)
}

async fn on_progress(_: BackupProgress, State(entered): State<Entered>) {
    entered.note("progress");
}

/// Says whether the effect of an action of this name was stored when it began.
async fn on_delay(request: DelayRequest, State(entered): State<Entered>, delivery: Delivery) {
    let name = request.delays_used.to_string();
    let stored = delivery
        .store()
        .unwrap()
        .read(move |reader| reader.get("actions", &name))
        .await
        .unwrap();
    entered.note(format!("stored before: {}", stored.is_some()));
}

/// Commits by itself, and then does what the report says.
async fn on_report(
    report: ErrorReport,
    State(entered): State<Entered>,
    delivery: Delivery,
) -> Result<Commit, HandlerError> {
    entered.note(format!("durable: {}", delivery.is_durable()));
    let name = report.error_code;
    let commit = delivery.commit(Effects::new().update(move |rows| count(rows, &name)));
    match &*report.message {
        "fail" => Err(HandlerError::new("failed after its commit")),
        "wait" => {
            let outcome = commit.clone().await;
            entered.note(format!("{outcome:?}"));
            Ok(commit)
        }
        _ => Ok(commit),
    }
}

pub(crate) fn dispatcher(entered: &Entered) -> MessageDispatcher {
    MessageDispatcher::builder(entered.clone())
        .handle(on_action)
        .handle(on_completed)
        .handle(on_delay)
        .handle(on_report)
        .handle(|_: migration_ipc::messages::AgentStarted| async {})
        .handle_with(HandlerOptions::new().silent(), on_progress)
        .build()
        .unwrap()
}

/// The time of day, which goes on as the time of the test does.
fn virtual_time() -> SystemTime {
    thread_local! {
        static START: Instant = Instant::now();
    }
    SystemTime::UNIX_EPOCH + Duration::from_secs(86_400) + START.with(Instant::elapsed)
}

/// A service with a store on this disk.
pub(crate) struct Service {
    pub(crate) disk: SimDisk,
    pub(crate) entered: Entered,
    owner: StoreOwner,
    pub(crate) server: IpcServer,
    pub(crate) connector: MemoryConnector,
}

impl Service {
    pub(crate) async fn new() -> Self {
        Self::on(SimDisk::new(1)).await
    }

    pub(crate) async fn on(disk: SimDisk) -> Self {
        let journal = Journal::Newest(NonZeroU64::new(100).unwrap());
        Self::with(disk, journal, Execution::Inline).await
    }

    pub(crate) async fn with(disk: SimDisk, journal: Journal, execution: Execution) -> Self {
        let options = StoreOptions { journal };
        let fresh = OutboxId::from_bytes([9; 16]);
        let (store, _) = Store::open(Arc::new(disk.clone()), "store", options, fresh).unwrap();
        let owner = StoreOwner::start(store, execution);
        let entered = Entered::default();
        let handle = owner.handle();
        let config = ConnectionConfig {
            clock: Clock::from_fn(virtual_time),
            ..ConnectionConfig::default()
        };
        let (server, connector) = serve_with(dispatcher(&entered), |server| {
            server.store(handle).connection_config(config)
        })
        .await;
        Self {
            disk,
            entered,
            owner,
            server,
            connector,
        }
    }

    pub(crate) fn store(&self) -> StoreHandle {
        self.owner.handle()
    }

    /// Stops, and starts again on the same disk.
    pub(crate) async fn restart(self) -> Self {
        let disk = self.disk.clone();
        self.stop().await;
        Self::on(disk).await
    }

    pub(crate) async fn stop(self) -> StopReport {
        let report = self.server.stop(Duration::from_secs(5)).await;
        drop(self.connector);
        drop(self.owner.close().await.unwrap());
        report
    }

    /// The machine stops where it is, and starts again.
    pub(crate) async fn crash(self) -> Self {
        let disk = self.disk.restart();
        drop(self);
        Self::on(disk).await
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store().read(read).await.unwrap()
    }

    /// How often an action took effect.
    pub(crate) async fn effects_of(&self, action: &'static str) -> u8 {
        let row = self.read(move |reader| reader.get("actions", action)).await;
        row.map_or(0, |row| row[0])
    }

    pub(crate) async fn dead_letters(&self) -> Vec<DeadLetter> {
        let letters = self.read(|reader| reader.dead_letters(0, 100)).await;
        letters.into_iter().map(|kept| kept.letter).collect()
    }

    pub(crate) async fn journal(&self) -> Vec<JournalEntry> {
        self.read(|reader| reader.journal(0, 100)).await
    }

    /// A peer of this account that has said hello with this outbox.
    pub(crate) async fn numbering(&self, account: &str, outbox: &str) -> (WirePeer, Value) {
        let mut peer = WirePeer::connect(&self.connector, user(account)).await;
        peer.send("HELLO", numbering_hello(outbox)).await;
        let answer = peer.receive().await;
        (peer, answer)
    }

    pub(crate) async fn peer(&self) -> WirePeer {
        self.numbering("1000", OUTBOX).await.0
    }
}

pub(crate) fn numbering_hello(outbox: &str) -> Value {
    let mut hello = hello("agent", 1000);
    hello["capabilities"]
        .as_array_mut()
        .unwrap()
        .push("durable".into());
    hello["outbox"] = outbox.into();
    hello
}

/// A numbered message; its id is made of its number.
pub(crate) fn numbered(
    seq: impl Into<Value>,
    stream: Option<&str>,
    message_type: &str,
    payload: Value,
) -> Vec<u8> {
    let seq = seq.into();
    let mut message = envelope(&format!("s{seq}"), message_type, payload);
    message["seq"] = seq;
    if let Some(stream) = stream {
        message["stream"] = stream.into();
    }
    frame(&message.to_string())
}

pub(crate) fn report(code: &str, message: &str) -> Value {
    json!({"userId": "", "errorCode": code, "message": message, "context": {}})
}

pub(crate) fn completed() -> Value {
    json!({"userId": "", "success": true, "categories": {}})
}

/// An answer, in short.
pub(crate) fn told(answer: &Value) -> String {
    let payload = &answer["payload"];
    match answer["type"].as_str().unwrap() {
        "ACKNOWLEDGMENT" => {
            let original = payload["originalMessageId"].as_str().unwrap();
            match payload["success"].as_bool().unwrap() {
                true => format!("{original} handled"),
                false => format!(
                    "{original} {}",
                    payload["code"].as_str().unwrap_or("refused")
                ),
            }
        }
        message_type => format!("{} {message_type}", answer["inReplyTo"].as_str().unwrap()),
    }
}

/// Sends a numbered message and takes the next answer.
pub(crate) async fn ask(
    peer: &mut WirePeer,
    seq: u64,
    message_type: &str,
    payload: Value,
) -> String {
    peer.write(&numbered(seq, None, message_type, payload))
        .await;
    told(&peer.receive().await)
}

/// Sends a numbered action and takes the next answer.
pub(crate) async fn act(peer: &mut WirePeer, seq: u64, name: &str) -> String {
    ask(peer, seq, "USER_ACTION", action(name)).await
}
