//! Heartbeats, and when a silent peer counts as gone.

use std::time::Duration;

use migration_ipc::DisconnectReason;
use migration_ipc::messages::ConfigurationUpdate;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::{Stage, delay, served_peer};

const INTERVAL: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_plain_peer_gets_a_heartbeat_every_30_s_whatever_else_is_sent() {
    let (_server, mut peer) = served_peer().await;
    let start = Instant::now();
    let mut heartbeats = Vec::new();
    while heartbeats.len() < 4 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        peer.send("USER_ACTION", action("x")).await;
        loop {
            let message = peer.receive().await;
            if message["type"] == "ACKNOWLEDGMENT" {
                break;
            }
            heartbeats.push(start.elapsed().as_secs());
        }
    }
    for (heartbeat, expected) in heartbeats.iter().zip([30, 60, 90, 120]) {
        assert!(
            (expected..=expected + 5).contains(heartbeat),
            "{heartbeats:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_peer_gets_a_heartbeat_only_after_30_s_without_anything_else() {
    let (_server, mut peer) = served_peer().await;
    peer.hello("agent", 1000).await;
    for _ in 0..20 {
        assert!(peer.is_silent_for(Duration::from_secs(29)).await);
        peer.send("USER_ACTION", action("x")).await;
        peer.receive_acknowledgment().await;
    }
    let start = Instant::now();
    assert_eq!(peer.receive().await["type"], "HEARTBEAT");
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_of_plain_peers_are_acknowledged_and_of_new_ones_are_not() {
    let (_server, mut plain) = served_peer().await;
    plain.send("HEARTBEAT", heartbeat(1)).await;
    assert_eq!(plain.receive_acknowledgment().await["success"], true);
    let (_server, mut new) = served_peer().await;
    new.hello("agent", 10).await;
    new.send("HEARTBEAT", heartbeat(1)).await;
    assert!(new.is_silent_for(Duration::from_secs(20)).await);
}

#[tokio::test(start_paused = true)]
async fn a_new_peer_that_is_silent_for_three_intervals_is_stale() {
    let (server, mut peer) = served_peer().await;
    let mut events = server.events();
    peer.hello("agent", 10).await;
    let start = Instant::now();
    assert_eq!(next_end(&mut events).await.reason, DisconnectReason::Stale);
    assert_eq!(start.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn any_byte_shows_that_a_peer_lives() {
    let (server, mut peer) = served_peer().await;
    let mut events = server.events();
    peer.hello("agent", 10).await;
    let (_, frame) = peer.frame("USER_ACTION", action("x"));
    tokio::time::sleep(Duration::from_secs(80)).await;
    peer.write(&frame[..1]).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    peer.write(&frame[1..]).await;
    let start = Instant::now();
    assert_eq!(next_end(&mut events).await.reason, DisconnectReason::Stale);
    assert_eq!(start.elapsed().as_secs(), 90);
}

#[tokio::test(start_paused = true)]
async fn a_plain_peer_is_judged_only_after_its_first_heartbeat() {
    let (server, mut peer) = served_peer().await;
    let mut events = server.events();
    peer.send("USER_ACTION", action("x")).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(
        server.connections().counts().total(),
        1,
        "nobody knows whether it sends any"
    );
    peer.send("HEARTBEAT", heartbeat(1)).await;
    let start = Instant::now();
    assert_eq!(next_end(&mut events).await.reason, DisconnectReason::Stale);
    assert_eq!(start.elapsed().as_secs(), 90);
}

/// The machine slept: what the peer sent meanwhile may still be on its way.
#[tokio::test(start_paused = true)]
async fn after_a_gap_of_the_clock_everybody_gets_one_interval_of_grace() {
    let (server, mut peer) = served_peer().await;
    let mut events = server.events();
    peer.hello("agent", 10).await;
    tokio::time::advance(INTERVAL * 100).await;
    let woke = Instant::now();
    assert_eq!(next_end(&mut events).await.reason, DisconnectReason::Stale);
    assert_eq!(woke.elapsed(), INTERVAL);

    let (server, mut peer) = served_peer().await;
    peer.hello("agent", 10).await;
    tokio::time::advance(INTERVAL * 100).await;
    tokio::time::sleep(INTERVAL / 2).await;
    peer.send("HEARTBEAT", heartbeat(1)).await;
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!(server.connections().counts().total(), 1, "it woke as well");
}

fn telling_hello() -> serde_json::Value {
    let mut hello = hello("agent", 100);
    hello["capabilities"]
        .as_array_mut()
        .unwrap()
        .push("backlog".into());
    hello
}

/// The next heartbeat while the peer goes on sending something every second.
async fn next_heartbeat(peer: &mut WirePeer) -> serde_json::Value {
    loop {
        let waiting = tokio::time::timeout(Duration::from_secs(1), peer.receive());
        match waiting.await {
            Ok(message) if message["type"] == "HEARTBEAT" => return message,
            Ok(_) => {}
            Err(_) => {
                peer.send("HEARTBEAT", heartbeat(1)).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_says_how_long_the_oldest_unhandled_message_has_waited() {
    let stage = Stage::new();
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", telling_hello()).await;
    peer.receive().await;
    let heartbeat = next_heartbeat(&mut peer).await;
    assert_eq!(
        heartbeat["payload"].get("oldestUnhandledMs"),
        None,
        "there is nothing to handle"
    );
    // The oldest is a concurrent one that others overtake.
    peer.send("DELAY_REQUEST", delay(1)).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    peer.send("USER_ACTION", action("x")).await;
    let connection = only_connection(&server).await;
    let start = Instant::now();
    let mut waited = Vec::new();
    for _ in 0..3 {
        // What else is sent does not keep it from being said.
        connection
            .send(ConfigurationUpdate::new("key", true.into()))
            .await
            .unwrap();
        let heartbeat = next_heartbeat(&mut peer).await;
        waited.push(
            heartbeat["payload"]["oldestUnhandledMs"].as_u64().unwrap() / 1000
                - start.elapsed().as_secs(),
        );
    }
    assert!(
        waited.iter().all(|waited| (6..=8).contains(waited)),
        "{waited:?}"
    );
    stage.gate.open();
    let heartbeat = next_heartbeat(&mut peer).await;
    assert_eq!(heartbeat["payload"].get("oldestUnhandledMs"), None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_did_not_ask_is_told_nothing_of_what_waits() {
    let stage = Stage::new();
    let (_server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 100).await;
    peer.send("USER_ACTION", action("x")).await;
    for _ in 0..3 {
        let heartbeat = next_heartbeat(&mut peer).await;
        assert_eq!(heartbeat["payload"].get("oldestUnhandledMs"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_handlers_are_stuck_is_seen_as_such() {
    let watch = Watch::begin();
    let (server, mut peer) = served_peer().await;
    peer.send("HELLO", telling_hello()).await;
    peer.receive().await;
    let connection = only_connection(&server).await;
    let mut say = async |oldest: Option<u64>| {
        let mut payload = heartbeat(1);
        if let Some(oldest) = oldest {
            payload["oldestUnhandledMs"] = oldest.into();
        }
        peer.send("HEARTBEAT", payload).await;
        settle().await;
        connection.peer_backlog()
    };
    assert_eq!(say(None).await, None);
    assert_eq!(say(Some(29_999)).await, Some(Duration::from_millis(29_999)));
    assert_eq!(watch.warnings().len(), 0);
    assert_eq!(say(Some(30_000)).await, Some(INTERVAL));
    assert_eq!(say(Some(60_000)).await, Some(INTERVAL * 2));
    assert_eq!(watch.warnings().len(), 1, "{:?}", watch.warnings());
    assert_eq!(watch.counter_with("ipc_stuck_peers_total", &[]), 1);
    assert_eq!(say(None).await, None);
    assert_eq!(say(Some(30_000)).await, Some(INTERVAL));
    assert_eq!(watch.counter_with("ipc_stuck_peers_total", &[]), 2);
    // What was said long ago says nothing of today.
    for _ in 0..4 {
        tokio::time::sleep(INTERVAL - Duration::from_secs(1)).await;
        peer.send("USER_ACTION", action("x")).await;
    }
    assert_eq!(connection.peer_backlog(), None);
}
