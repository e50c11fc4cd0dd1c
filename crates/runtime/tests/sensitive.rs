//! A secret on its way through a service: to its handler, into the store and back, or refused. It
//! is nowhere in the log at its most talkative, in an answer that is an error, or in a metric.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, LocalRecorderGuard, Metadata, Recorder, SharedString,
    Unit,
};
use migration_ipc::protocol::Sensitive;
use migration_ipc::storage::disk::Disk;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::storage::{DeadLetter, Journal, Store, StoreOptions, StoredOutcome};
use migration_ipc::transport::memory::{MemoryConnector, MemoryStream};
use migration_ipc::{
    Answer, ConnectionEvent, Effects, Execution, HandlerError, IpcServer, MessageDispatcher,
    MessagePayload, Observed, OutboxId, Outcome, RawValue, ReconnectingIpcClient, Reply, Sender,
    State, StoreOwner,
};
use migration_ipc_testkit::disk::SimDisk;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::format::FmtSpan;

const SECRET: &str = "hunter2";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unlock {
    archive: String,
    password: Sensitive<String>,
    #[serde(default)]
    tokens: Vec<Sensitive<String>>,
}

impl MessagePayload for Unlock {
    const TYPE: &'static str = "UNLOCK";
    const SENDER: Sender = Sender::Any;
    const SENSITIVE: bool = true;
}

fn unlock(archive: &str) -> Unlock {
    Unlock {
        archive: archive.to_owned(),
        password: Sensitive::new(SECRET.to_owned()),
        tokens: vec![Sensitive::new(SECRET.to_owned())],
    }
}

// --- everything that prints ----------------------------------------------------------------------

/// The whole log, spans included, and the names and labels of all metrics.
struct Ears {
    log: Log,
    keys: &'static Keys,
    _recording: LocalRecorderGuard<'static>,
    _logging: DefaultGuard,
}

impl Ears {
    fn open() -> Self {
        ask_each_time();
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        // The guard borrows its recorder; a test program may keep a few hundred bytes.
        let keys: &'static Keys = Box::leak(Box::default());
        Self {
            log,
            keys,
            _recording: metrics::set_default_local_recorder(keys),
            _logging: tracing::subscriber::set_default(subscriber),
        }
    }

    /// Checks that the log has these texts, so that it is known to be heard, and not the secret.
    fn heard(&self, expected: &[&str]) {
        let log = self.log.text();
        for text in expected {
            assert!(log.contains(text), "{text} is not in the log:\n{log}");
        }
        assert_hidden("the log", &log);
        let keys = self.keys.0.lock().unwrap();
        assert!(
            keys.iter().any(|key| key.contains("ipc_messages_total")),
            "{keys:?}"
        );
        assert_hidden("the metrics", &format!("{keys:?}"));
    }
}

#[derive(Debug, Default)]
struct Keys(Mutex<BTreeSet<String>>);

impl Keys {
    fn note(&self, key: &Key) {
        self.0.lock().unwrap().insert(key.to_string());
    }
}

impl Recorder for Keys {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.note(key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.note(key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.note(key);
        Histogram::noop()
    }
}

#[track_caller]
fn assert_hidden(what: &str, text: &str) {
    assert!(!text.contains(SECRET), "{what}: {text}");
}

// --- the service ---------------------------------------------------------------------------------

/// What handlers have seen, so that the secret is known to have arrived.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

/// Answers with the same, fails, or panics, as the name of the archive says.
async fn on_unlock(
    unlock: Unlock,
    State(seen): State<Seen>,
) -> Result<Reply<Unlock>, HandlerError> {
    tracing::trace!(?unlock, "a careless handler");
    seen.0
        .lock()
        .unwrap()
        .push(unlock.password.expose().clone());
    match &*unlock.archive {
        "locked" => Err(HandlerError::new(format!("cannot unlock {unlock:?}"))),
        "broken" => panic!("{unlock:?} is broken"),
        _ => Ok(Reply(unlock)),
    }
}

struct Service {
    ears: Ears,
    seen: Seen,
    store: StoreOwner,
    server: IpcServer,
    connector: MemoryConnector,
}

impl Service {
    async fn start() -> Self {
        let ears = Ears::open();
        let options = StoreOptions {
            journal: Journal::Newest(NonZeroU64::new(100).unwrap()),
        };
        let fresh = OutboxId::from_bytes([9; 16]);
        let disk = Arc::new(SimDisk::new(0));
        let (store, _) = Store::open(disk, "store", options, fresh).unwrap();
        let store = StoreOwner::start(store, Execution::Inline);
        let seen = Seen::default();
        let dispatcher = MessageDispatcher::builder(seen.clone())
            .handle(on_unlock)
            .build()
            .unwrap();
        let handle = store.handle();
        let (server, connector) = serve_with(dispatcher, |server| server.store(handle)).await;
        Self {
            ears,
            seen,
            store,
            server,
            connector,
        }
    }

    /// A peer whose messages are numbered, so that they are journaled, and kept when rejected.
    async fn peer(&self) -> WirePeer {
        let mut peer = WirePeer::connect(&self.connector, user("1000")).await;
        let mut hello = hello("agent", 1000);
        hello["capabilities"]
            .as_array_mut()
            .unwrap()
            .push("durable".into());
        hello["outbox"] = "00112233445566778899aabbccddeeff".into();
        peer.send("HELLO", hello).await;
        peer.receive().await;
        peer
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let reading = self.store.handle();
        let letters = reading.read(|reader| reader.dead_letters(0, 100)).await;
        let letters = letters.unwrap().into_iter();
        letters.map(|kept| kept.letter).collect()
    }

    async fn journal(&self) -> String {
        let reading = self.store.handle();
        let entries = reading.read(|reader| reader.journal(0, 100)).await;
        format!("{:?}", entries.unwrap())
    }

    async fn stop(self) -> Ears {
        self.server.stop(Duration::from_secs(5)).await;
        self.store.close().await.unwrap();
        self.ears
    }
}

fn numbered(seq: u64, payload: &str) -> Vec<u8> {
    frame(&format!(
        r#"{{"id":"s{seq}","type":"UNLOCK","timestamp":"2024-01-01T12:00:00Z","seq":{seq},"payload":{payload}}}"#
    ))
}

/// Asks with a payload of which the service makes an error; gives its text.
async fn refusal_of(peer: &mut WirePeer, seq: u64, payload: &str) -> String {
    peer.write(&numbered(seq, payload)).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["success"], false, "{answer}");
    answer["error"].as_str().unwrap().to_owned()
}

// --- the tests -----------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_handled_answered_and_stored_is_in_no_log_and_no_metric() {
    let service = Service::start().await;
    let mut events = service.server.events();
    let mut messages = service.server.messages();
    let mut peer = service.peer().await;
    let payload = serde_json::to_string(&unlock("mail.pst")).unwrap();
    for _ in 0..2 {
        // The second time it is the reply that was stored.
        peer.write(&numbered(1, &payload)).await;
        let reply = peer.receive().await;
        assert_eq!(reply["type"], "UNLOCK");
        assert_eq!(reply["payload"]["password"], SECRET);
    }
    assert_eq!(*service.seen.0.lock().unwrap(), [SECRET]);
    assert_hidden("the journal", &service.journal().await);
    let Some(Observed::Item(received)) = messages.recv().await else {
        panic!("it was not observed");
    };
    assert!(received.message.payload.is_some());
    assert_hidden(
        "an observed message",
        &format!("{received:?} {received:#?}"),
    );
    drop(peer);
    loop {
        let Some(Observed::Item(event)) = events.recv().await else {
            panic!("no connection ended");
        };
        assert_hidden("an event", &format!("{event:?}"));
        if matches!(event, ConnectionEvent::Disconnected { .. }) {
            break;
        }
    }
    let ears = service.stop().await;
    ears.heard(&["a careless handler", "disconnected"]);
}

#[tokio::test(start_paused = true)]
async fn a_secret_in_a_payload_that_is_refused_is_in_no_answer_no_dead_letters_text_and_no_log() {
    let service = Service::start().await;
    let mut peer = service.peer().await;
    let wrong = [
        r#"{"archive":"a","password":{"text":"hunter2"}}"#,
        r#"{"archive":"a","password":["hunter2"]}"#,
        r#"{"archive":["hunter2"],"password":"x"}"#,
        r#"{"archive":{"hunter2":0},"password":"x"}"#,
        r#"{"archive":"a","password":"x","tokens":"hunter2"}"#,
        r#"{"password":"hunter2"}"#,
        r#"{"archive":"a","password":"hunter2","password":"hunter2"}"#,
        r#""hunter2""#,
        r#"["hunter2"]"#,
        // The handler fails, and panics, with a text that has the whole payload.
        r#"{"archive":"locked","password":"hunter2"}"#,
        r#"{"archive":"broken","password":"hunter2"}"#,
    ];
    for (seq, payload) in (1..).zip(wrong) {
        let text = refusal_of(&mut peer, seq, payload).await;
        assert_hidden(payload, &text);
    }
    // An envelope that breaks off, or is none, with the secret in it.
    let mut cut = numbered(99, r#"{"archive":"a","password":"hunter2"#);
    cut.truncate(cut.len() - 1);
    let length = i32::try_from(cut.len() - 4).unwrap();
    cut[..4].copy_from_slice(&length.to_le_bytes());
    peer.write(&cut).await;
    let answer = peer.receive_acknowledgment().await;
    assert_hidden("a cut envelope", &answer.to_string());
    peer.write(&frame(r#""hunter2""#)).await;

    let letters = service.dead_letters().await;
    assert_eq!(letters.len(), wrong.len(), "{letters:?}");
    for letter in &letters {
        assert_hidden("a dead letter", &format!("{letter:?} {}", letter.text));
        // The message itself is kept for the operator, as it came.
        assert!(
            letter
                .message
                .payload
                .as_ref()
                .unwrap()
                .get()
                .contains(SECRET)
        );
    }
    assert_hidden("the journal", &service.journal().await);
    drop(peer);
    service.stop().await.heard(&[
        "a message was refused",
        "a malformed message",
        "is broken",
        "not an object",
    ]);
}

/// A peer of another kind: the runtime's own client, which sends a secret and gets one.
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_secret_and_gets_one_prints_neither() {
    let service = Service::start().await;
    let stream = service.connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    let answer = client.send_acknowledged(unlock("mail.pst")).await.unwrap();
    assert_hidden("an answer", &format!("{answer:?}"));
    let Answer::Replied(reply) = answer else {
        panic!("no reply");
    };
    assert_eq!(reply.payload::<Unlock>().unwrap(), unlock("mail.pst"));
    let error = client
        .send_acknowledged(unlock("locked"))
        .await
        .unwrap_err();
    assert_hidden("an error", &format!("{error} {error:?}"));
    assert_hidden("a client", &format!("{client:?} {client:#?}"));
    client.disconnect().await;
    service.stop().await.heard(&["a careless handler"]);
}

/// What waits in a queue is text without a type, and was printed with the client, byte by byte.
#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_its_service_prints_nothing_of_what_waits() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(0));
    let nobody = || std::future::ready(Err::<MemoryStream, _>(io::ErrorKind::NotFound.into()));
    let client = ReconnectingIpcClient::builder(MessageDispatcher::empty())
        .connector(nobody)
        .outbox(disk, OutboxOptions::default())
        .execution(Execution::Inline)
        .start()
        .await
        .unwrap();
    let waiting = client.send(unlock("mail.pst")).await.unwrap();
    let kept = client.send_durable(unlock("mail.pst")).await.unwrap();
    for text in [
        format!("{client:?}"),
        format!("{client:#?}"),
        format!("{waiting:?} {kept:?}"),
    ] {
        assert_hidden("a client", &text);
        let bytes = format!("{:?}", SECRET.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(
            !text
                .replace(['\n', ' '], "")
                .contains(&bytes.replace(' ', "")),
            "{text}"
        );
    }
    assert!(format!("{client:?}").contains("in_memory: 1"), "{client:?}");
}

#[test]
fn what_a_handler_returns_shows_no_payload_when_it_is_printed() {
    let payload = || RawValue::from_string(json!({"password": SECRET}).to_string()).unwrap();
    let effects = Effects::new()
        .put("secrets", SECRET, SECRET)
        .reply("UNLOCK", payload());
    let stored = StoredOutcome::Replied {
        message_type: "UNLOCK".into(),
        payload: Box::<str>::from(payload()),
    };
    for text in [
        format!("{effects:?} {effects:#?}"),
        format!("{stored:?}"),
        format!("{:?}", Reply(unlock("a"))),
        format!("{:?}", outcome(effects)),
    ] {
        assert_hidden("a result", &text);
        assert!(!text.is_empty());
    }
    let value: Value = serde_json::to_value(&stored).unwrap();
    assert!(value.to_string().contains(SECRET), "it is stored as it is");
}

fn outcome(of: impl migration_ipc::IntoOutcome) -> Outcome {
    of.into_outcome()
}
