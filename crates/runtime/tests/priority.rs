//! Messages of different priorities on one connection, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use migration_ipc::messages::{
    AgentStarted, ConfigurationUpdate, Heartbeat, OverallStatus, ShutdownRequest, StatusUpdate,
    UserAction,
};
use migration_ipc::transport::memory;
use migration_ipc::{
    ConnectionConfig, IpcConnection, IpcServer, MessageDispatcher, MessageOptions, MessagePayload,
    Priority, Sender, Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::common::*;

const MIB: usize = 1024 * 1024;

/// The lanes of messages, most urgent first.
const LANES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Bulk];

fn with(priority: Priority) -> MessageOptions {
    MessageOptions::new().priority(priority)
}

fn update(key: &str, size: usize) -> ConfigurationUpdate {
    ConfigurationUpdate::new(key, Value::from("x".repeat(size)))
}

fn status() -> StatusUpdate {
    StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 1)
}

/// A server whose peers say hello or not, and announce themselves.
async fn serve_agents(
    config: ConnectionConfig,
    capacity: usize,
) -> (IpcServer, memory::MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(|_: UserAction| async {})
        .build()
        .unwrap();
    serve_on(
        memory::listen("priority", administrator(), capacity),
        dispatcher,
        |server| server.connection_config(config),
    )
    .await
}

/// A new peer that grants this many messages, and the server's end of its connection.
async fn agent(config: ConnectionConfig, credit: u32) -> (IpcServer, IpcConnection, WirePeer) {
    let (server, connector) = serve_agents(config, CAPACITY).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", credit).await;
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    peer.receive_acknowledgment().await;
    let connection = only_connection(&server).await;
    (server, connection, peer)
}

async fn send(connection: &IpcConnection, key: &str, size: usize, priority: Priority) {
    let sent = connection.send_with(update(key, size), with(priority));
    sent.await.unwrap();
}

/// The keys of the next messages.
async fn keys(peer: &mut WirePeer, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    for _ in 0..count {
        let message = peer.receive_type("CONFIGURATION_UPDATE").await;
        keys.push(message["payload"]["key"].as_str().unwrap().to_owned());
    }
    keys
}

/// Room for everything that a test sends.
fn roomy() -> ConnectionConfig {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_bytes = 64 * MIB;
    config.limits.outbound_messages = 100_000;
    config
}

/// How many messages of the type arrive before one of the other.
async fn count_until(peer: &mut WirePeer, counted: &str, awaited: &str) -> usize {
    let mut count = 0;
    loop {
        let message = peer.receive().await;
        if message["type"] == awaited {
            return count;
        }
        count += usize::from(message["type"] == counted);
    }
}

#[tokio::test(start_paused = true)]
async fn control_waits_at_most_for_one_write_while_a_mebibyte_after_the_other_goes_as_bulk() {
    let (_server, connection, mut peer) = agent(roomy(), 1000).await;
    for _ in 0..20 {
        send(&connection, "bulk", MIB - 200, Priority::Bulk).await;
    }
    for _ in 0..4 {
        // In the middle of the stream: some of it has arrived, and more is under way.
        peer.receive_type("CONFIGURATION_UPDATE").await;
        peer.send("USER_ACTION", action("x")).await;
        settle().await;
        let before = count_until(&mut peer, "CONFIGURATION_UPDATE", "ACKNOWLEDGMENT").await;
        // The rest of the write that was under way, and nothing more: one frame.
        assert!(before <= 1, "{before} messages went before");
    }
}

#[tokio::test(start_paused = true)]
async fn an_urgent_message_waits_at_most_for_one_write_too() {
    let (_server, connection, mut peer) = agent(roomy(), 1000).await;
    for _ in 0..20 {
        send(&connection, "bulk", MIB - 200, Priority::Bulk).await;
    }
    for _ in 0..4 {
        peer.receive_type("CONFIGURATION_UPDATE").await;
        let urgent = connection.send_with(status(), with(Priority::High));
        urgent.await.unwrap();
        let before = count_until(&mut peer, "CONFIGURATION_UPDATE", "STATUS_UPDATE").await;
        assert!(before <= 1, "{before} messages went before");
    }
}

#[tokio::test(start_paused = true)]
async fn bulk_gets_its_share_while_urgent_messages_never_end() {
    let (_server, connection, mut peer) = agent(ConnectionConfig::default(), 1_000_000).await;
    let flood = {
        let connection = connection.clone();
        tokio::spawn(async move {
            loop {
                send(&connection, "high", 1000, Priority::High).await;
            }
        })
    };
    settle().await;
    for _ in 0..50 {
        send(&connection, "bulk", 1000, Priority::Bulk).await;
    }
    let (mut high, mut bulk) = (0, 0);
    // What had left before the first bulk message came does not count.
    while bulk < 50 {
        match keys(&mut peer, 1).await.remove(0).as_str() {
            "bulk" => bulk += 1,
            _ => high += usize::from(bulk > 0),
        }
    }
    // In rounds of some 57 urgent ones and 4 of bulk.
    assert!((12 * 50..=18 * 50).contains(&high), "{high} for {bulk}");
    flood.abort();
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_priority_keep_their_order() {
    let (_server, connection, mut peer) = agent(roomy(), 10_000).await;
    let mut random = fastrand::Rng::with_seed(11);
    for number in 0..600 {
        let priority = LANES[random.usize(0..3)];
        let key = format!("{priority:?} {number}");
        send(&connection, &key, random.usize(0..5000), priority).await;
    }
    let mut last = [None; 3];
    for key in keys(&mut peer, 600).await {
        let (lane, number) = key.split_once(' ').unwrap();
        let lane = LANES
            .iter()
            .position(|one| format!("{one:?}") == lane)
            .unwrap();
        let number: u32 = number.parse().unwrap();
        assert!(last[lane] < Some(number), "{key} after {:?}", last[lane]);
        last[lane] = Some(number);
    }
}

#[tokio::test(start_paused = true)]
async fn the_lanes_share_credit_by_their_weights() {
    let (_server, connection, mut peer) = agent(roomy(), 0).await;
    for (priority, key) in LANES.into_iter().zip(["h", "n", "b"]) {
        for _ in 0..30 {
            // A frame is a little over 4 KiB.
            send(&connection, key, 4000, priority).await;
        }
    }
    assert_eq!(connection.queued_messages(), 90);
    let mut got = Vec::new();
    // One by one, as a peer whose handlers are slow grants them.
    for _ in 0..21 {
        peer.send("CREDIT", json!({"messages": 1})).await;
        got.extend(keys(&mut peer, 1).await);
    }
    let count = |key| got.iter().filter(|got| *got == key).count();
    assert_eq!([count("h"), count("n"), count("b")], [16, 4, 1]);
    assert_eq!(connection.queued_messages(), 69);
}

#[tokio::test(start_paused = true)]
async fn a_full_lane_keeps_no_message_of_another_priority_out() {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_messages = 3;
    let (_server, connection, mut peer) = agent(config, 0).await;
    for priority in LANES.into_iter().rev() {
        for _ in 0..3 {
            send(&connection, &format!("{priority:?}"), 1, priority).await;
        }
        let one_more = send(&connection, "late", 1, priority);
        let full = timeout(Duration::from_secs(1), one_more).await;
        assert!(full.is_err(), "the lane of {priority:?} is bounded");
    }
    assert_eq!(connection.queued_messages(), 9);
    // Room in one lane lets in whoever waits for that one.
    let waiting = {
        let connection = connection.clone();
        tokio::spawn(async move { send(&connection, "late", 1, Priority::High).await })
    };
    settle().await;
    peer.send("CREDIT", json!({"messages": 2})).await;
    within(waiting).await.unwrap();
    assert_eq!(keys(&mut peer, 2).await, ["High", "High"]);
}

/// It gives way to others, and that is not the peer's fault.
#[tokio::test(start_paused = true)]
async fn a_full_lane_is_not_held_against_a_peer_that_takes_more_urgent_messages() {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_bytes = 16 * 1024;
    let (server, connection, mut peer) = agent(config, 2).await;
    let mut floods = Vec::new();
    for priority in [Priority::High, Priority::Bulk] {
        let connection = connection.clone();
        floods.push(tokio::spawn(async move {
            loop {
                send(&connection, &format!("{priority:?}"), 1000, priority).await;
            }
        }));
    }
    let mut bulk = 0;
    for _ in 0..300 {
        peer.send("CREDIT", json!({"messages": 2})).await;
        for key in keys(&mut peer, 2).await {
            bulk += usize::from(key == "Bulk");
        }
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
    assert_eq!(server.connections().counts().announced, 1);
    assert!(bulk > 20, "{bulk}");
    for flood in floods {
        flood.abort();
    }
}

/// The same without anything more urgent: it is slow.
#[tokio::test(start_paused = true)]
async fn a_full_lane_of_bulk_is_held_against_a_peer_that_takes_nothing_else() {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_bytes = 16 * 1024;
    let (server, connection, mut peer) = agent(config, 2).await;
    let flood = tokio::spawn(async move {
        loop {
            let sent = connection.send_with(update("bulk", 1000), with(Priority::Bulk));
            if let Err(error) = sent.await {
                return error.to_string();
            }
        }
    });
    for second in 0..40 {
        let beat = envelope("h", "HEARTBEAT", heartbeat(second)).to_string();
        if peer.try_write(&frame(&beat)).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(server.connections().counts().announced, 0);
    let error = within(flood).await.unwrap();
    assert!(error.contains("too slowly"), "{error}");
}

/// A type of which everything may take its time.
#[derive(Debug, Serialize, Deserialize)]
struct Inventory {
    files: Vec<String>,
}

impl MessagePayload for Inventory {
    const TYPE: &'static str = "INVENTORY";
    const SENDER: Sender = Sender::Any;
    const PRIORITY: Priority = Priority::Bulk;
}

#[tokio::test(start_paused = true)]
async fn a_type_has_the_priority_that_it_says_unless_the_sender_says_another() {
    let (_server, connection, mut peer) = agent(roomy(), 0).await;
    let inventory = |name: &str| Inventory {
        files: vec![name.to_owned()],
    };
    connection.send(inventory("bulk")).await.unwrap();
    connection.send(status()).await.unwrap();
    let high = with(Priority::High);
    connection.send_with(inventory("high"), high).await.unwrap();
    connection.send(ShutdownRequest::new("x")).await.unwrap();
    peer.send("CREDIT", json!({"messages": 4})).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let message = peer.receive().await;
        let name = message["payload"]["files"][0].as_str();
        let message_type = message["type"].as_str().unwrap();
        order.push(name.unwrap_or(message_type).to_owned());
    }
    assert_eq!(order, ["high", "SHUTDOWN_REQUEST", "STATUS_UPDATE", "bulk"]);
}

/// The peer would never give the credit back.
#[tokio::test(start_paused = true)]
async fn what_runs_the_connection_needs_no_credit_whatever_priority_its_sender_names() {
    let (_server, connection, mut peer) = agent(roomy(), 0).await;
    send(&connection, "waits", 1, Priority::High).await;
    let heartbeat = Heartbeat::new("service", Timestamp::UNIX_EPOCH, 7);
    let sent = connection.send_with(heartbeat, with(Priority::Bulk));
    sent.await.unwrap();
    assert_eq!(connection.queued_messages(), 1);
    assert_eq!(peer.receive().await["payload"]["sequenceNumber"], 7);
}

/// Deployed agents get messages in the order in which they were sent, as ever.
#[tokio::test(start_paused = true)]
async fn a_plain_peer_gets_every_type_in_the_order_in_which_it_was_sent() {
    let (server, connector) = serve_agents(roomy(), 1024).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    peer.receive_acknowledgment().await;
    let connection = only_connection(&server).await;
    // More than the peer's end holds, so that the rest waits in the lanes.
    connection.send(update("first", 10_000)).await.unwrap();
    settle().await;
    let inventory = Inventory { files: vec![] };
    connection.send(inventory).await.unwrap();
    connection.send(status()).await.unwrap();
    connection.send(ShutdownRequest::new("x")).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..4 {
        let message = peer.receive().await;
        order.push(message["type"].as_str().unwrap().to_owned());
    }
    let expected = [
        "CONFIGURATION_UPDATE",
        "INVENTORY",
        "STATUS_UPDATE",
        "SHUTDOWN_REQUEST",
    ];
    assert_eq!(order, expected);
}

/// A sender that waits for the end of a write, of which it is a part, is not passed over for ever:
/// however often the peer asks for something, what is over the limit of a write gets its turn.
#[tokio::test(start_paused = true)]
async fn a_large_message_gets_through_between_answers_without_end() {
    let (_server, connection, mut peer) = agent(roomy(), 1000).await;
    let mut asked = 0;
    let mut arrived = 0;
    for round in 0..200 {
        if round % 50 == 10 {
            send(&connection, "large", MIB - 200, Priority::Bulk).await;
        }
        let mut bytes = Vec::new();
        for _ in 0..100 {
            bytes.extend(peer.frame("USER_ACTION", action("x")).1);
        }
        peer.write(&bytes).await;
        asked += 100;
        while asked > 0 {
            match peer.receive().await["type"].as_str().unwrap() {
                "ACKNOWLEDGMENT" => asked -= 1,
                "CONFIGURATION_UPDATE" => arrived += 1,
                _ => {}
            }
        }
    }
    assert_eq!(arrived, 4);
}
