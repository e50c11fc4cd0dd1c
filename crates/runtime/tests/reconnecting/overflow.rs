//! Queues that are full, and messages that are too old.

use std::time::Duration;

use migration_ipc::messages::{BackupProgress, Category, Percent, UserAction};
use migration_ipc::{Fate, Overflow, QueueLimits, Receipt, SendError, SendOptions};

use crate::common::*;
use crate::stage::*;

const THREE: QueueLimits = QueueLimits {
    messages: 3,
    bytes: 1_000_000,
};

fn progress_of(category: Category, percent: u64) -> BackupProgress {
    BackupProgress::new("u", category, Percent::of(percent, 100), percent, 100)
}

fn labels(receipts: &[Receipt]) -> Vec<&'static str> {
    receipts.iter().map(label).collect()
}

#[tokio::test(start_paused = true)]
async fn wait_waits_for_room() {
    let site = Site::default();
    let client = site.client().queue_limits(THREE).start().await.unwrap();
    for number in 0..3 {
        client.send(act(number)).await.unwrap();
    }
    let waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.send(act(3)).await });
    settle().await;
    assert!(!waiting.is_finished());
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    let messages = actions(&mut peer, 3).await;
    settle().await;
    assert!(!waiting.is_finished(), "what is under way holds its room");
    peer.acknowledge(&messages[0]).await;
    within(waiting).await.unwrap().unwrap();
    assert_eq!(names(&actions(&mut peer, 1).await), ["3"]);
}

#[tokio::test(start_paused = true)]
async fn reject_refuses_and_counts() {
    let watch = Watch::begin();
    let site = Site::default();
    let client = site
        .client()
        .queue_limits(THREE)
        .overflow::<UserAction>(Overflow::Reject)
        .start()
        .await
        .unwrap();
    for number in 0..3 {
        client.send(act(number)).await.unwrap();
    }
    assert!(matches!(client.send(act(3)).await, Err(SendError::Full)));
    let refused = watch.counter_with("ipc_overflows_total", &[("policy", "reject")]);
    assert_eq!(refused, 1);
}

#[tokio::test(start_paused = true)]
async fn drop_oldest_drops_the_oldest_of_its_type() {
    let watch = Watch::begin();
    let site = Site::default();
    let client = site
        .client()
        .queue_limits(THREE)
        .overflow::<UserAction>(Overflow::DropOldest)
        .start()
        .await
        .unwrap();
    let other = client.send(progress_of(Category::Files, 1)).await.unwrap();
    let mut receipts = Vec::new();
    for number in 0..5 {
        receipts.push(client.send(act(number)).await.unwrap());
    }
    assert_eq!(label(&other), "pending");
    assert_eq!(
        labels(&receipts),
        [
            "superseded",
            "superseded",
            "superseded",
            "pending",
            "pending"
        ]
    );
    let dropped = watch.counter_with("ipc_fates_total", &[("fate", "superseded")]);
    assert_eq!(dropped, 3);
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    assert_eq!(names(&actions(&mut peer, 2).await), ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn keep_latest_keeps_one_per_key_in_the_newest_ones_place() {
    for durable in [false, true] {
        let site = Site::default();
        let disk = migration_ipc_testkit::disk::SimDisk::new(1);
        let options = if durable {
            SendOptions::new().durable()
        } else {
            SendOptions::new()
        };
        let client = site
            .durable_client(&disk)
            .queue_limits(THREE)
            .outbox_limits(THREE)
            .overflow::<BackupProgress>(Overflow::KeepLatest)
            .start()
            .await
            .unwrap();
        let mut receipts = Vec::new();
        for (category, percent) in [
            (Category::Files, 1),
            (Category::Email, 2),
            (Category::Files, 3),
            (Category::Files, 4),
        ] {
            let progress = progress_of(category, percent);
            receipts.push(client.send_with(progress, options.clone()).await.unwrap());
        }
        assert_eq!(
            labels(&receipts),
            ["superseded", "pending", "superseded", "pending"]
        );
        let mut listener = site.open();
        let mut peer = accept(&mut listener, Kind::Durable).await;
        for (category, percent) in [("email", 2), ("files", 4)] {
            let message = peer.receive_type("BACKUP_PROGRESS").await;
            assert_eq!(message["payload"]["category"], category);
            assert_eq!(message["payload"]["progress"], percent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused_whatever_the_policy() {
    let site = Site::default();
    let client = site.client().queue_limits(THREE).start().await.unwrap();
    let batch = (0..4).map(act);
    let sent = client.send_batch(batch, SendOptions::new()).await;
    assert!(matches!(sent, Err(SendError::Full)));
    assert_eq!(client.outstanding(), 0, "all or none");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_old_expires_while_nobody_is_connected() {
    let site = Site::default();
    let disk = migration_ipc_testkit::disk::SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let short = SendOptions::new().time_to_live(Duration::from_secs(10));
    let in_memory = client.send_with(act(1), short.clone()).await.unwrap();
    let kept = client.send_with(act(2), short.durable()).await.unwrap();
    let lasting = client.send_durable(act(3)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!((label(&in_memory), label(&kept)), ("pending", "pending"));
    tokio::time::sleep(SOON).await;
    assert!(matches!(in_memory.try_fate(), Some(Fate::Expired)));
    assert!(matches!(kept.try_fate(), Some(Fate::Expired)));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(names(&actions(&mut peer, 1).await), ["3"]);
    assert_eq!(label(&lasting), "pending");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_no_peer_takes_is_refused_at_once() {
    let site = Site::default();
    let disk = migration_ipc_testkit::disk::SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let long = || act("x".repeat(1_048_576));
    assert!(matches!(
        client.send(long()).await,
        Err(SendError::Encode(_))
    ));
    assert!(matches!(
        client.send_durable(long()).await,
        Err(SendError::Encode(_))
    ));
    assert_eq!(client.outstanding(), 0);
}
