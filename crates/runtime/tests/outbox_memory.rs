//! What a full outbox costs in memory, as the allocator counts it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use migration_ipc::messages::{BackupProgress, Category, Percent};
use migration_ipc::storage::disk::Folder;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::transport::memory::MemoryStream;
use migration_ipc::{Backoff, MessageDispatcher, Overflow, ReconnectingIpcClient, SendOptions};
use migration_ipc_testkit::memory::{CountingAllocator, held_by_process};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const MIB: usize = 1024 * 1024;
const LIMIT: usize = 64 * MIB;
const MESSAGES: usize = 100_000;

async fn nobody() -> io::Result<MemoryStream> {
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// A client that is never connected. The types' overflow is the one that remembers most.
async fn client(folder: &Path) -> ReconnectingIpcClient {
    ReconnectingIpcClient::builder(MessageDispatcher::empty())
        .connector(nobody)
        .backoff(Backoff::default().unlimited())
        .outbox(
            Arc::new(Folder::open(folder).unwrap()),
            OutboxOptions::default(),
        )
        .overflow::<BackupProgress>(Overflow::KeepLatest)
        .start()
        .await
        .unwrap()
}

fn progress(number: usize) -> BackupProgress {
    let done = u64::try_from(number).unwrap();
    let mut progress = BackupProgress::new(
        "S-1-5-21-1004336348-1177238915-682003330-512",
        Category::Files,
        Percent::of(done, 1_000_000),
        done,
        1_000_000,
    );
    progress.current_file = Some("C:\\Users\\somebody\\Documents\\Reports\\".repeat(3));
    progress
}

/// With a receipt for each that somebody holds, and again after a restart, without.
#[tokio::test]
async fn a_hundred_thousand_waiting_messages_cost_under_64_mib() {
    let folder = tempfile::tempdir().unwrap();
    let before = held_by_process();
    let above = || held_by_process().saturating_sub(before);
    let waiting = client(folder.path()).await;
    let mut receipts = Vec::with_capacity(MESSAGES);
    for batch in 0..MESSAGES / 1000 {
        let messages = (0..1000).map(|number| progress(batch * 1000 + number));
        let options = SendOptions::new()
            .durable()
            .time_to_live(Duration::from_secs(3600));
        receipts.extend(waiting.send_batch(messages, options).await.unwrap());
    }
    assert_eq!(waiting.outstanding(), MESSAGES);
    eprintln!("accepted: {} KiB", above() / 1024);
    assert!(above() < LIMIT, "{}", above());
    waiting.stop(Duration::ZERO).await;
    drop((waiting, receipts));

    let waiting = client(folder.path()).await;
    assert_eq!(waiting.outstanding(), MESSAGES);
    eprintln!("found: {} KiB", above() / 1024);
    assert!(above() < LIMIT, "{}", above());
}
