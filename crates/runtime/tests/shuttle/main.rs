//! Senders, driver and the end of a connection, in orders of their steps that a scheduler chooses:
//! each lock and each wait is a place where another thread may go on. What runs is the code of
//! `src/connection/{outbound,lanes,in_flight,frames}.rs` itself.
//!
//! A failure prints the schedule; `MIGRATION_IPC_SEED` begins with another one. A wake-up that is lost
//! is a deadlock, which the scheduler finds by itself.
#![allow(
    dead_code,
    unused_imports,
    reason = "the driver of the tests uses a part of the files"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
#![allow(clippy::print_stdout, reason = "a test that fails shows its seed")]

mod connection;
mod scene;

mod config {
    pub(crate) use migration_ipc::ConnectionConfig;
}

/// Of a request only whether it is answered matters here.
mod dispatch {
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug, Default)]
    pub(crate) struct Asked(AtomicBool);

    impl Asked {
        pub(crate) fn is_answered(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }

        pub(crate) fn set_answered(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use scene::{End, Scene};

/// Orders that each scheduler tries of each scene.
const ORDERS: usize = 1000;

/// Places in which the second scheduler makes a thread wait that could go on (Burckhardt et al.,
/// "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010).
const CHANGES: usize = 4;

fn explore(scene: Scene) {
    let seed = std::env::var("MIGRATION_IPC_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    println!("MIGRATION_IPC_SEED={seed}");
    let random = RandomScheduler::new_from_seed(seed, ORDERS);
    Runner::new(random, Config::new()).run(move || scene.play());
    let by_priority = PctScheduler::new_from_seed(seed, CHANGES, ORDERS);
    Runner::new(by_priority, Config::new()).run(move || scene.play());
}

/// Three senders, of which two share a lane, and room for next to nothing.
const CROWDED: Scene = Scene {
    senders: 3,
    messages: 4,
    outbound_messages: 2,
    in_flight: 2,
    credit: None,
    end: End::WhenAllIsSent,
};

#[test]
fn each_message_is_written_once_and_in_the_order_of_its_lane() {
    explore(CROWDED);
}

#[test]
fn who_waits_for_an_answer_to_come_is_let_in_by_it() {
    explore(Scene {
        outbound_messages: 64,
        in_flight: 1,
        ..CROWDED
    });
}

#[test]
fn credit_that_comes_late_lets_everything_out() {
    explore(Scene {
        credit: Some(1),
        ..CROWDED
    });
}

#[test]
fn what_is_not_sent_when_the_connection_ends_is_known_to_be_unsent() {
    explore(Scene {
        end: End::AtAnyTime,
        ..CROWDED
    });
    explore(Scene {
        credit: Some(1),
        in_flight: 64,
        end: End::AtAnyTime,
        ..CROWDED
    });
}
