//! Queues that hold one thing at a time, mostly.

use std::collections::VecDeque;

/// Lets a queue that is empty begin again at the start of its memory, which is in the processor's
/// cache. Otherwise each thing goes one place further, and a queue for one thing touches all of them.
pub(crate) fn rewind<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() {
        queue.clear();
    }
}
