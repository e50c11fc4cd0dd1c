//! What the queue between senders and driver locks with, in one place: the tests that try every
//! order of its steps (`tests/shuttle/`) put another one in its stead.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
