//! The service in memory, and peers that write JSON: who may send what, and what is recorded of it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::protocol::FrameDecoder;
use migration_ipc::transport::memory::{self, MemoryConnector, MemoryStream};
use migration_ipc::{
    AccountId, AuditRecord, AuditSink, Execution, IpcServer, PeerIdentity, Privilege, StoreOwner,
    TracingAudit, message_types,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tracing_subscriber::fmt::MakeWriter;

use super::super::desk::Desk;
use super::super::entry_log::EntryLog;
use super::super::handlers::{Office, dispatcher};
use super::super::keeper::Keeper;
use super::super::key::UserScope;
use super::super::policy::DelayPolicy;
use super::super::snapshot::About;
use super::super::state::{Migration, Rules};
use super::super::store;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Accounts that nobody has, in the form that the operating system gives them.
const VICTIM: &str = if cfg!(windows) {
    "S-1-5-21-1-2-3-4000001"
} else {
    "4000001"
};
const MALLORY: &str = if cfg!(windows) {
    "S-1-5-21-1-2-3-4000002"
} else {
    "4000002"
};

/// Keeps records, and passes them on to the log as the service's own sink does.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<Value>>>);

impl AuditSink for Notes {
    fn record(&self, record: &AuditRecord) {
        TracingAudit.record(record);
        let record = serde_json::to_value(record).unwrap();
        self.0.lock().unwrap().push(record);
    }
}

impl Notes {
    fn of(&self, event: &str) -> Vec<Value> {
        let mut records = self.0.lock().unwrap().clone();
        records.retain(|record| record["event"] == event);
        records
    }
}

struct Stage {
    connector: MemoryConnector,
    notes: Notes,
    server: IpcServer,
    _keeping: JoinHandle<()>,
    _store: StoreOwner,
    _folder: TempDir,
}

fn ordinary(account: &str) -> PeerIdentity {
    PeerIdentity::new(AccountId::new(account), Privilege::Ordinary)
}

fn administrator() -> PeerIdentity {
    PeerIdentity::new(AccountId::new("0"), Privilege::Administrator)
}

impl Stage {
    async fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (opened, _) = store::open(folder.path()).unwrap();
        let owner = StoreOwner::start(opened, Execution::Inline);
        let rules = Rules {
            scope: UserScope::Account,
            delays: DelayPolicy::default(),
            on_announce: None,
        };
        let now = std::time::SystemTime::now().into();
        let migration = Migration::new(rules, Vec::new(), None, now);
        let (keeper, task) = Keeper::new(Desk::new(migration), owner.handle(), 0);
        let sender = Arc::new(OnceCell::new());
        let office = Office {
            keeper,
            about: About {
                started: now,
                recorder: crate::telemetry::Recorder::default(),
            },
            entries: EntryLog::default(),
            store: owner.handle(),
            server: Arc::clone(&sender),
        };
        let (listener, connector) = memory::listen("service", administrator(), 64 * 1024);
        let notes = Notes::default();
        let server = IpcServer::builder(dispatcher(office).unwrap())
            .listener(listener)
            .store(owner.handle())
            .policy(policy())
            .audit(notes.clone())
            .start()
            .await
            .unwrap();
        sender.set(server.sender()).unwrap();
        let keeping = tokio::spawn(task.run(server.sender(), server.events()));
        Self {
            connector,
            notes,
            server,
            _keeping: keeping,
            _store: owner,
            _folder: folder,
        }
    }

    async fn plain(&self, identity: PeerIdentity) -> Peer {
        let stream = self.connector.connect(identity).await.unwrap();
        Peer {
            stream,
            decoder: FrameDecoder::new(),
            received: Vec::new(),
            sent: 0,
        }
    }

    /// A peer that asks for a role, and the payload of what it is answered.
    async fn negotiating(&self, identity: PeerIdentity, role: &str) -> (Peer, Value) {
        let mut peer = self.plain(identity).await;
        let hello = json!({
            "protocol": {"min": 1, "max": 1}, "role": role, "credit": 1000,
            "capabilities": ["inReplyTo", "credit", "errorCodes"],
        });
        peer.send("HELLO", hello).await;
        let mut answer = peer.receive().await.unwrap();
        let payload = answer["payload"].take();
        (peer, payload)
    }
}

struct Peer {
    stream: MemoryStream,
    decoder: FrameDecoder,
    received: Vec<Value>,
    sent: u32,
}

impl Peer {
    async fn send(&mut self, message_type: &str, payload: Value) {
        let message = self.message(message_type, &payload);
        self.write(&message).await;
    }

    async fn send_numbered(&mut self, seq: u64, message_type: &str, payload: Value) {
        let mut message = self.message(message_type, &payload);
        message["seq"] = seq.into();
        self.write(&message).await;
    }

    fn message(&mut self, message_type: &str, payload: &Value) -> Value {
        self.sent += 1;
        json!({
            "id": format!("m{}", self.sent), "type": message_type,
            "timestamp": "2024-01-01T12:00:00Z", "payload": payload,
        })
    }

    async fn write(&mut self, message: &Value) {
        let body = message.to_string();
        let length = i32::try_from(body.len()).unwrap().to_le_bytes();
        self.stream.write_all(&length).await.unwrap();
        self.stream.write_all(body.as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> Option<Value> {
        let reading = async {
            while self.received.is_empty() {
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap();
                if count == 0 {
                    return None;
                }
                let mut input = &buffer[..count];
                while let Some(body) = self.decoder.decode(&mut input).unwrap() {
                    self.received.push(serde_json::from_slice(body).unwrap());
                }
            }
            Some(self.received.remove(0))
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap()
    }

    /// The answer to the message that was sent last: an acknowledgment or a reply.
    async fn answer(&mut self) -> Value {
        loop {
            let message = self.receive().await.expect("the connection lives");
            // Credit and messages of the service's own are not it.
            let is_reply = message.get("inReplyTo").is_some();
            if is_reply || message["type"] == "ACKNOWLEDGMENT" {
                return message;
            }
        }
    }

    /// Whether the policy lets a type pass. A payload that means nothing is refused afterwards.
    async fn may_send(&mut self, message_type: &str) -> bool {
        self.send(message_type, json!({"nonsense": 1})).await;
        let answer = self.answer().await;
        let error = answer["payload"]["error"].as_str().unwrap_or_default();
        error != format!("this peer may not send {message_type}")
            && error != format!("No handler registered for message type: {message_type}")
    }
}

/// The types that are not the connection's own.
fn types() -> Vec<&'static str> {
    let control = [message_types::HEARTBEAT, message_types::ACKNOWLEDGMENT];
    let mut types: Vec<&str> = message_types::PLAIN.to_vec();
    types.retain(|name| !control.contains(name));
    types.extend(OF_OPERATORS);
    types.extend([
        "SERVICE_STATUS",
        "SERVICE_SEND_REPORT",
        "service_status_request",
        "MADE_UP",
        "",
    ]);
    types
}

#[tokio::test]
async fn each_role_may_send_its_own_types_and_no_other() {
    let stage = Stage::set().await;
    let agents: Vec<&str> = OF_AGENTS.to_vec();
    let operators: Vec<&str> = OF_OPERATORS.to_vec();
    let mut played = vec![
        ("plain", stage.plain(ordinary("1")).await, &agents),
        (
            "plain administrator",
            stage.plain(administrator()).await,
            &agents,
        ),
    ];
    for (what, identity, role, expected) in [
        ("agent", ordinary("2"), "agent", &agents),
        ("administrator's agent", administrator(), "agent", &agents),
        ("operator", administrator(), "operator", &operators),
        (
            "service account",
            PeerIdentity::new(AccountId::new("990"), Privilege::ServiceAccount),
            "operator",
            &operators,
        ),
    ] {
        let (peer, answer) = stage.negotiating(identity, role).await;
        assert_eq!(answer["role"], role, "{what}");
        played.push((what, peer, expected));
    }
    for (what, mut peer, expected) in played {
        for message_type in types() {
            let may = peer.may_send(message_type).await;
            assert_eq!(
                may,
                expected.contains(&message_type),
                "{what} {message_type}"
            );
        }
    }
    // What ordinary accounts tried of operators' is on record.
    let refused = stage.notes.of("type_refused");
    let of_first = refused.iter().filter(|record| record["account"] == "1");
    let tried: Vec<&str> = of_first.map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!(tried, OF_OPERATORS);
}

/// A handler that nobody listed is nobody's, and a name that nobody handles is a mistake.
#[tokio::test]
async fn the_policy_names_exactly_what_is_handled() {
    let stage = Stage::set().await;
    let recorded = &stage.notes.of("policy_in_force")[0]["policy"];
    let mut agents = OF_AGENTS.to_vec();
    agents.sort_unstable();
    let mut operators = OF_OPERATORS.to_vec();
    operators.sort_unstable();
    assert_eq!(*recorded, json!({"agent": agents, "operator": operators}));
    let (mut agent, _) = stage.negotiating(ordinary("2"), "agent").await;
    for message_type in OF_AGENTS {
        assert!(agent.may_send(message_type).await, "{message_type}");
    }
}

#[tokio::test]
async fn what_runs_a_connection_reaches_no_handler() {
    let stage = Stage::set().await;
    let mut plain = stage.plain(ordinary("1")).await;
    plain
        .send(
            "HEARTBEAT",
            json!({"senderId": "x", "timestamp": "2024-01-01T12:00:00Z", "sequenceNumber": 0}),
        )
        .await;
    assert_eq!(plain.answer().await["payload"]["success"], true);
    for message_type in ["CREDIT", "GOODBYE"] {
        assert!(!plain.may_send(message_type).await, "{message_type}");
    }
    for identity in [ordinary("2"), administrator()] {
        let (mut peer, _) = stage.negotiating(identity, "agent").await;
        peer.send(
            "HELLO",
            json!({"protocol": {"min": 1, "max": 1}, "role": "operator"}),
        )
        .await;
        let answer = peer.answer().await;
        assert_eq!(answer["payload"]["code"], "malformed");
        assert!(!peer.may_send(StatusRequest::TYPE).await);
    }
}

#[tokio::test]
async fn who_is_no_operator_does_not_become_one() {
    let stage = Stage::set().await;
    for role in ["operator", "Operator", "admin", "root", ""] {
        let (mut peer, answer) = stage.negotiating(ordinary("1"), role).await;
        assert_eq!(answer["refused"]["code"], "role", "{role}");
        assert!(peer.receive().await.is_none(), "{role}");
    }
    assert_eq!(stage.notes.of("role_refused").len(), 5);
    // An operator is no agent: nobody's messages reach it.
    let (mut operator, _) = stage.negotiating(administrator(), "operator").await;
    assert!(!operator.may_send(AgentStarted::TYPE).await);
    assert_eq!(stage.server.connections().counts().announced, 0);
}

async fn announce(peer: &mut Peer, session: &str) {
    let started = json!({"userId": "", "agentVersion": "1", "sessionId": session});
    peer.send(AgentStarted::TYPE, started).await;
    assert_eq!(peer.answer().await["payload"]["success"], true);
}

/// Threat: whoever gives its session the name of another's gets what is for that one.
#[tokio::test]
async fn a_message_to_a_session_reaches_that_of_the_named_account_alone() {
    let stage = Stage::set().await;
    let (mut victim, _) = stage.negotiating(ordinary(VICTIM), "agent").await;
    announce(&mut victim, "s1").await;
    let (mut mallory, _) = stage.negotiating(ordinary(MALLORY), "agent").await;
    announce(&mut mallory, "s1").await;
    let (mut operator, _) = stage.negotiating(administrator(), "operator").await;
    let send =
        |to: Value| json!({"to": to, "type": "SHUTDOWN_REQUEST", "payload": {"reason": "update"}});
    let to = json!({"session": {"user": VICTIM, "session": "s1"}});
    operator.send(SendRequest::TYPE, send(to)).await;
    assert_eq!(operator.answer().await["payload"]["agents"], 1);
    assert_eq!(victim.receive().await.unwrap()["type"], "SHUTDOWN_REQUEST");
    // Without an account it is the operator's own, which has no agent here.
    let to = json!({"session": {"session": "s1"}});
    operator.send(SendRequest::TYPE, send(to)).await;
    assert_eq!(operator.answer().await["payload"]["agents"], 0);
    // Mallory's next word is the answer to its own question.
    assert!(!mallory.may_send(StatusRequest::TYPE).await);
    let told: Vec<Value> = stage.notes.of("action");
    let told: Vec<&Value> = told.iter().map(|record| &record["to"]).collect();
    assert_eq!(
        told,
        [
            &*format!("session s1 of user {VICTIM}"),
            "session s1 of the operator\\'s own account"
        ]
    );
}

/// Threat: an agent leaves a request of operators as a dead letter, for an operator to try again.
#[tokio::test]
async fn a_dead_letter_of_a_type_that_its_sender_may_not_send_is_not_handled_for_an_operator() {
    let stage = Stage::set().await;
    let (mut victim, _) = stage.negotiating(ordinary(VICTIM), "agent").await;
    announce(&mut victim, "s1").await;
    let mut mallory = stage.plain(ordinary(MALLORY)).await;
    let hello = json!({
        "protocol": {"min": 1, "max": 1}, "role": "agent", "credit": 1000,
        "capabilities": ["inReplyTo", "credit", "errorCodes", "durable"],
        "outbox": "00112233445566778899aabbccddeeff",
    });
    mallory.send("HELLO", hello).await;
    mallory.receive().await.unwrap();
    let request = json!({"to": "all", "type": "SHUTDOWN_REQUEST", "payload": {"reason": "x"}});
    mallory.send_numbered(1, SendRequest::TYPE, request).await;
    assert_eq!(mallory.answer().await["payload"]["code"], "not_permitted");

    let (mut operator, _) = stage.negotiating(administrator(), "operator").await;
    let list = json!({"shelf": "dead_letters", "after": 0});
    operator.send(KeptRequest::TYPE, list).await;
    let page = operator.answer().await;
    let letter = &page["payload"]["messages"][0];
    assert_eq!(
        letter["type"],
        SendRequest::TYPE,
        "it is kept to be looked at"
    );
    let requeue = json!({
        "shelf": "dead_letters", "number": letter["number"], "change": "requeue",
    });
    operator.send(KeptChangeRequest::TYPE, requeue).await;
    let answer = operator.answer().await;
    let error = answer["payload"]["error"].as_str().unwrap();
    assert!(error.contains("an agent may not send"), "{error}");
    // The victim's next word is the answer to its own question.
    assert!(!victim.may_send(StatusRequest::TYPE).await);
    let sent = stage.notes.of("action");
    assert!(
        sent.iter().all(|record| record["action"] != "send"),
        "{sent:?}"
    );
}

#[tokio::test]
async fn what_operators_do_is_recorded() {
    let stage = Stage::set().await;
    let (mut operator, _) = stage.negotiating(administrator(), "operator").await;
    let mail = json!({
        "to": {"user": VICTIM}, "type": "CONFIGURATION_UPDATE", "payload": {"key": "x"},
    });
    operator.send(SendRequest::TYPE, mail).await;
    let report = operator.answer().await;
    assert_eq!(report["payload"]["mailed"], true, "{report}");
    operator
        .send(KeptRequest::TYPE, json!({"shelf": "mail", "after": 0}))
        .await;
    let page = operator.answer().await;
    let number = page["payload"]["messages"][0]["number"].as_u64().unwrap();
    for (shelf, change) in [
        ("mail", "drop"),
        ("dead_letters", "requeue"),
        ("dead_letters", "drop"),
    ] {
        let change = json!({"shelf": shelf, "number": number, "change": change});
        operator.send(KeptChangeRequest::TYPE, change).await;
        operator.answer().await;
    }
    // Looking is not acting.
    operator.send(StatusRequest::TYPE, json!({})).await;
    operator.answer().await;
    let records = stage.notes.of("action");
    let told: Vec<String> = records
        .iter()
        .map(|record| {
            let part = |name: &str| record[name].as_str().unwrap().to_owned();
            let parts = ["account", "action", "what", "to"].map(part);
            parts.join(" ")
        })
        .collect();
    assert_eq!(
        told,
        [
            format!("0 send CONFIGURATION_UPDATE user {VICTIM}"),
            format!("0 drop_mail {number} user {VICTIM}"),
            format!("0 requeue_dead_letter {number} user unknown"),
            format!("0 drop_dead_letter {number} user unknown"),
        ]
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Threat: a peer writes lines of its own into the service's log.
#[tokio::test]
async fn no_text_of_an_agent_makes_a_line_of_its_own_in_the_log() {
    const HOSTILE: &str = "x\r\n2024-01-01T00:00:00Z  INFO forged\u{1b}[31m\u{9b}2J";
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let stage = Stage::set().await;
    let (mut agent, _) = stage.negotiating(ordinary(VICTIM), "agent").await;
    let messages = [
        (
            AgentStarted::TYPE,
            json!({"userId": HOSTILE, "agentVersion": HOSTILE, "sessionId": HOSTILE}),
        ),
        (
            UserAction::TYPE,
            json!({"userId": "", "action": HOSTILE, "details": {HOSTILE: HOSTILE}}),
        ),
        (
            ErrorReport::TYPE,
            json!({"userId": "", "errorCode": HOSTILE, "message": HOSTILE, "context": {HOSTILE: HOSTILE}}),
        ),
        (
            DelayRequest::TYPE,
            json!({"userId": "", "reason": HOSTILE, "requestedDelay": 60}),
        ),
        (
            BackupStarted::TYPE,
            json!({"userId": "", "categories": [HOSTILE], "estimatedSizeMB": 1}),
        ),
        (
            BackupProgress::TYPE,
            json!({"userId": "", "category": HOSTILE, "progress": 1, "bytesTransferred": 1,
                   "bytesTotal": 2, "currentFile": HOSTILE}),
        ),
        (
            BackupCompleted::TYPE,
            json!({"userId": "", "success": false, "manifestPath": HOSTILE,
                   "categories": {HOSTILE: {"success": false, "error": HOSTILE}}}),
        ),
        (SendRequest::TYPE, json!({HOSTILE: HOSTILE})),
        (HOSTILE, json!({})),
    ];
    for (message_type, payload) in messages {
        agent.send(message_type, payload).await;
        let answer = agent.answer().await;
        let error = answer["payload"]["error"].as_str().unwrap_or_default();
        let reached = !error.starts_with("Failed to deserialize");
        assert!(reached || !OF_AGENTS.contains(&message_type), "{answer}");
    }
    agent.send("GOODBYE", json!({"reason": HOSTILE})).await;
    let (mut operator, _) = stage.negotiating(administrator(), "operator").await;
    let send = json!({"to": {"user": HOSTILE}, "type": HOSTILE, "payload": {}});
    operator.send(SendRequest::TYPE, send).await;
    operator.answer().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("forged"), "the texts are in the log");
    for line in text.split('\n') {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.starts_with("2024"), "{line:?}");
    }
}
