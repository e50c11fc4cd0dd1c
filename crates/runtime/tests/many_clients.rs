//! Many clients at once, beside some that never read and one whose handler is stuck: everybody
//! else completes, and the manager's counts are exact all the time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use migration_ipc::messages::{AgentStarted, BackupProgress, Category, Percent, UserAction};
use migration_ipc::{
    Answer, ConnectionConfig, ConnectionCounts, ConnectionManager, IpcClient, IpcServer,
    MessageDispatcher, SendError, State, Trust,
};
use tokio::task::JoinSet;

/// What Wine can do in reasonable time is less.
const CLIENTS: usize = if cfg!(windows) { 200 } else { 1000 };
const ROUND_TRIPS: u64 = if cfg!(windows) { 10 } else { 100 };
const NEVER_READ: usize = 10;
/// Clients that connect, or leave, at the same time.
const BATCH: usize = 50;
/// Long enough for a slow machine; a test that hangs should say where.
const WHOLE_TEST: Duration = Duration::from_secs(300);

async fn on_started(_: AgentStarted) {}

async fn on_progress(_: BackupProgress) {}

async fn on_action(_: UserAction, State(gate): State<Gate>) {
    gate.pass().await;
}

/// On a slow machine nobody is disconnected, and no answer given up, while we count.
fn patient() -> ConnectionConfig {
    let mut config = ConnectionConfig::default();
    config.timeouts.write_stall = WHOLE_TEST;
    config.timeouts.answer = WHOLE_TEST;
    config
}

async fn start(place: &Place, gate: &Gate) -> IpcServer {
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_started)
        .handle(on_progress)
        .handle(on_action)
        .build()
        .unwrap();
    IpcServer::builder(dispatcher)
        .endpoint_with(place.endpoint(), development())
        .connection_config(patient())
        .start()
        .await
        .unwrap()
}

async fn connect(place: &Place, session: usize) -> IpcClient {
    let mut client = client()
        .endpoint(place.endpoint())
        .trust(Trust::OwnAccount)
        .announce(&AgentStarted::new("", "1.0.0", session.to_string()))
        .connect_timeout(WHOLE_TEST)
        .connection_config(patient())
        .connect()
        .await
        .unwrap();
    client.announced().await.unwrap();
    client
}

async fn round_trips(client: &IpcClient) {
    for number in 0..ROUND_TRIPS {
        let progress = BackupProgress::new("", Category::Files, Percent::of(1, 2), number, 1000);
        let answer = client.send_acknowledged(progress).await;
        assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    }
}

/// A peer that announces itself, asks without end and reads nothing. Writing stops when the
/// server has stopped to read; the connection stays open until the task is aborted.
async fn never_read(place: &Place, announced: tokio::sync::oneshot::Sender<()>) {
    let stream = place.open(WHOLE_TEST).await.unwrap();
    let mut peer = WirePeer::over_boxed(stream);
    peer.send("AGENT_STARTED", agent_started("", "never reads"))
        .await;
    peer.receive_acknowledgment().await;
    announced.send(()).unwrap();
    loop {
        peer.send("BACKUP_PROGRESS", progress(1)).await;
    }
}

fn announced(count: usize) -> ConnectionCounts {
    ConnectionCounts {
        announced: count,
        ..ConnectionCounts::default()
    }
}

/// Counts all the time, until told to stop; returns how often.
async fn count(manager: ConnectionManager, expected: usize, stop: Arc<AtomicBool>) -> usize {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(manager.counts(), announced(expected), "after {looks} looks");
        assert_eq!(manager.announced().len(), expected);
        looks += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    looks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_complete_beside_some_that_never_read_and_a_stuck_handler() {
    raise_file_limit();
    tokio::time::timeout(WHOLE_TEST, many_clients())
        .await
        .expect("not stuck");
}

async fn many_clients() {
    let place = Arc::new(Place::new("many"));
    let gate = Gate::closed();
    let server = start(&place, &gate).await;
    let manager = server.connections();

    let mut never_readers = JoinSet::new();
    for present in 1..=NEVER_READ {
        let (announce, is_announced) = tokio::sync::oneshot::channel();
        let place = Arc::clone(&place);
        never_readers.spawn(async move { never_read(&place, announce).await });
        is_announced.await.unwrap();
        assert_eq!(manager.counts(), announced(present));
    }
    let stuck = connect(&place, CLIENTS).await;
    let question = stuck.connection().clone();
    let question = tokio::spawn(async move {
        question
            .send_acknowledged(UserAction::new("", "stuck"))
            .await
    });
    let others = NEVER_READ + 1;

    let mut clients = Vec::new();
    while clients.len() < CLIENTS {
        let batch = (0..BATCH).map(|number| connect(&place, clients.len() + number));
        clients.extend(futures_util::future::join_all(batch).await);
        assert_eq!(manager.counts(), announced(others + clients.len()));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count(manager.clone(), others + CLIENTS, Arc::clone(&stop)));
    let mut working = JoinSet::new();
    for client in clients {
        working.spawn(async move {
            round_trips(&client).await;
            client
        });
    }
    // Meanwhile the lanes of those that never read fill up, and nobody waits for them.
    let own = manager.announced()[0].peer().account().clone();
    for connection in manager.by_session(&own, &"never reads".into()) {
        let mut sent = 0;
        while let Ok(_id) = connection.try_send(UserAction::new("", "x".repeat(10_000))) {
            sent += 1;
            assert!(sent < 1000, "its lane is bounded");
        }
        let full = connection.try_send(UserAction::new("", "one more"));
        assert!(matches!(full, Err(SendError::Full)), "{full:?}");
    }
    let clients = working.join_all().await;
    stop.store(true, Ordering::Relaxed);
    assert!(counting.await.unwrap() > 0);
    assert_eq!(clients.len(), CLIENTS);

    assert!(!question.is_finished());
    gate.open();
    assert!(matches!(question.await.unwrap(), Ok(Answer::Handled)));

    // They leave, in an orderly way and at once.
    let mut remaining = others + CLIENTS;
    let mut clients = clients.into_iter();
    loop {
        let batch: Vec<_> = clients
            .by_ref()
            .take(BATCH)
            .map(IpcClient::disconnect)
            .collect();
        if batch.is_empty() {
            break;
        }
        remaining -= batch.len();
        futures_util::future::join_all(batch).await;
        eventually("those who left are gone", || {
            manager.counts() == announced(remaining)
        })
        .await;
    }
    stuck.disconnect().await;
    never_readers.shutdown().await;
    eventually("everybody is gone", || manager.counts().total() == 0).await;
    assert!(manager.all().is_empty());
    within(server.stop(PATIENCE)).await;
}
