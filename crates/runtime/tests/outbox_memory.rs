//! What a full outbox costs in memory, as the allocator counts it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe to implement; this one only counts"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use migration_ipc::messages::{BackupProgress, Category, Percent};
use migration_ipc::storage::disk::Folder;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::transport::memory::MemoryStream;
use migration_ipc::{Backoff, MessageDispatcher, Overflow, ReconnectingIpcClient, SendOptions};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the arguments that it came with; counting
// does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_add(size, Ordering::Relaxed);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    let before = HELD.load(Ordering::Relaxed);
    let above = || HELD.load(Ordering::Relaxed).saturating_sub(before);
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
