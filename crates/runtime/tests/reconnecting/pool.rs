//! Several lanes to one service.

use std::time::Duration;

use migration_ipc::transport::Listener;
use migration_ipc::{ClientStartError, SendOptions};
use migration_ipc_testkit::disk::SimDisk;
use serde_json::Value;

use crate::common::*;
use crate::stage::*;

/// Takes the connections of a pool of three; the announced one comes first.
async fn accept_three(
    listener: &mut migration_ipc::transport::memory::MemoryListener,
) -> Vec<WirePeer> {
    let (mut announced, mut others) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut peer = WirePeer::over_boxed(within(listener.accept()).await.unwrap());
        let hello = peer.receive().await;
        let mut answer = crate::common::hello("agent", 100);
        answer["capabilities"] = hello["payload"]["capabilities"].clone();
        if hello["payload"]["outbox"].is_string() {
            answer["seen"] = 0.into();
        }
        peer.reply(&hello, "HELLO", answer).await;
        if peer.is_silent_for(Duration::from_millis(10)).await {
            others.push(peer);
        } else {
            announced.push(peer);
        }
    }
    assert_eq!(announced.len(), 1, "one lane is announced");
    announced.append(&mut others);
    announced
}

async fn action_of(peer: &mut WirePeer) -> Option<Value> {
    let next = peer.receive_type("USER_ACTION");
    tokio::time::timeout(Duration::from_millis(10), next)
        .await
        .ok()
}

#[tokio::test(start_paused = true)]
async fn messages_go_to_the_least_loaded_lane() {
    let site = Site::default();
    let mut listener = site.open();
    let pool = site
        .client()
        .start_pool(3.try_into().unwrap())
        .await
        .unwrap();
    let mut peers = accept_three(&mut listener).await;
    settle().await;
    assert!(
        pool.health()
            .iter()
            .all(migration_ipc::LaneHealth::is_healthy)
    );
    for number in 0..3 {
        pool.send(act(number)).await.unwrap();
    }
    let mut messages = Vec::new();
    for peer in &mut peers {
        messages.push(action_of(peer).await.expect("one for each lane"));
    }
    // Only the second lane answers, so it gets all that follows.
    peers[1].acknowledge(&messages[1]).await;
    settle().await;
    for number in 3..6 {
        let receipt = pool.send(act(number)).await.unwrap();
        let message = action_of(&mut peers[1])
            .await
            .expect("the free lane has it");
        peers[1].acknowledge(&message).await;
        assert!(fate(&receipt).await.is_handled());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_down_or_stuck_is_passed_over() {
    let site = Site::default();
    let mut listener = site.open();
    let pool = site
        .client()
        .start_pool(3.try_into().unwrap())
        .await
        .unwrap();
    let mut peers = accept_three(&mut listener).await;
    drop(peers.pop());
    let mut stuck = heartbeat(0);
    stuck["oldestUnhandledMs"] = 60_000.into();
    peers[1].send("HEARTBEAT", stuck).await;
    settle().await;
    let health = pool.health();
    let connected = health.iter().filter(|lane| lane.state.is_connected());
    assert_eq!(connected.count(), 2);
    let healthy: Vec<_> = health
        .iter()
        .map(migration_ipc::LaneHealth::is_healthy)
        .collect();
    assert_eq!(healthy.iter().filter(|healthy| **healthy).count(), 1);
    assert!(healthy[0]);
    for number in 0..4 {
        pool.send(act(number)).await.unwrap();
    }
    assert_eq!(
        names(&actions(&mut peers[0], 4).await),
        ["0", "1", "2", "3"]
    );
}

#[tokio::test(start_paused = true)]
async fn durable_messages_go_through_the_announced_lane() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let mut listener = site.open();
    let lanes = 3.try_into().unwrap();
    let pool = site.durable_client(&disk).start_pool(lanes).await.unwrap();
    let mut peers = accept_three(&mut listener).await;
    let batch = SendOptions::new().durable();
    for number in 0..4 {
        pool.send_with(act(number), batch.clone()).await.unwrap();
    }
    let messages = actions(&mut peers[0], 4).await;
    assert_eq!(names(&messages), ["0", "1", "2", "3"]);
    let remaining = pool.stop(Duration::ZERO).await;
    assert_eq!((remaining.kept, remaining.dropped), (4, 0));
}

#[tokio::test]
async fn a_pool_is_bounded() {
    let site = Site::default();
    let started = site.client().start_pool(17.try_into().unwrap()).await;
    match started {
        Err(ClientStartError::Config(error)) => {
            assert_eq!(error.to_string(), "lanes must be at most 16");
        }
        other => panic!("{other:?}"),
    }
}
