//! Durable messages to a deployed service: it answers in its own way and forgets what it had.

use std::time::Duration;

use migration_ipc::messages::BackupStarted;
use migration_ipc::{Fate, MessageFactory, SendError, SendOptions};
use serde_json::json;

use crate::common::*;
use crate::stage::*;

fn started() -> BackupStarted {
    BackupStarted::new("", Vec::new(), 1)
}

#[tokio::test(start_paused = true)]
async fn a_plain_service_sees_the_plain_wire() {
    let (_, _, client, _listener, mut peer) = connected_durable_client(Kind::Plain).await;
    client.send_durable(started()).await.unwrap();
    client.send_durable(act("x")).await.unwrap();
    for expected in ["BACKUP_STARTED", "USER_ACTION"] {
        let message = peer.receive().await;
        assert_eq!(message["type"], expected);
        let members: Vec<_> = message.as_object().unwrap().keys().collect();
        assert_eq!(members, ["id", "payload", "timestamp", "type"]);
    }
}

/// At least once for what is idempotent, at most once for what is not.
#[tokio::test(start_paused = true)]
async fn after_a_lost_connection_only_what_is_idempotent_is_sent_again() {
    let (site, _, client, listener, mut peer) = connected_durable_client(Kind::Plain).await;
    let action = client.send_durable(act("x")).await.unwrap();
    let backup = client.send_durable(started()).await.unwrap();
    peer.receive_type("BACKUP_STARTED").await;
    drop((peer, listener));
    assert!(matches!(
        fate(&action).await,
        Fate::Unknown(SendError::Lost(_))
    ));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    let message = peer.receive().await;
    assert_eq!(message["type"], "BACKUP_STARTED");
    peer.acknowledge(&message).await;
    assert!(fate(&backup).await.is_handled());
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
}

/// The sender was killed between the send and the answer.
#[tokio::test(start_paused = true)]
async fn after_a_crash_too_only_what_is_idempotent_is_sent_again() {
    let (site, disk, client, listener, mut peer) = connected_durable_client(Kind::Plain).await;
    let action = client.send_durable(act("x")).await.unwrap();
    client.send_durable(started()).await.unwrap();
    peer.receive_type("BACKUP_STARTED").await;
    disk.crash();
    drop((client, peer, listener));
    settle().await;

    let disk = disk.restart();
    let client = site.durable_client(&disk).start().await.unwrap();
    let mut fates = client.restored().unwrap();
    let first = within(fates.recv()).await.unwrap();
    assert_eq!(&first.id, action.id());
    assert!(matches!(first.fate, Fate::Unknown(_)));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    assert_eq!(peer.receive().await["type"], "BACKUP_STARTED");
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
}

/// What a new service may have handled is not given to the plain one that takes its place.
#[tokio::test(start_paused = true)]
async fn a_service_that_was_rolled_back_gets_nothing_twice() {
    let (site, _, client, listener, mut peer) = connected_durable_client(Kind::Durable).await;
    let receipt = client.send_durable(act("x")).await.unwrap();
    actions(&mut peer, 1).await;
    drop((peer, listener));
    until(&client, |state| !state.is_connected()).await;
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    assert!(matches!(fate(&receipt).await, Fate::Unknown(_)));
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
}

/// Deployed services answer some types with a message that does not say what it answers.
#[tokio::test(start_paused = true)]
async fn what_is_not_answered_is_tried_a_few_times_if_it_is_idempotent() {
    let (_, _, client, _listener, mut peer) = connected_durable_client(Kind::Plain).await;
    let action = client.send_durable(act("x")).await.unwrap();
    let backup = client.send_durable(started()).await.unwrap();
    let (mut backups, mut heartbeats) = (0, 0);
    while backup.try_fate().is_none() {
        let next = tokio::time::timeout(Duration::from_secs(5), peer.receive_or_end());
        match next.await {
            Ok(Some(message)) if message["type"] == "BACKUP_STARTED" => {
                backups += 1;
                let reply = json!({"overallStatus": "waiting", "blockingUsers": [],
                                   "readyUsers": [], "totalUsers": 1});
                peer.send("STATUS_UPDATE", reply).await;
            }
            Ok(Some(message)) if message["type"] == "HEARTBEAT" => {
                heartbeats += 1;
                peer.send("HEARTBEAT", heartbeat(heartbeats)).await;
            }
            Ok(Some(message)) => assert!(
                ["USER_ACTION", "ACKNOWLEDGMENT"].contains(&message["type"].as_str().unwrap()),
                "{message}"
            ),
            Ok(None) => panic!("the connection ended"),
            Err(_) => {}
        }
    }
    assert_eq!(backups, 3);
    assert_eq!((label(&action), label(&backup)), ("sent", "sent"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_a_plain_service_is_final() {
    let (_, _, client, _listener, mut peer) = connected_durable_client(Kind::Plain).await;
    let receipts = client
        .send_batch((0..2).map(act), SendOptions::new().durable())
        .await
        .unwrap();
    let messages = actions(&mut peer, 2).await;
    refuse(&mut peer, &messages[0], None).await;
    peer.acknowledge(&messages[1]).await;
    assert!(matches!(fate(&receipts[0]).await, Fate::Rejected(_)));
    assert!(fate(&receipts[1]).await.is_handled());
}

/// A message of a built-in type is as idempotent as its type, however it was made.
#[tokio::test(start_paused = true)]
async fn a_message_that_was_made_before_is_as_idempotent_as_its_type() {
    let (_, _, client, mut listener, mut peer) = connected_durable_client(Kind::Plain).await;
    let messages = vec![
        MessageFactory::create(&started()).unwrap(),
        MessageFactory::create(&act("once")).unwrap(),
    ];
    let durable = SendOptions::new().durable();
    let receipts = client.send_messages(messages, durable).await.unwrap();
    peer.receive_type("USER_ACTION").await;
    drop(peer);
    let mut peer = accept(&mut listener, Kind::Plain).await;
    peer.receive_type("BACKUP_STARTED").await;
    assert_eq!(
        (label(&receipts[0]), label(&receipts[1])),
        ("pending", "unknown")
    );
}
