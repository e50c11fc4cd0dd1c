//! What a few bytes become is what counts.

use std::time::Duration;

use migration_ipc::{AccountLimits, ConnectionConfig, Rate, ServerLimits};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::*;
use crate::peer::{RawPeer, compressed};
use crate::stage::{Manifest, Stage, compressing, noise, serving};

/// A manifest of spaces, so to say: this many bytes that take next to nothing on the wire.
fn dense(length: usize) -> Manifest {
    Manifest {
        files: vec![" ".repeat(length)],
    }
}

#[tokio::test(start_paused = true)]
async fn the_inbox_counts_what_compressed_messages_become() {
    let stage = Stage::closed();
    let mut config = ConnectionConfig::default();
    config.limits.inbox_bytes = 1024 * 1024;
    let (server, connector) = serving(&stage, config).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["errorCodes", "lz4"]).await;
    let mut wire = Vec::new();
    for _ in 0..50 {
        let body = peer.body("MANIFEST", &dense(100_000));
        wire.extend(compressed(&body));
    }
    assert!(wire.len() < CAPACITY / 2, "all of it fits into one read");
    peer.write(&wire).await;
    settle().await;
    let stopping = tokio::spawn(server.stop(Duration::from_secs(60)));
    let mut refused = 0;
    while let Some(body) = peer.receive_body().await {
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["payload"]["code"], "stopping");
        refused += 1;
        if refused == 10 {
            // And the one that is at work; the rest was not even read before.
            stage.gate.open();
            break;
        }
    }
    // Ten and a half fill a mebibyte.
    let mut handled = 0;
    while let Some(body) = peer.receive_body().await {
        let answer: Value = serde_json::from_slice(&body).unwrap();
        handled += usize::from(answer["payload"]["success"] == true);
        if handled == 1 {
            break;
        }
        refused += 1;
    }
    assert_eq!((handled, refused), (1, 10));
    drop(peer);
    within(stopping).await.unwrap();
}

fn limited(account: AccountLimits) -> ServerLimits {
    ServerLimits {
        account,
        ..ServerLimits::default()
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_of_an_account_counts_what_compressed_messages_become() {
    let stage = Stage::open();
    let limits = limited(AccountLimits {
        bytes: Rate::PerSecond(100_000),
        burst: Duration::from_secs(1),
        patience: Duration::from_secs(600),
        ..AccountLimits::default()
    });
    let (_server, connector) = serve_with(stage.dispatcher(), |server| server.limits(limits)).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["lz4"]).await;
    let mut wire = Vec::new();
    for _ in 0..30 {
        let body = peer.body("MANIFEST", &dense(100_000));
        wire.extend(compressed(&body));
    }
    assert!(wire.len() < 30_000, "without compression no second's worth");
    let begun = Instant::now();
    peer.write(&wire).await;
    for _ in 0..30 {
        peer.receive().await;
    }
    let took = begun.elapsed().as_secs();
    assert!(
        (25..=31).contains(&took),
        "{took} s for 30 s worth of bytes"
    );
}

/// Many connections of one account, each with a message that is large once it is decompressed, and
/// handlers that are stuck: the account's memory bounds them as if they had come as they are.
#[tokio::test(start_paused = true)]
async fn the_memory_of_an_account_counts_what_compressed_messages_become() {
    const CONNECTIONS: usize = 40;
    let stage = Stage::closed();
    let limits = limited(AccountLimits {
        memory: 1024 * 1024,
        patience: Duration::from_secs(600),
        ..AccountLimits::default()
    });
    let (_server, connector) = serve_with(stage.dispatcher(), |server| server.limits(limits)).await;
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut peer = RawPeer::connect(&connector, "mallory").await;
        peer.hello(&["lz4"]).await;
        peer.send_compressed("MANIFEST", dense(500_000)).await;
        peers.push(peer);
        settle().await;
    }
    let begun = stage.gate.waiting();
    // Two fit, one goes beyond, and one has the turn of those that wait.
    assert!((2..=4).contains(&begun), "{begun} are at work");
    let mut bystander = RawPeer::connect(&connector, "bystander").await;
    bystander.hello(&["lz4"]).await;
    bystander
        .send_compressed("ASK", json!({"files": 1, "x": " ".repeat(1000)}))
        .await;
    assert_eq!(bystander.receive().await["type"], "MANIFEST");
    stage.gate.open();
    let opened = Instant::now();
    for peer in &mut peers {
        assert_eq!(peer.receive().await["payload"]["success"], true);
    }
    assert!(opened.elapsed() < Duration::from_secs(1), "no timer helped");
    assert_eq!(stage.got(), CONNECTIONS);
}

/// As frames that have arrived in part: they give nothing back while they wait, so they must not wait
/// for each other.
#[tokio::test(start_paused = true)]
async fn frames_that_are_kept_back_whole_do_not_wait_for_each_other() {
    let stage = Stage::closed();
    let limits = limited(AccountLimits {
        memory: 50_000,
        patience: Duration::from_secs(600),
        ..AccountLimits::default()
    });
    let (_server, connector) = serve_with(stage.dispatcher(), |server| server.limits(limits)).await;
    let mut hoarder = RawPeer::connect(&connector, "mallory").await;
    hoarder.hello(&["lz4"]).await;
    hoarder.send_compressed("MANIFEST", dense(60_000)).await;
    settle().await;
    // Each holds some 10 KiB as it comes, so it is read, and becomes too much to be taken.
    let mut large = noise(10_000);
    large.files.push(" ".repeat(400_000));
    let mut peers = Vec::new();
    for _ in 0..10 {
        let mut peer = RawPeer::connect(&connector, "mallory").await;
        peer.hello(&["lz4"]).await;
        peer.send_compressed("MANIFEST", large.clone()).await;
        peers.push(peer);
    }
    settle().await;
    assert_eq!(
        stage.gate.waiting(),
        2,
        "the hoarder's, and that of whose turn it is"
    );
    // The others hold more than there is, and nobody holds anything else.
    stage.gate.open();
    let opened = Instant::now();
    for peer in &mut peers {
        assert_eq!(peer.receive().await["payload"]["success"], true);
    }
    assert!(opened.elapsed() < Duration::from_secs(1), "no timer helped");
}

/// A frame at the limit is within it with and without compression.
#[tokio::test(start_paused = true)]
async fn the_longest_body_there_is_goes_through() {
    let stage = Stage::open();
    let (_server, connector) = serving(&stage, compressing()).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client()
        .connection_config(compressing())
        .connect_over(stream)
        .await
        .unwrap();
    for length in [1_048_000, 1_048_576] {
        let answer = client.send_acknowledged(dense(length)).await;
        assert_eq!(answer.is_ok(), length == 1_048_000, "{answer:?}");
    }
    assert_eq!(stage.got(), 1);
}
