//! How much memory many waiting messages take, as the allocator counts it.

use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::disk::Folder;
use migration_ipc_store::outbox::{Outbox, OutboxOptions};
use migration_ipc_testkit::memory::{CountingAllocator, Usage, measured};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const MIB: usize = 1024 * 1024;
const MESSAGES: u64 = 100_000;
const BATCH: u64 = 1_000;
const BODY: usize = 400;

#[test]
fn a_hundred_thousand_waiting_messages_take_less_than_64_mib() {
    let scratch = tempfile::tempdir().unwrap();
    let open = || {
        let folder = Arc::new(Folder::open(scratch.path()).unwrap());
        let id = OutboxId::from_bytes([7; 16]);
        Outbox::open(folder, OutboxOptions::default(), id).unwrap()
    };
    let (outbox, Usage { held, peak, .. }) = measured(|| {
        let (mut outbox, _) = open();
        for _ in 0..MESSAGES / BATCH {
            for _ in 0..BATCH {
                outbox.append(&[b'x'; BODY]).unwrap();
            }
            outbox.sync().unwrap();
        }
        outbox
    });
    println!("filled: {held} bytes held, {peak} at most");
    assert_eq!(outbox.waiting_messages() as u64, MESSAGES);
    assert!(held < 16 * MIB, "{held}");
    assert!(peak < 32 * MIB, "{peak}");
    drop(outbox);

    let ((mut outbox, report), Usage { held, peak, .. }) = measured(open);
    println!("opened: {held} bytes held, {peak} at most");
    assert_eq!(report.waiting as u64, MESSAGES);
    assert!(held < 16 * MIB, "{held}");
    assert!(peak < 48 * MIB, "{peak}");

    let ((), Usage { held, .. }) = measured(|| {
        for seq in 1..=MESSAGES {
            outbox.settle(seq);
        }
        while outbox.needs_sync() {
            outbox.sync().unwrap();
        }
    });
    assert_eq!(held, 0);
    assert_eq!(outbox.waiting_messages(), 0);
}
