//! Two users' agents, an operator and a service in random traffic: the play of the fuzz target
//! `router`, with choices from a generator, on every system. `MIGRATION_IPC_SEED` replays one.
#![allow(
    missing_docs,
    unexpected_cfgs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::allow_attributes_without_reason,
    reason = "files of the fuzzing workspace, which has a feature of its own"
)]

#[path = "../../../fuzz/src/encrypted.rs"]
mod encrypted;
#[path = "../../../fuzz/src/input.rs"]
mod input;
#[path = "../../../fuzz/src/rig.rs"]
mod rig;
#[path = "../../../fuzz/src/router.rs"]
mod router;

use std::sync::atomic::{AtomicBool, Ordering};

/// Plays, each from a seed of its own.
const PLAYS: u64 = 2_000;

/// The longest play; a step takes two to four bytes.
const MAX_BYTES: usize = 200;

/// A panic anywhere: a server turns that of a handler into an answer, and nobody awaits some tasks.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn play(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; rng.usize(..MAX_BYTES)];
    rng.fill(&mut bytes);
    // Most plays begin with both agents there.
    if rng.u8(..4) > 0 {
        bytes.splice(0..0, [1, 0, rng.u8(..3), 1, 1, 1, rng.u8(..3), 1, 16, 0]);
    }
    router::run(&bytes);
}

#[test]
fn no_byte_that_is_meant_for_one_user_reaches_another_in_random_traffic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::Relaxed);
        hook(panic);
    }));
    let seeds = match std::env::var("MIGRATION_IPC_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("a number");
            seed..seed + 1
        }
        Err(_) => 0..PLAYS,
    };
    for seed in seeds {
        let played = std::panic::catch_unwind(|| play(seed));
        let sound = played.is_ok() && !PANICKED.load(Ordering::Relaxed);
        assert!(sound, "replay it with MIGRATION_IPC_SEED={seed}");
    }
}
