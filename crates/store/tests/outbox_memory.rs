//! How much memory many waiting messages take, as the allocator counts it.
#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe to implement; this one only counts"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::disk::Folder;
use migration_ipc_store::outbox::{Outbox, OutboxOptions};

struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(taken: usize, given: usize) {
    let held = HELD.get().wrapping_add(taken).wrapping_sub(given);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call goes to the system's allocator with the arguments that it came with; counting
// does not allocate, since the cells are constant-initialised and need no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1024 * 1024;
const MESSAGES: u64 = 100_000;
const BATCH: u64 = 1_000;
const BODY: usize = 400;

/// Runs `work` and says how many bytes more than before it held in the end, and at its worst.
fn measured<R>(work: impl FnOnce() -> R) -> (R, usize, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (
        result,
        HELD.get().saturating_sub(before),
        PEAK.get() - before,
    )
}

#[test]
fn a_hundred_thousand_waiting_messages_take_less_than_64_mib() {
    let scratch = tempfile::tempdir().unwrap();
    let open = || {
        let folder = Arc::new(Folder::open(scratch.path()).unwrap());
        let id = OutboxId::from_bytes([7; 16]);
        Outbox::open(folder, OutboxOptions::default(), id).unwrap()
    };
    let (outbox, held, peak) = measured(|| {
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

    let ((mut outbox, report), held, peak) = measured(open);
    println!("opened: {held} bytes held, {peak} at most");
    assert_eq!(report.waiting as u64, MESSAGES);
    assert!(held < 16 * MIB, "{held}");
    assert!(peak < 48 * MIB, "{peak}");

    let ((), held, _) = measured(|| {
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
