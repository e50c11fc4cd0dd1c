//! What connections cost the server's process in memory, as the allocator counts it. The clients
//! live in the same process and own next to nothing. (On Windows both ends of a pipe own buffers of
//! tokio's, up to 64 KiB for the read that is always pending; they would be counted here.)
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use common::*;
use migration_ipc::messages::{AgentStarted, BackupProgress, ConfigurationUpdate, UserAction};
use migration_ipc::{ConnectionConfig, IpcServer, MessageDispatcher, State};
use migration_ipc_testkit::memory::{CountingAllocator, held_by_process};
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const KIB: usize = 1024;
const IDLE: usize = 16 * KIB;
const CONNECTIONS: usize = 500;

/// Bytes held above what was held before.
fn above(before: usize) -> usize {
    held_by_process().saturating_sub(before)
}

async fn on_started(_: AgentStarted) {}

async fn on_progress(_: BackupProgress) {}

async fn on_action(_: UserAction, State(gate): State<Gate>) {
    gate.pass().await;
}

async fn start(place: &Place, gate: &Gate, config: ConnectionConfig) -> IpcServer {
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_started)
        .handle(on_progress)
        .handle(on_action)
        .build()
        .unwrap();
    IpcServer::builder(dispatcher)
        .endpoint_with(place.endpoint(), development())
        .connection_config(config)
        .start()
        .await
        .unwrap()
}

/// A new peer that announced itself and had one more message handled.
async fn connect(place: &Place) -> WirePeer {
    let stream = place.open(PATIENCE).await.unwrap();
    let mut peer = WirePeer::over_boxed(stream);
    peer.hello("agent", 100).await;
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    peer.receive_type("ACKNOWLEDGMENT").await;
    peer.send("BACKUP_PROGRESS", progress(1)).await;
    peer.receive_type("ACKNOWLEDGMENT").await;
    peer
}

async fn connect_all(place: &Place, count: usize) -> Vec<WirePeer> {
    let mut peers = Vec::with_capacity(count);
    for _ in 0..count {
        peers.push(connect(place).await);
    }
    peers
}

/// One test, because all of them would count each other's bytes.
#[tokio::test]
async fn connections_cost_what_they_should() {
    raise_file_limit();
    an_idle_connection_costs_less_than_16_kib().await;
    a_connection_that_was_busy_costs_no_more_than_another().await;
    a_partial_frame_costs_what_arrived().await;
    a_stuck_handler_costs_its_inbox().await;
}

async fn an_idle_connection_costs_less_than_16_kib() {
    let place = Place::new("idle");
    let server = start(&place, &Gate::closed(), ConnectionConfig::default()).await;
    drop(connect(&place).await);
    eventually("the first is gone", || {
        server.connections().counts().total() == 0
    })
    .await;
    let before = held_by_process();
    let peers = connect_all(&place, CONNECTIONS).await;
    let each = above(before) / CONNECTIONS;
    eprintln!("an idle connection holds {each} bytes");
    assert!(each < IDLE, "{each}");
    drop(peers);
    within(server.stop(PATIENCE)).await;
}

/// What a burst needed is given back by the next look at the clock.
async fn a_connection_that_was_busy_costs_no_more_than_another() {
    const BUSY: usize = 50;
    let mut config = ConnectionConfig::default();
    config.timeouts.heartbeat_interval = Duration::from_millis(200);
    config.timeouts.stale_intervals = 1000;
    let place = Place::new("busy");
    let server = start(&place, &Gate::closed(), config).await;
    let before = held_by_process();
    let mut peers = connect_all(&place, BUSY).await;
    let text = Value::from("x".repeat(200 * KIB));
    let mut big = progress(1);
    big["currentFile"] = text.clone();
    for connection in server.connections().announced() {
        connection
            .send(ConfigurationUpdate::new("key", text.clone()))
            .await
            .unwrap();
    }
    for peer in &mut peers {
        peer.receive_type("CONFIGURATION_UPDATE").await;
        peer.send("BACKUP_PROGRESS", big.clone()).await;
        peer.receive_type("ACKNOWLEDGMENT").await;
    }
    drop((big, text));
    eventually("the memory is given back", || above(before) / BUSY < IDLE).await;
    drop(peers);
    within(server.stop(PATIENCE)).await;
}

async fn a_partial_frame_costs_what_arrived() {
    const ARRIVED: usize = 20 * KIB;
    let place = Place::new("partial");
    let server = start(&place, &Gate::closed(), ConnectionConfig::default()).await;
    let mut peers = connect_all(&place, CONNECTIONS).await;
    let before = held_by_process();
    let mut begun = 1_048_576_i32.to_le_bytes().to_vec();
    begun.resize(ARRIVED, b'[');
    for peer in &mut peers {
        peer.write(&begun).await;
    }
    drop(begun);
    let arrived = CONNECTIONS * ARRIVED;
    eventually("all of it has arrived", || above(before) >= arrived).await;
    let each = above(before) / CONNECTIONS;
    eprintln!("a megabyte of which {ARRIVED} bytes arrived holds {each} bytes");
    assert!(each <= ARRIVED + 8 * KIB, "{each}");
    drop(peers);
    within(server.stop(PATIENCE)).await;
}

async fn a_stuck_handler_costs_its_inbox() {
    const LIMIT: usize = 4 * 1024 * KIB;
    let place = Place::new("stuck");
    let gate = Gate::closed();
    let server = start(&place, &gate, ConnectionConfig::default()).await;
    let before = held_by_process();
    let stream = place.open(PATIENCE).await.unwrap();
    let mut peer = WirePeer::over_boxed(stream);
    let (_, message) = peer.frame("USER_ACTION", action(&"x".repeat(500 * KIB)));
    let flood = async {
        loop {
            peer.write(&message).await;
        }
    };
    // The flood stops when nobody reads any more.
    let mut held = 0;
    let full = eventually("the inbox is full", || {
        held = above(before);
        held >= LIMIT
    });
    tokio::select! {
        () = flood => unreachable!(),
        () = full => {}
    }
    // One message more than its limit, and one that is arriving; the flood's own copy.
    let most = LIMIT + 3 * message.len() + 128 * KIB;
    assert!(held <= most, "{held} > {most}");
    gate.open();
    drop(peer);
    eventually("the connection is gone", || {
        server.connections().counts().total() == 0
    })
    .await;
    within(server.stop(PATIENCE)).await;
}
