//! Many runs, on all cores: one run on one thread.

use std::env;
use std::fmt::Display;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use migration_ipc::storage::planted::{PlantedBug, plant};
use migration_ipc_testkit::faults::Seed;

use crate::run::{Summary, run};

/// How many runs there are, unless the variable says otherwise. Nothing of the operating system is in
/// them, and on Windows they take three times as long.
const RUNS: u64 = if cfg!(windows) { 2_000 } else { 10_000 };
const RUNS_VARIABLE: &str = "MIGRATION_IPC_SIMULATION_RUNS";
const SEED_VARIABLE: &str = "MIGRATION_IPC_SIMULATION_SEED";

/// The seeds that the environment asks for.
pub(crate) fn asked_seeds() -> Range<u64> {
    let first = variable(SEED_VARIABLE).unwrap_or(0);
    first..first + variable(RUNS_VARIABLE).unwrap_or(RUNS)
}

fn variable<T: FromStr<Err: Display>>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => panic!("{name} is {text:?}: {error}"),
    }
}

/// A run that went wrong.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) what: String,
}

impl Failure {
    /// What went wrong, in short.
    pub(crate) fn first_line(&self) -> &str {
        self.what.lines().next().unwrap_or_default()
    }

    /// What went wrong, and how to see it again.
    pub(crate) fn report(&self) -> String {
        let Self { seed, what } = self;
        format!(
            "the run of seed {seed} went wrong:\n{what}\nagain, alone:\n  {SEED_VARIABLE}={seed} \
             {RUNS_VARIABLE}=1 cargo test -p migration-ipc --test simulation -- --nocapture"
        )
    }
}

/// Makes the runs of these seeds, with this bug in the library if one is planted, until one goes
/// wrong. Of several that do, the lowest is told.
pub(crate) fn sweep(seeds: Range<u64>, bug: Option<PlantedBug>) -> Result<Summary, Failure> {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Summary::default());
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                plant(bug);
                let mut part = Summary::default();
                while failure.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    match one(seed) {
                        Ok(summary) => part.merge(&summary),
                        Err(what) => {
                            let mut failure = failure.lock().unwrap();
                            if failure.as_ref().is_none_or(|other| seed < other.seed) {
                                *failure = Some(Failure { seed, what });
                            }
                        }
                    }
                }
                sum.lock().unwrap().merge(&part);
            });
        }
    });
    match failure.into_inner().unwrap() {
        None => Ok(sum.into_inner().unwrap()),
        Some(failure) => Err(failure),
    }
}

/// One run; a panic in it is an error like any other.
fn one(seed: u64) -> Result<Summary, String> {
    catch_unwind(AssertUnwindSafe(|| run(Seed::new(seed)))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
        Err(text.unwrap_or_else(|| "it panicked".to_owned()))
    })
}
