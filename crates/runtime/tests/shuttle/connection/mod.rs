//! The very files of the runtime, on locks that the scheduler of the tests knows.

#[path = "../../../src/connection/frames.rs"]
pub(crate) mod frames;
#[path = "../../../src/connection/in_flight.rs"]
pub(crate) mod in_flight;
#[path = "../../../src/connection/lane.rs"]
pub(crate) mod lane;
#[path = "../../../src/connection/lanes.rs"]
pub(crate) mod lanes;
#[path = "../../../src/connection/outbound.rs"]
pub(crate) mod outbound;

/// An account that is held to nothing, as that of an administrator.
pub(crate) mod account {
    pub(crate) const MEMORY_FLOOR: usize = 4096;

    #[derive(Debug)]
    pub(crate) struct Account;

    impl Account {
        pub(crate) fn is_limited(&self) -> bool {
            false
        }

        pub(crate) fn is_out_of_memory(&self) -> bool {
            false
        }

        pub(crate) fn recount(&self, _counted: &mut usize, _held: usize) {}
    }
}

pub(crate) mod error {
    pub(crate) use migration_ipc::{Answer, SendError};
}

pub(crate) mod reason {
    pub(crate) use migration_ipc::DisconnectReason;
}

pub(crate) mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
}
