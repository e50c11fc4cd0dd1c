//! What all connections of one account hold together, as the allocator counts it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use common::*;
use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, UserAction};
use migration_ipc::transport::memory::{MemoryConnector, listen};
use migration_ipc::{AccountLimits, IpcServer, MessageDispatcher, ServerLimits, State};
use migration_ipc_testkit::memory::{CountingAllocator, held_by_process};
use serde_json::Value;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const KIB: usize = 1024;
const CONNECTIONS: usize = 100;
/// What the account may hold. Each connection alone may hold half of it in its inbox.
const MEMORY: usize = 8 * 1024 * KIB;
/// Bytes that each direction of a connection holds: they are not the server's, and counted here.
const PIPE: usize = 4 * KIB;
const MESSAGE: usize = 100 * KIB;

/// What a connection costs when its account has no memory left: what an idle one costs, what it may
/// hold all the same in inbox and lanes, and what is between it and us.
const EACH: usize = 16 * KIB + 3 * 16 * KIB + 2 * PIPE;

async fn on_started(_: AgentStarted) {}

async fn on_action(action: UserAction, State(gate): State<Gate>) {
    if action.action != "bystander" {
        gate.pass().await;
    }
}

async fn start(gate: &Gate) -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_started)
        .handle(on_action)
        .build()
        .unwrap();
    let limits = ServerLimits {
        account: AccountLimits {
            memory: MEMORY,
            ..AccountLimits::default()
        },
        ..ServerLimits::default()
    };
    serve_on(
        listen("memory", administrator(), PIPE),
        dispatcher,
        |server| server.limits(limits),
    )
    .await
}

/// Somebody else is served while the account is at its limit.
async fn a_bystander_is_served(connector: &MemoryConnector) {
    let mut bystander = WirePeer::connect(connector, user("bystander")).await;
    for _ in 0..100 {
        bystander.send("USER_ACTION", action("bystander")).await;
        assert_eq!(bystander.receive_acknowledgment().await["success"], true);
    }
}

/// The most that is held above `before`, once nothing moves any more.
async fn most_held(before: usize) -> usize {
    let mut most = 0;
    for _ in 0..200 {
        settle().await;
        most = most.max(held_by_process().saturating_sub(before));
    }
    most
}

/// One test, because both would count each other's bytes.
#[tokio::test(start_paused = true)]
async fn one_account_with_many_connections_holds_no_more_than_its_memory() {
    full_inboxes_and_frames_that_arrive_in_part().await;
    answers_and_messages_that_nobody_takes().await;
}

async fn full_inboxes_and_frames_that_arrive_in_part() {
    let gate = Gate::closed();
    let (server, connector) = start(&gate).await;
    let before = held_by_process();
    let whole = frame(&envelope("a", "USER_ACTION", action(&"x".repeat(MESSAGE))).to_string());
    let whole: &'static [u8] = whole.leak();
    let mut floods = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut peer = WirePeer::connect(&connector, user("mallory")).await;
        floods.spawn(async move { while peer.try_write(whole).await.is_ok() {} });
    }
    let held = most_held(before).await;
    eprintln!("{CONNECTIONS} connections with full inboxes hold {held} bytes");
    assert!(held >= MEMORY, "the account is at its limit: {held}");
    // One frame goes on arriving beyond it.
    let most = MEMORY + 2 * MESSAGE + CONNECTIONS * EACH;
    assert!(held <= most, "{held} > {most}");
    a_bystander_is_served(&connector).await;
    floods.shutdown().await;
    gate.open();
    eventually("everything is given back", || {
        server.connections().counts().total() == 0
    })
    .await;
    within(server.stop(PATIENCE)).await;
}

async fn answers_and_messages_that_nobody_takes() {
    let gate = Gate::closed();
    gate.open();
    let (server, connector) = start(&gate).await;
    let mut peers = Vec::new();
    for number in 0..CONNECTIONS {
        let mut peer = WirePeer::connect(&connector, user("mallory")).await;
        peer.send("AGENT_STARTED", agent_started("", &number.to_string()))
            .await;
        peer.receive_type("ACKNOWLEDGMENT").await;
        peers.push(peer);
    }
    let before = held_by_process();
    // Nobody reads from here on.
    let text = ConfigurationUpdate::new("key", Value::from("x".repeat(10 * KIB)));
    let sending = async {
        for _ in 0..100 {
            server.broadcast(&text).unwrap();
            settle().await;
        }
    };
    let asking = async {
        let question = flood_message();
        for peer in &mut peers {
            for _ in 0..100 {
                let asked = peer.try_write(&question);
                let _full = tokio::time::timeout(Duration::from_millis(1), asked).await;
            }
        }
    };
    tokio::join!(sending, asking);
    let held = most_held(before).await;
    eprintln!("{CONNECTIONS} connections that take nothing hold {held} bytes");
    assert!(held >= MEMORY, "the account is at its limit: {held}");
    // A lane's buffer grows in powers of two.
    let most = 2 * MEMORY + CONNECTIONS * EACH;
    assert!(held <= most, "{held} > {most}");
    a_bystander_is_served(&connector).await;
    drop(peers);
    within(server.stop(PATIENCE)).await;
}
