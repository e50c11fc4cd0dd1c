//! Random operations, faults and crashes against the plain list.
//!
//! Each run prints its seed when it fails; `MIGRATION_IPC_SEED=<seed>` replays that one alone, and
//! `MIGRATION_IPC_RUNS=<n>` makes more of them.

use std::collections::BTreeMap;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use migration_ipc_store::outbox::Outbox;
use migration_ipc_testkit::disk::{SimCounts, SimDisk};

use crate::bench::{Model, open};

/// Wine is slow.
const RUNS: u64 = if cfg!(windows) { 200 } else { 1_000 };
const STEPS: u32 = 120;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn what_was_durable_stays_whatever_happens() {
    let mut total = SimCounts::default();
    if let Some(seed) = number("MIGRATION_IPC_SEED") {
        run(seed);
        return;
    }
    let runs = number("MIGRATION_IPC_RUNS").unwrap_or(RUNS);
    for seed in 0..runs {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(counts) => {
                total.crashes += counts.crashes;
                total.failed_syncs += counts.failed_syncs;
                total.full += counts.full;
            }
            Err(panic) => {
                eprintln!("replay with MIGRATION_IPC_SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    println!("{total:?}");
    for fired in [total.crashes, total.failed_syncs, total.full] {
        assert!(fired >= runs, "{total:?}");
    }
}

/// An outbox, and what is promised about it.
struct Run {
    rng: Rng,
    disk: SimDisk,
    outbox: Outbox,
    model: Model,
    /// What was appended since the last time that nothing was in doubt.
    in_doubt: BTreeMap<u64, Vec<u8>>,
}

fn run(seed: u64) -> SimCounts {
    let disk = SimDisk::new(seed);
    let (outbox, _) = open(&disk);
    let mut run = Run {
        rng: Rng::with_seed(seed),
        disk,
        outbox,
        model: Model::default(),
        in_doubt: BTreeMap::new(),
    };
    for _ in 0..STEPS {
        run.step();
    }
    run.disk.counts()
}

impl Run {
    fn step(&mut self) {
        match self.rng.u8(..100) {
            0..12 => {
                self.model
                    .append_group(&mut self.outbox, self.rng.u64(1..6));
            }
            12..40 => {
                for _ in 0..self.rng.usize(1..6) {
                    self.model.append(&mut self.outbox);
                }
            }
            40..62 => {
                for _ in 0..self.rng.usize(1..8) {
                    self.settle_one();
                }
            }
            62..85 => self.sync(),
            85..89 => self.disk.fail_sync(self.rng.u64(..3)),
            89..91 => self.disk.crash_at_sync(self.rng.u64(..4)),
            91..93 => self.disk.limit_room(Some(self.rng.usize(..600))),
            93..96 => self.disk.limit_room(None),
            96..98 => {
                self.disk.crash();
                self.reopen();
            }
            // The process ends; the machine goes on.
            _ => self.reopen_same_boot(),
        }
        if self.disk.is_running() {
            self.model.check(&self.outbox);
        } else {
            self.reopen();
        }
    }

    fn settle_one(&mut self) {
        let waiting = self.model.waiting.len();
        if waiting == 0 {
            return;
        }
        // Mostly in order, as answers come.
        let place = match self.rng.u8(..4) {
            0 => self.rng.usize(..waiting),
            _ => 0,
        };
        let seq = self.model.waiting.keys().nth(place).copied().unwrap();
        self.model.settle(&mut self.outbox, seq);
    }

    fn sync(&mut self) {
        let mut fresh = self.model.fresh.clone();
        let does_something = self.outbox.needs_sync();
        match self.model.sync(&mut self.outbox) {
            Ok(()) if does_something => self.in_doubt.clear(),
            Ok(()) => {}
            Err(_) => self.in_doubt.append(&mut fresh),
        }
    }

    fn reopen(&mut self) {
        self.disk = self.disk.restart();
        self.reopen_same_boot();
    }

    fn reopen_same_boot(&mut self) {
        // A disk that fails or is full while it is opened is a test of its own.
        self.disk.cancel_faults();
        self.disk.limit_room(None);
        let (outbox, _) = open(&self.disk);
        self.outbox = outbox;
        self.in_doubt.append(&mut self.model.fresh.clone());
        self.model.recover(&self.outbox, &self.in_doubt);
        self.in_doubt.clear();
    }
}
