//! The orderly end: accept nobody, dispatch nothing, finish handlers, flush, say goodbye, wait.

use std::time::Duration;

use migration_ipc::messages::UserAction;
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{DisconnectReason, IpcServer, SendError, StopReport};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::Stage;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A server that stops while the first of two messages of a new peer is being handled.
struct Stopping {
    stage: Stage,
    connector: MemoryConnector,
    peer: WirePeer,
    stopping: JoinHandle<StopReport>,
    begun: Instant,
}

impl Stopping {
    async fn begin(says_hello: bool) -> Self {
        let stage = Stage::new();
        let (server, connector) = serve(stage.dispatcher()).await;
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        if says_hello {
            peer.hello("agent", 10).await;
        }
        peer.send("USER_ACTION", action("at work")).await;
        peer.send("USER_ACTION", action("waiting")).await;
        settle().await;
        assert_eq!(stage.take(), ["begin at work"]);
        let begun = Instant::now();
        let stopping = tokio::spawn(IpcServer::stop(server, TIMEOUT));
        settle().await;
        Self {
            stage,
            connector,
            peer,
            stopping,
            begun,
        }
    }

    async fn report(self) -> StopReport {
        within(self.stopping).await.unwrap()
    }
}

fn report(connections: usize, unsent: usize, unhandled: usize) -> StopReport {
    let mut report = StopReport::default();
    (
        report.connections,
        report.unsent_messages,
        report.unhandled_messages,
    ) = (connections, unsent, unhandled);
    report
}

fn answers(messages: &[Value]) -> Vec<(&str, bool)> {
    let answers = messages
        .iter()
        .filter(|message| message["type"] == "ACKNOWLEDGMENT");
    answers
        .map(|answer| {
            let payload = &answer["payload"];
            let original = payload["originalMessageId"].as_str().unwrap();
            (original, payload["success"].as_bool().unwrap())
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_finishes_flushes_says_goodbye_and_waits_for_its_peer() {
    let mut server = Stopping::begin(true).await;
    // Nobody is accepted, and nothing more is dispatched.
    assert!(server.connector.connect(user("1001")).await.is_err());
    let late = server.peer.send("USER_ACTION", action("late")).await;
    settle().await;
    // What waited is told at once, so that it can be sent elsewhere.
    let refused = server.peer.receive_acknowledgment().await;
    assert_eq!(
        (&refused["success"], &refused["code"]),
        (&json!(false), &json!("stopping"))
    );
    server.stage.gate.open();
    let messages = server.peer.receive_to_end().await;
    assert_eq!(answers(&messages), [("m2", true), (late.as_str(), false)]);
    assert_eq!(messages.last().unwrap()["type"], "GOODBYE");
    assert_eq!(messages.last().unwrap()["payload"]["reason"], "stopping");
    assert_eq!(server.stage.take(), ["end at work"]);
    // It waits for the peer to close.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!server.stopping.is_finished());
    drop(server.peer);
    let stopped = within(server.stopping).await.unwrap();
    assert_eq!(stopped, report(1, 0, 0));
    assert!(server.begun.elapsed() < TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_close_is_disconnected_at_the_deadline() {
    let mut server = Stopping::begin(true).await;
    server.stage.gate.open();
    server.peer.receive_to_end().await;
    let begun = server.begun;
    assert_eq!(server.report().await, report(1, 0, 0));
    assert_eq!(begun.elapsed().as_millis() / 100, TIMEOUT.as_millis() / 100);
}

#[tokio::test(start_paused = true)]
async fn a_plain_peer_is_told_nothing_that_it_does_not_know() {
    let mut server = Stopping::begin(false).await;
    server.stage.gate.open();
    let messages = server.peer.receive_to_end().await;
    assert_eq!(
        messages.len(),
        2,
        "two acknowledgments and the end: {messages:?}"
    );
    assert_eq!(answers(&messages), [("m2", false), ("m1", true)]);
}

/// Past the deadline a handler that does not come to an end is told so, and dropped when its grace
/// is over.
#[tokio::test(start_paused = true)]
async fn a_stuck_handler_cannot_keep_a_server_from_stopping() {
    let server = Stopping::begin(true).await;
    let (stage, begun) = (server.stage.clone(), server.begun);
    assert_eq!(server.report().await, report(1, 0, 1));
    assert_eq!(stage.take(), ["dropped at work"]);
    assert_eq!(
        begun.elapsed().as_secs(),
        15,
        "the deadline and the handlers' grace"
    );
}

#[tokio::test(start_paused = true)]
async fn queued_messages_are_written_before_the_goodbye() {
    let stage = Stage::new();
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 1).await;
    let connection = only_connection(&server).await;
    for name in ["1", "2", "3"] {
        connection.send(UserAction::new("", name)).await.unwrap();
    }
    let stopping = tokio::spawn(server.stop(TIMEOUT));
    settle().await;
    let error = connection.send(UserAction::new("", "4")).await.unwrap_err();
    assert!(
        matches!(error, SendError::Closed(DisconnectReason::Stopped)),
        "{error:?}"
    );
    // Two of them are still held back by credit.
    peer.send("CREDIT", json!({"messages": 2})).await;
    let sent: Vec<_> = peer.receive_to_end().await;
    let names: Vec<_> = sent
        .iter()
        .map(|message| &message["payload"]["action"])
        .collect();
    assert_eq!(names, [&json!("1"), &json!("2"), &json!("3"), &json!(null)]);
    assert_eq!(sent[3]["type"], "GOODBYE");
    drop(peer);
    assert_eq!(stopping.await.unwrap(), report(1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_credit_held_back_to_the_end_is_reported_unsent() {
    let (server, connector) = serve(Stage::new().dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 1).await;
    let connection = only_connection(&server).await;
    for name in ["1", "2", "3"] {
        connection.send(UserAction::new("", name)).await.unwrap();
    }
    assert_eq!(server.stop(TIMEOUT).await, report(1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn somebody_who_connects_during_the_stop_meets_nobody() {
    let (server, connector) = serve(Stage::new().dispatcher()).await;
    let mut silent = WirePeer::connect(&connector, user("1000")).await;
    let stopping = tokio::spawn(server.stop(TIMEOUT));
    assert_eq!(
        silent.receive_or_end().await,
        None,
        "an undecided peer is closed like a plain one"
    );
    drop(silent);
    stopping.await.unwrap();
    assert!(connector.connect(user("1000")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_server_stops_in_the_background() {
    let (server, connector) = serve(Stage::new().dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 10).await;
    drop(server);
    assert_eq!(peer.receive().await["type"], "GOODBYE");
    assert_eq!(peer.receive_or_end().await, None);
    assert!(connector.connect(user("1000")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_nobody_waits_for_goes_on() {
    let stage = Stage::new();
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 10).await;
    let id = peer.send("USER_ACTION", action("x")).await;
    settle().await;
    let impatient = tokio::time::timeout(Duration::from_secs(1), server.stop(TIMEOUT));
    assert!(impatient.await.is_err(), "a handler is at work");
    stage.gate.open();
    let acknowledgment = peer.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(acknowledgment["payload"]["originalMessageId"], id);
    assert_eq!(
        peer.receive_type("GOODBYE").await["payload"]["reason"],
        "stopping"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_disconnects_flushes_and_says_goodbye() {
    let stage = Stage::new();
    stage.gate.open();
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut events = server.events();
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    for _ in 0..1000 {
        client.send(UserAction::new("", "x")).await.unwrap();
    }
    assert_eq!(
        within(client.disconnect()).await,
        DisconnectReason::ClosedLocally
    );
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::Goodbye("done".into()));
    assert_eq!(
        stage.take().iter().filter(|said| *said == "end x").count(),
        1000
    );
}
