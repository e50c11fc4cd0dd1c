//! Heartbeats, and when a silent peer counts as gone.

use std::time::Duration;

use migration_ipc::DisconnectReason;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::served_peer;

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
