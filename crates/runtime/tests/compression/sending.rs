//! What goes out compressed, and what does not.

use migration_ipc::messages::AgentStarted;
use migration_ipc::transport::memory;
use migration_ipc::{ConnectionConfig, MessageDispatcher};
use serde_json::json;

use crate::common::*;
use crate::peer::{RawPeer, answer_hello, client_of};
use crate::stage::{Ask, Manifest, Stage, THRESHOLD, compressing, manifest, noise, serving};

#[tokio::test(start_paused = true)]
async fn what_a_service_sends_to_a_peer_that_negotiated_it_is_compressed() {
    let (server, connector) = serving(&Stage::open(), compressing()).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["lz4"]).await;
    let connection = only_connection(&server).await;
    let sent = manifest(100);
    connection.send(sent.clone()).await.unwrap();
    let message = peer.receive_compressed().await;
    assert_eq!(message["type"], "MANIFEST");
    assert_eq!(message["payload"], json!(sent));
    connection.try_send(sent.clone()).unwrap();
    assert_eq!(peer.receive_compressed().await["payload"], json!(sent));
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sends_to_a_service_that_negotiated_it_is_compressed() {
    let (client, mut service) = client_of(compressing(), &["lz4"]).await;
    let sent = manifest(100);
    client.send(sent.clone()).await.unwrap();
    assert_eq!(service.receive_compressed().await["payload"], json!(sent));
    client.send(Ask { files: 1 }).await.unwrap();
    assert_eq!(service.receive().await["type"], "ASK");
}

#[tokio::test(start_paused = true)]
async fn replies_are_compressed() {
    let (_server, connector) = serving(&Stage::open(), compressing()).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["inReplyTo", "lz4"]).await;
    peer.send("ASK", Ask { files: 100 }).await;
    let reply = peer.receive_compressed().await;
    assert_eq!(reply["inReplyTo"], "m2");
    assert_eq!(reply["payload"], json!(manifest(100)));
    peer.send("ASK", Ask { files: 1 }).await;
    assert_eq!(peer.receive().await["payload"], json!(manifest(1)));
}

#[tokio::test(start_paused = true)]
async fn what_is_below_the_threshold_or_gains_nothing_is_not_compressed() {
    let (client, mut service) = client_of(compressing(), &["lz4"]).await;
    let frame_of = |files: &str| {
        // An id has 36 bytes, and a time at most seven digits of a fraction.
        let head = r#"{"id":"","type":"MANIFEST","timestamp":"","payload":{"files":[""]}}"#;
        4 + head.len() + 36 + "2024-01-01T12:00:00.1234567Z".len() + files.len()
    };
    let files = "x".repeat(THRESHOLD - frame_of("") - 1);
    for sent in [Manifest { files: vec![files] }, noise(5000)] {
        client.send(sent.clone()).await.unwrap();
        assert_eq!(service.receive().await["payload"], json!(sent));
    }
    let files = "x".repeat(THRESHOLD - frame_of("") + 8);
    let sent = Manifest { files: vec![files] };
    client.send(sent.clone()).await.unwrap();
    assert_eq!(service.receive_compressed().await["payload"], json!(sent));
}

/// Compression is a choice of its own: whoever can read it need not do it.
#[tokio::test(start_paused = true)]
async fn nothing_is_compressed_unless_that_was_configured() {
    let (client, mut service) = client_of(ConnectionConfig::default(), &["lz4"]).await;
    client.send(manifest(1000)).await.unwrap();
    assert_eq!(service.receive().await["payload"], json!(manifest(1000)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_did_not_negotiate_it_gets_nothing_compressed() {
    let (client, mut service) = client_of(compressing(), &["inReplyTo"]).await;
    client.send(manifest(300)).await.unwrap();
    assert_eq!(service.receive().await["payload"], json!(manifest(300)));

    let (server, connector) = serving(&Stage::open(), compressing()).await;
    for new in [true, false] {
        let mut peer = RawPeer::connect(&connector, "1000").await;
        if new {
            peer.hello(&["inReplyTo"]).await;
        }
        peer.send("ASK", Ask { files: 200 }).await;
        assert_eq!(peer.receive().await["payload"], json!(manifest(200)));
        let connection = server.connections().all().pop().unwrap();
        connection.send(manifest(300)).await.unwrap();
        assert_eq!(peer.receive().await["payload"], json!(manifest(300)));
        drop(peer);
        eventually("it is gone", || server.connections().all().is_empty()).await;
    }
}

/// The hello that negotiates it, and what goes out with it, is read before anything is known.
#[tokio::test(start_paused = true)]
async fn nothing_is_compressed_before_it_was_negotiated() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = RawPeer::over(at_service);
    let announcement = AgentStarted::new("", "x".repeat(2 * THRESHOLD), "1");
    let client = client()
        .connection_config(compressing())
        .announce(&announcement);
    let connecting = tokio::spawn(client.connect_over(at_client));
    answer_hello(&mut service, &["lz4"]).await;
    let message = service.receive().await;
    assert_eq!(message["type"], "AGENT_STARTED");
    drop(within(connecting).await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_each_agent_in_the_form_that_it_reads() {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .build()
        .unwrap();
    let (server, connector) =
        serve_with(dispatcher, |server| server.connection_config(compressing())).await;
    let mut agents = Vec::new();
    for (name, capabilities) in [
        ("1", Some(&["lz4"][..])),
        ("2", Some(&["inReplyTo"])),
        ("3", None),
        ("4", Some(&["lz4"])),
    ] {
        let mut agent = RawPeer::connect(&connector, name).await;
        if let Some(capabilities) = capabilities {
            agent.hello(capabilities).await;
        }
        agent.send("AGENT_STARTED", agent_started("", "1")).await;
        agent.receive().await;
        agents.push((agent, capabilities == Some(&["lz4"])));
    }
    let sent = manifest(100);
    let delivery = server.sender().broadcast(&sent).unwrap();
    assert_eq!(delivery.accepted.len(), 4);
    for (mut agent, compressed) in agents {
        let message = if compressed {
            agent.receive_compressed().await
        } else {
            agent.receive().await
        };
        assert_eq!(message["payload"], json!(sent));
    }
}
