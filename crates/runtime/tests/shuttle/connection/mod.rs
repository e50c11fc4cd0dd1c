//! The very files of the runtime, on locks that the scheduler of the tests knows.

#[path = "../../../src/connection/asking.rs"]
pub(crate) mod asking;
#[path = "../../../src/connection/frames.rs"]
pub(crate) mod frames;
#[path = "../../../src/connection/in_flight.rs"]
pub(crate) mod in_flight;
#[path = "../../../src/connection/lane.rs"]
pub(crate) mod lane;
#[path = "../../../src/connection/lane_kind.rs"]
pub(crate) mod lane_kind;
#[path = "../../../src/connection/lanes.rs"]
pub(crate) mod lanes;
#[path = "../../../src/connection/outbound.rs"]
pub(crate) mod outbound;
#[path = "../../../src/connection/rewind.rs"]
pub(crate) mod rewind;
#[path = "../../../src/connection/transfers.rs"]
pub(crate) mod transfers;

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

/// What items hold on to.
pub(crate) mod handle {
    use std::sync::Arc;

    use super::outbound::Outbound;

    #[derive(Debug, Clone)]
    pub(crate) struct IpcConnection(Arc<Outbound>);

    impl IpcConnection {
        pub(crate) fn outbound(&self) -> &Outbound {
            &self.0
        }
    }
}

pub(crate) mod reason {
    pub(crate) use migration_ipc::DisconnectReason;
}

pub(crate) mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
}
