//! What code takes of memory, as the allocator counts it.
#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe to implement; this one only counts"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, which counts. A test makes it its own:
///
/// ```
/// use migration_ipc_testkit::memory::{CountingAllocator, measured};
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;
///
/// let (_held, usage) = measured(|| vec![0_u8; 1000]);
/// assert_eq!((usage.held, usage.allocations), (1000, 1));
/// ```
#[derive(Debug)]
pub struct CountingAllocator;

static HELD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static HELD_HERE: Cell<usize> = const { Cell::new(0) };
    static PEAK_HERE: Cell<usize> = const { Cell::new(0) };
    static ALLOCATIONS_HERE: Cell<usize> = const { Cell::new(0) };
}

/// What some work took of memory, as one thread sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes more than before at the worst moment.
    pub peak: usize,
    /// Bytes more than before in the end.
    pub held: usize,
    /// How often memory was asked for.
    pub allocations: usize,
}

/// Bytes that the process holds.
#[must_use]
pub fn held_by_process() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Bytes that this thread has taken and not given back. Only a difference means something: what
/// another thread gives back is not noticed here, so the count may even wrap.
#[must_use]
pub fn held_by_thread() -> usize {
    HELD_HERE.get()
}

/// Runs `work`, and says what this thread took for it; other threads do not disturb it.
pub fn measured<R>(work: impl FnOnce() -> R) -> (R, Usage) {
    let before = HELD_HERE.get();
    PEAK_HERE.set(before);
    ALLOCATIONS_HERE.set(0);
    let result = work();
    let usage = Usage {
        peak: PEAK_HERE.get().saturating_sub(before),
        held: HELD_HERE.get().saturating_sub(before),
        allocations: ALLOCATIONS_HERE.get(),
    };
    (result, usage)
}

fn count(taken: usize, given: usize) {
    HELD.fetch_add(taken, Ordering::Relaxed);
    HELD.fetch_sub(given, Ordering::Relaxed);
    // Memory may be given back by another thread than the one that took it.
    let held = HELD_HERE.get().wrapping_add(taken).wrapping_sub(given);
    HELD_HERE.set(held);
    PEAK_HERE.set(PEAK_HERE.get().max(held));
    if taken > 0 {
        ALLOCATIONS_HERE.set(ALLOCATIONS_HERE.get() + 1);
    }
}

// SAFETY: every call goes to the system's allocator with the arguments that it came with; counting
// does not allocate, since the cells are constant-initialised and need no destructor.
unsafe impl GlobalAlloc for CountingAllocator {
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
