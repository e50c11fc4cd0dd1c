//! Threat: a peer writes lines of its own into the log, or colours what an operator reads.

use std::io;
use std::sync::{Arc, Mutex};

use migration_ipc::messages::{AgentStarted, ErrorReport, UserAction};
use migration_ipc::transport::{BoxFuture, ResolveError};
use migration_ipc::{
    AccountId, AccountResolver, AuditRecord, AuditSink, HandlerError, MessageDispatcher, Peer,
    TracingAudit,
};
use serde_json::{Value, json};

use crate::common::*;

/// A line end, a forged line, the colours of a terminal in both forms, a bidirectional override.
const HOSTILE: &str =
    "x\r\n2024-01-01T00:00:00Z  INFO forged: line\u{1b}[31m\u{9b}2J\u{202e}\u{2028}\u{0}\u{7f}";

/// Keeps records as a file would, and passes them on to the log.
#[derive(Debug, Clone, Default)]
struct File(Arc<Mutex<Vec<String>>>);

impl AuditSink for File {
    fn record(&self, record: &AuditRecord) {
        TracingAudit.record(record);
        let line = serde_json::to_string(record).unwrap();
        self.0.lock().unwrap().push(line);
    }
}

/// Every name is somebody else's, and somebody else has a hostile name too.
#[derive(Debug)]
struct Names;

impl AccountResolver for Names {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let found = match name {
            "fails" => Err(ResolveError::Io {
                name: HOSTILE.to_owned(),
                source: io::Error::other(HOSTILE),
            }),
            name => Ok(name.starts_with("x\r").then(|| AccountId::new(HOSTILE))),
        };
        Box::pin(async move { found })
    }
}

async fn on_action(action: UserAction, peer: Peer) -> Result<(), HandlerError> {
    peer.audit("act", &action.action, HOSTILE);
    Err(HandlerError::new(HOSTILE))
}

fn is_visible(character: char) -> bool {
    !character.is_control() && !['\u{202e}', '\u{2028}'].contains(&character)
}

/// Every text that a peer has a say in, over two connections: a new peer's and a plain one's.
async fn provoke() -> Vec<String> {
    let file = File::default();
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(|_: ErrorReport| async {})
        .handle(on_action)
        .fallback(|message, _: Peer| async move {
            Err::<(), _>(HandlerError::new(message.message_type))
        })
        .build()
        .unwrap();
    let (server, connector) = serve_with(dispatcher, |server| {
        server.audit(file.clone()).account_resolver(Names)
    })
    .await;
    for new in [true, false] {
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        if new {
            peer.hello("agent", 100).await;
        }
        let mut started = agent_started("", HOSTILE);
        started["agentVersion"] = json!(HOSTILE);
        peer.send("AGENT_STARTED", started).await;
        peer.receive_acknowledgment().await;
        let requests = [
            ("USER_ACTION", json!({"userId": HOSTILE, "action": "x"})),
            ("USER_ACTION", json!({"userId": "fails", "action": HOSTILE})),
            ("USER_ACTION", action(HOSTILE)),
            (HOSTILE, json!({})),
            ("SHUTDOWN_REQUEST", json!({"reason": HOSTILE})),
            ("USER_ACTION", json!({HOSTILE: 1, "action": [HOSTILE]})),
            (
                "ERROR_REPORT",
                json!({"userId": "", "errorCode": HOSTILE, "message": HOSTILE}),
            ),
            ("ERROR_REPORT", json!({"message": {HOSTILE: HOSTILE}})),
        ];
        for (message_type, payload) in requests {
            peer.send(message_type, payload).await;
            peer.receive_acknowledgment().await;
        }
        let malformed = [
            json!({"id": HOSTILE, "type": 7, HOSTILE: HOSTILE}).to_string(),
            json!({"id": "m", "type": "USER_ACTION", "timestamp": HOSTILE}).to_string(),
            format!("{HOSTILE} is no JSON"),
        ];
        for body in malformed {
            peer.write(&frame(&body)).await;
        }
        peer.send("GOODBYE", json!({"reason": HOSTILE})).await;
        settle().await;
    }
    for hello in [
        json!({"protocol": {"min": 1, "max": 1}, "role": HOSTILE}),
        json!({"protocol": HOSTILE, "role": "agent"}),
    ] {
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        peer.send("HELLO", hello).await;
        peer.receive_to_end().await;
    }
    within(server.stop(PATIENCE)).await;
    file.0.lock().unwrap().clone()
}

/// What was recorded shows that the texts were there to be escaped.
fn check_records(records: &[String]) {
    for event in [
        "connected",
        "identity_mismatch",
        "type_refused",
        "role_refused",
        "action",
    ] {
        let name = format!("\"event\":\"{event}\"");
        assert!(records.iter().any(|line| line.contains(&name)), "{event}");
    }
    let forged = records.iter().filter(|line| line.contains("forged"));
    assert!(forged.count() >= 8, "{records:#?}");
    for line in records {
        assert!(line.chars().all(is_visible), "{line:?}");
        let record: Value = serde_json::from_str(line).unwrap();
        let text = record.to_string();
        assert!(text.chars().all(is_visible), "{text:?}");
        let session = record["session"].as_str().unwrap_or_default();
        assert!(session.chars().all(is_visible), "{session:?}");
        for part in ["what", "to", "type", "role", "named"] {
            let text = record[part].as_str().unwrap_or_default();
            assert!(text.chars().all(is_visible), "{part}: {text:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_text_of_a_peer_makes_a_line_of_its_own_in_the_text_log() {
    ask_each_time();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let records = provoke().await;
    drop(guard);
    check_records(&records);
    let text = log.text();
    assert!(text.contains("forged"), "the texts are in the log");
    for line in text.split('\n') {
        assert!(line.chars().all(is_visible), "{line:?}");
        assert!(!line.contains("2024-01-01T00:00:00Z  INFO forged") || !line.starts_with("2024"));
    }
}

#[tokio::test(start_paused = true)]
async fn no_text_of_a_peer_makes_a_line_of_its_own_in_the_json_log() {
    ask_each_time();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(log.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let records = provoke().await;
    drop(guard);
    check_records(&records);
    let text = log.text();
    assert!(text.contains("forged"), "the texts are in the log");
    for line in text.lines() {
        assert!(line.chars().all(is_visible), "{line:?}");
        let line: Value = serde_json::from_str(line).unwrap();
        for text in line["fields"].as_object().unwrap().values() {
            let text = text.as_str().unwrap_or_default();
            assert!(text.chars().all(is_visible), "{text:?}");
        }
    }
}
