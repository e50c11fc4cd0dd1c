//! What leaves a connection, and peers that do not take it.

use std::time::Duration;

use migration_ipc::messages::{ConfigurationUpdate, OverallStatus, StatusUpdate};
use migration_ipc::transport::memory;
use migration_ipc::{
    ConnectionConfig, DisconnectReason, IpcConnection, IpcServer, MessageDispatcher, SendError,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::*;
use crate::stage::Stage;

/// Bytes that a peer's connection holds before a write to it waits.
const NARROW: usize = 1024;

fn update(size: usize) -> ConfigurationUpdate {
    ConfigurationUpdate::new("key", Value::from("x".repeat(size)))
}

fn status() -> StatusUpdate {
    StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 1)
}

/// A server behind narrow connections and a peer that announced itself.
async fn narrow(config: ConnectionConfig) -> (IpcServer, memory::MemoryConnector, WirePeer) {
    let stage = Stage::new();
    stage.gate.open();
    let dispatcher = stage
        .builder()
        .handle(|_: migration_ipc::messages::AgentStarted| async {})
        .build()
        .unwrap();
    let (server, connector) = serve_on(
        memory::listen("narrow", administrator(), NARROW),
        dispatcher,
        |server| server.connection_config(config),
    )
    .await;
    let peer = announced(&connector, "1000").await;
    (server, connector, peer)
}

async fn announced(connector: &memory::MemoryConnector, account: &str) -> WirePeer {
    let mut peer = WirePeer::connect(connector, user(account)).await;
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    peer.receive_acknowledgment().await;
    peer
}

async fn fill(connection: &IpcConnection) {
    let filling = async {
        loop {
            connection.send(update(1000)).await.unwrap();
        }
    };
    let filled: Result<(), _> = tokio::time::timeout(Duration::from_secs(1), filling).await;
    assert!(filled.is_err(), "the lane is bounded");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_byte_for_30_s_is_disconnected() {
    let (server, _connector, _peer) = narrow(ConnectionConfig::default()).await;
    let mut events = server.events();
    let connection = only_connection(&server).await;
    let start = Instant::now();
    connection.send(update(2 * NARROW)).await.unwrap();
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::SlowReader
    );
    assert_eq!(start.elapsed().as_secs(), 30);
}

/// A new peer that has announced itself and grants `credit` messages and no more.
async fn sparing(credit: u32) -> (IpcServer, IpcConnection, WirePeer) {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_messages = 4;
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", credit).await;
    let connection = only_connection(&server).await;
    (server, connection, peer)
}

/// Keeps the peer from being stale. `false` when its connection has ended.
async fn live_for(peer: &mut WirePeer, seconds: u64) -> bool {
    for second in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if peer
            .try_write(&frame(
                &envelope("h", "HEARTBEAT", heartbeat(second)).to_string(),
            ))
            .await
            .is_err()
        {
            return false;
        }
    }
    true
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_and_gives_no_credit_back_is_disconnected_after_30_s_of_a_full_lane() {
    let (server, connection, mut peer) = sparing(1).await;
    let mut events = server.events();
    for _ in 0..4 {
        connection.send(status()).await.unwrap();
        settle().await;
    }
    live_for(&mut peer, 100).await;
    assert_eq!(
        server.connections().counts().identified,
        1,
        "three messages do not fill a lane of four"
    );
    let start = Instant::now();
    connection.send(status()).await.unwrap();
    let waiting = tokio::spawn(async move { connection.send(status()).await });
    assert!(!live_for(&mut peer, 100).await);
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::SlowPeer
    );
    let error = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(error, SendError::Closed(DisconnectReason::SlowPeer)),
        "{error:?}"
    );
    assert!(start.elapsed() >= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_full_lane_that_is_half_empty_in_time_is_no_slow_peer() {
    let (server, connection, mut peer) = sparing(0).await;
    for _ in 0..3 {
        for _ in connection.queued_messages()..4 {
            connection.send(status()).await.unwrap();
        }
        assert!(live_for(&mut peer, 29).await);
        peer.send("CREDIT", json!({"messages": 2})).await;
        settle().await;
    }
    assert_eq!(server.connections().counts().identified, 1);
    for _ in connection.queued_messages()..4 {
        connection.send(status()).await.unwrap();
    }
    // One message less is no progress to speak of.
    peer.send("CREDIT", json!({"messages": 1})).await;
    assert!(!live_for(&mut peer, 31).await);
}

/// While we do not read, the peer's grants stay unread: the lane's being full is our doing.
#[tokio::test(start_paused = true)]
async fn a_full_lane_is_not_held_against_a_peer_that_we_do_not_read_from() {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_messages = 4;
    config.limits.inbox_messages = 1;
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 0).await;
    let connection = only_connection(&server).await;
    for _ in 0..4 {
        connection.send(status()).await.unwrap();
    }
    for _ in 0..3 {
        peer.send("USER_ACTION", action("x")).await;
    }
    peer.send("CREDIT", json!({"messages": 4})).await;
    settle().await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(server.connections().counts().identified, 1);
    stage.gate.open();
    for _ in 0..4 {
        peer.receive_type("STATUS_UPDATE").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_slowly_is_served() {
    let (server, _connector, mut peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    for _ in 0..5 {
        connection.send(update(NARROW)).await.unwrap();
    }
    // Longer than the stall's limit in all, and never so long without a byte.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(25)).await;
        peer.receive_type("CONFIGURATION_UPDATE").await;
    }
    assert_eq!(server.connections().counts().announced, 1);
}

#[tokio::test(start_paused = true)]
async fn the_outbound_lane_is_bounded_in_messages_and_bytes() {
    let mut few = ConnectionConfig::default();
    few.limits.outbound_messages = 3;
    let mut small = ConnectionConfig::default();
    small.limits.outbound_bytes = 3 * 1000;
    for config in [few, small] {
        let (server, _connector, mut peer) = narrow(config).await;
        let connection = only_connection(&server).await;
        fill(&connection).await;
        assert_eq!(connection.queued_messages(), 3);
        assert!(matches!(
            connection.try_send(update(1)),
            Err(SendError::Full)
        ));
        let sending = tokio::spawn(async move { connection.send(update(1)).await });
        settle().await;
        assert!(!sending.is_finished(), "it waits for room");
        while !sending.is_finished() {
            peer.receive().await;
        }
        sending.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_waits_for_nobody_and_says_whom_it_missed() {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_messages = 3;
    let (server, connector, _slow) = narrow(config).await;
    let stuck = only_connection(&server).await;
    fill(&stuck).await;
    let mut quick = announced(&connector, "1001").await;
    let delivery = server.broadcast(&status()).unwrap();
    assert_eq!(delivery.accepted.len(), 1);
    match &delivery.refused[..] {
        [(connection, SendError::Full)] => assert_eq!(*connection, stuck.id()),
        other => panic!("{other:?}"),
    }
    assert_eq!(quick.receive().await["type"], "STATUS_UPDATE");
}

#[tokio::test(start_paused = true)]
async fn answers_overtake_what_was_queued_before_them() {
    let (server, _connector, mut peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    for number in 0..100 {
        connection
            .send(ConfigurationUpdate::new("x".repeat(3000), json!(number)))
            .await
            .unwrap();
    }
    settle().await;
    peer.send("USER_ACTION", action("x")).await;
    let mut updates_before = 0;
    while peer.receive().await["type"] != "ACKNOWLEDGMENT" {
        updates_before += 1;
    }
    // Those of the write that was under way (64 KiB) and no more.
    assert!((1..=22).contains(&updates_before), "{updates_before}");
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_whole_and_in_order_through_a_narrow_connection() {
    let (server, _connector, mut peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    let sending = tokio::spawn(async move {
        for number in 0..300 {
            let key = "k".repeat(number * 7 % 2000);
            connection
                .send(ConfigurationUpdate::new(key, json!(number)))
                .await
                .unwrap();
        }
    });
    for number in 0..300 {
        assert_eq!(peer.receive().await["payload"]["value"], number);
    }
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_over_the_limit_is_refused_before_a_byte_is_written() {
    let (server, _connector, mut peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    let error = connection.send(update(1_048_576)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SendError::Encode(_)), "{error:?}");
    assert!(text.contains("over the limit of 1048576"), "{text}");
    let size: usize = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .find(|number| *number > 1_048_576)
        .unwrap_or_else(|| panic!("no size in {text:?}"));
    assert!(size < 1_048_576 + 300, "{size}");
    assert_eq!(connection.queued_messages(), 0);
    connection.send(status()).await.unwrap();
    assert_eq!(
        peer.receive().await["type"],
        "STATUS_UPDATE",
        "the first bytes there are"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reply_over_the_limit_is_a_failure_of_its_handler() {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: migration_ipc::messages::UserAction| async {
            migration_ipc::Reply(update(2_000_000))
        })
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("USER_ACTION", action("x")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["success"], false);
    assert!(
        answer["error"].as_str().unwrap().contains("1048576"),
        "{answer}"
    );
}

/// A message sent into a dying connection is reported: it was written or it is counted.
#[tokio::test(start_paused = true)]
async fn what_a_vanished_peer_did_not_take_is_counted() {
    let (server, _connector, peer) = narrow(ConnectionConfig::default()).await;
    let mut events = server.events();
    let connection = only_connection(&server).await;
    for _ in 0..50 {
        connection.send(update(4000)).await.unwrap();
    }
    settle().await;
    drop(peer);
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::ClosedByPeer);
    assert_eq!(
        end.unsent, 50,
        "none of them fits into the connection whole"
    );
    let error = connection.send(status()).await.unwrap_err();
    assert!(matches!(error, SendError::Closed(_)), "{error:?}");
    assert!(error.is_certainly_unhandled());
}

#[tokio::test(start_paused = true)]
async fn what_is_unanswered_when_the_connection_ends_is_of_unknown_fate() {
    let (server, _connector, mut peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    let sending = tokio::spawn(async move { connection.send_acknowledged(status()).await });
    peer.receive_type("STATUS_UPDATE").await;
    drop(peer);
    let error = within(sending).await.unwrap().unwrap_err();
    assert!(
        matches!(error, SendError::Lost(DisconnectReason::ClosedByPeer)),
        "{error:?}"
    );
    assert!(!error.is_certainly_unhandled());
}

/// Between the two fates is the write: what never reached one was certainly not sent.
#[tokio::test(start_paused = true)]
async fn what_never_left_its_lane_when_the_connection_ends_was_not_sent() {
    let (_server, connection, mut peer) = sparing(2).await;
    let sending: Vec<_> = (0..4)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.send_acknowledged(status()).await })
        })
        .collect();
    settle().await;
    for _ in 0..2 {
        peer.receive_type("STATUS_UPDATE").await;
    }
    drop(peer);
    let mut fates = Vec::new();
    for sending in sending {
        fates.push(match within(sending).await.unwrap().unwrap_err() {
            SendError::Lost(_) => "lost",
            SendError::Closed(_) => "not sent",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(fates, ["lost", "lost", "not sent", "not sent"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_in_the_write_that_was_cut_may_have_been_sent() {
    let (server, _connector, peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    let sending: Vec<_> = (0..2)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.send_acknowledged(update(60_000)).await })
        })
        .collect();
    settle().await;
    drop(peer);
    let mut fates = Vec::new();
    for sending in sending {
        let error = within(sending).await.unwrap().unwrap_err();
        fates.push(error.is_certainly_unhandled());
    }
    assert_eq!(fates, [false, true]);
}

#[tokio::test(start_paused = true)]
async fn what_is_unanswered_for_30_s_is_of_unknown_fate() {
    let (server, _connector, mut peer) = narrow(ConnectionConfig::default()).await;
    let connection = only_connection(&server).await;
    let start = Instant::now();
    let sending = tokio::spawn(async move { connection.send_acknowledged(status()).await });
    peer.receive_type("STATUS_UPDATE").await;
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, SendError::Unanswered), "{error:?}");
    assert!(
        (30..=34).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
}
