//! The machine stops at every sync of an outbox's life, and a sync fails at every one.

use std::collections::BTreeMap;

use migration_ipc_store::outbox::Outbox;
use migration_ipc_testkit::disk::SimDisk;

use crate::bench::{Model, contents, open, try_open};

/// What survives differs from seed to seed.
const SEEDS: u64 = 6;

/// An outbox through everything that it does: it fills several segments, is settled out of order,
/// removes segments, and cleans one whose first message nobody answers for.
struct Life {
    disk: SimDisk,
    outbox: Outbox,
    model: Model,
    steps_done: usize,
}

const STEPS: usize = 26;

impl Life {
    fn begin(disk: &SimDisk) -> Self {
        Self {
            disk: disk.clone(),
            outbox: open(disk).0,
            model: Model::default(),
            steps_done: 0,
        }
    }

    /// Goes on to the end, or to the first error: then what was appended and may be there or not.
    fn live(&mut self) -> Result<(), BTreeMap<u64, Vec<u8>>> {
        while self.steps_done < STEPS {
            self.step(self.steps_done);
            let fresh = self.model.fresh.clone();
            self.model.sync(&mut self.outbox).map_err(|_| fresh)?;
            self.steps_done += 1;
            if !self.disk.is_running() {
                // It stopped while a segment was removed, when everything else was done.
                return Err(BTreeMap::new());
            }
            self.model.check(&self.outbox);
        }
        Ok(())
    }

    fn step(&mut self, number: usize) {
        if number.is_multiple_of(3) {
            self.model.append_group(&mut self.outbox, 3);
        }
        for _ in 0..number % 5 + 1 {
            self.model.append(&mut self.outbox);
        }
        // Message 1 is never settled; the others are, the later ones sooner.
        let waiting: Vec<u64> = self.model.waiting.keys().copied().collect();
        for seq in waiting.into_iter().skip(1).rev().step_by(2) {
            self.model.settle(&mut self.outbox, seq);
        }
    }
}

#[test]
fn the_life_has_everything_in_it() {
    let disk = SimDisk::new(0);
    let mut life = Life::begin(&disk);
    life.live().unwrap();
    let files = disk.files();
    let oldest = &files[0].0;
    assert!(oldest.as_str() > "outbox-0000000000000003.log", "{files:?}");
    assert!(life.outbox.waiting().any(|seq| seq == 1), "it was moved");
}

#[test]
fn a_crash_at_any_sync_loses_nothing() {
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        Life::begin(&disk).live().unwrap();
        let counts = disk.counts();
        for at in 0..counts.file_syncs + counts.name_syncs {
            crash_at(seed, at);
        }
    }
}

/// Stops the machine at this sync, then again at each of the first ones after it, and lives on.
fn crash_at(seed: u64, at: u64) {
    let disk = SimDisk::new(seed);
    disk.crash_at_sync(at);
    let Ok((outbox, _)) = try_open(&disk) else {
        // In the beginning there is nothing to lose.
        Life::begin(&disk.restart()).live().unwrap();
        return;
    };
    let mut life = Life {
        disk: disk.clone(),
        outbox,
        model: Model::default(),
        steps_done: 0,
    };
    let Err(in_doubt) = life.live() else {
        panic!("no crash at sync {at}");
    };
    let stopped = disk.restart();
    for again in 0..4 {
        let disk = stopped.fork();
        disk.reseed(seed + again);
        disk.crash_at_sync(again);
        let disk = match try_open(&disk) {
            Ok(_) => disk,
            Err(_) => disk.restart(),
        };
        disk.cancel_faults();
        let (outbox, _) = open(&disk);
        let mut survivor = Life {
            disk,
            outbox,
            model: life.model.clone(),
            steps_done: life.steps_done,
        };
        survivor.model.recover(&survivor.outbox, &in_doubt);
        survivor.live().unwrap();
    }
}

/// The sender was told that these messages are not accepted: they never come back, and what is
/// accepted afterwards does not depend on what the failed sync has left in the system's memory.
#[test]
fn after_a_failed_sync_its_messages_are_gone_and_the_outbox_goes_on() {
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let mut life = Life::begin(&disk);
        let before = disk.counts();
        life.live().unwrap();
        let after = disk.counts();
        let syncs = after.file_syncs + after.name_syncs - before.file_syncs - before.name_syncs;
        for at in 0..syncs {
            fail_at(seed, at);
        }
    }
}

fn fail_at(seed: u64, at: u64) {
    let disk = SimDisk::new(seed);
    let mut life = Life::begin(&disk);
    disk.fail_sync(at);
    // Not every failed sync fails a step: a segment that is not removed now is removed later.
    while life.live().is_err() {
        life.steps_done += 1;
        let crashed = disk.fork();
        crashed.crash();
        let (reopened, _) = open(&crashed.restart());
        let mut model = life.model.clone();
        model.recover(&reopened, &BTreeMap::new());
    }
    assert_eq!(disk.counts().failed_syncs, 1);
    life.model.sync(&mut life.outbox).unwrap();
    disk.crash();
    let (reopened, report) = open(&disk.restart());
    assert_eq!(report.damaged, []);
    assert_eq!(contents(&reopened), life.model.waiting);
}
