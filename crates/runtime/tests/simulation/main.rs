//! Whatever crashes and whatever breaks, what a durable `send` accepted is handled once, and in
//! order: thousands of runs, each from a seed, against a plain list.
//!
//! `MIGRATION_IPC_SIMULATION_RUNS` says how many runs there are, `MIGRATION_IPC_SIMULATION_SEED` from
//! which seed on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod agent;
mod asking;
mod era;
mod model;
mod payloads;
mod run;
mod service;
mod sweep;

use std::fmt::Display;
use std::io::Write as _;

use migration_ipc::storage::planted::PlantedBug;
use migration_ipc_testkit::faults::{FaultKind, Seed};

/// Prints past the capture of output, which would hide what a test that passes has to say.
fn report(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// How often each kind of fault has to fire in a full sweep.
const EACH_KIND: u64 = 1_000;
const FULL_SWEEP: u64 = 10_000;

/// What has to happen as often.
const EACH_END: [(&str, &str); 6] = [
    ("durable", "handled"),
    ("memory", "unknown"),
    ("large", "handled"),
    ("request", "told"),
    ("request", "deadline"),
    ("stream", "told"),
];

/// Each planted bug is found within so many runs.
const WITHIN: u64 = 1_000;

#[test]
fn what_was_accepted_is_handled_once_and_in_order() {
    let seeds = sweep::asked_seeds();
    report(format_args!("simulating the seeds {seeds:?}"));
    let began = std::time::Instant::now();
    let summary = match sweep::sweep(seeds, None) {
        Ok(summary) => summary,
        Err(failure) => panic!("{}", failure.report()),
    };
    report(format_args!(
        "{} runs, {} messages, {:?} of virtual time in {:?}\n{}",
        summary.runs,
        summary.messages,
        summary.virtual_time,
        began.elapsed(),
        summary.counts,
    ));
    for ((sent, end), count) in &summary.ends {
        report(format_args!("{sent:<8} {end:<15} {count:>9}"));
    }
    if summary.runs >= FULL_SWEEP {
        for kind in FaultKind::ALL {
            let count = summary.counts.of(kind);
            assert!(count >= EACH_KIND, "{kind} fired {count} times only");
        }
        for end in EACH_END {
            let count = summary.ends.get(&end).copied().unwrap_or(0);
            assert!(count >= EACH_KIND, "{end:?} {count} times only");
        }
    }
}

/// A bug that the simulation does not find could be in the library today.
#[test]
fn planted_bugs_are_found() {
    let quiet = std::panic::take_hook();
    // Runs that go wrong panic in places, and are meant to.
    std::panic::set_hook(Box::new(|_| {}));
    let found = PlantedBug::ALL.map(|bug| sweep::sweep(0..WITHIN, Some(bug)).err());
    std::panic::set_hook(quiet);
    for (bug, found) in PlantedBug::ALL.into_iter().zip(&found) {
        match found {
            Some(failure) => report(format_args!(
                "{bug:?}: found in run {}: {}",
                failure.seed,
                failure.first_line()
            )),
            None => report(format_args!("{bug:?}: NOT FOUND")),
        }
    }
    assert!(found.iter().all(Option::is_some), "within {WITHIN} runs");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..100 {
        let [one, again] = [(); 2].map(|()| run::run(Seed::new(seed)).unwrap());
        assert_eq!(one.counts, again.counts, "seed {seed}");
        assert_eq!(one.trace, again.trace, "seed {seed}");
    }
}
