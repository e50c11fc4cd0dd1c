//! One run: a service and its agents, on machines that crash, over a network that misbehaves.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use migration_ipc::{AccountId, Overflow, PeerIdentity, Privilege};
use migration_ipc_testkit::disk::SimDisk;
use migration_ipc_testkit::faults::{
    FaultCounts, FaultKind, FaultPlan, Seed, SimClock, SimNetwork, Trace, sleep_gap,
};
use migration_ipc_testkit::machine::{SimMachine, SimProcess};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::agent::{self, Part};
use crate::era::Era;
use crate::model::{Line, Model};
use crate::service;

/// How long everything may take once nothing goes wrong any more. What is left then is stuck.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// What some runs came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) runs: u64,
    pub(crate) messages: u64,
    pub(crate) virtual_time: Duration,
    pub(crate) counts: FaultCounts,
    /// How many messages that were sent in a way came to what.
    pub(crate) ends: BTreeMap<(&'static str, &'static str), u64>,
    pub(crate) trace: Trace,
}

impl Summary {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.messages += other.messages;
        self.virtual_time += other.virtual_time;
        self.counts.merge(&other.counts);
        for (end, count) in &other.ends {
            *self.ends.entry(*end).or_default() += count;
        }
        self.trace.note(&[other.trace.digest()]);
    }
}

/// Makes the run of this seed.
pub(crate) fn run(seed: Seed) -> Result<Summary, String> {
    // Message ids and the jitter of the library are drawn from the thread's generator.
    fastrand::seed(seed.split("library", 0).value());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async { World::new(seed).run().await })
}

/// A machine of the run, and what runs on it.
#[derive(Debug)]
struct Place {
    machine: SimMachine,
    present: Mutex<Option<SimProcess>>,
    /// Asks the program to stop in good order.
    stop: Arc<Notify>,
}

impl Place {
    fn process(&self) -> Option<SimProcess> {
        let present = self.present.lock().unwrap().clone();
        present.filter(SimProcess::is_running)
    }
}

#[derive(Debug)]
struct World {
    seed: Seed,
    random: Rng,
    plan: FaultPlan,
    era: Era,
    /// The service drops everybody again and again, shortly after they have connected.
    flaps: bool,
    network: SimNetwork,
    clock: SimClock,
    model: Arc<Mutex<Model>>,
    service: Arc<Place>,
    agents: Vec<(Arc<Place>, Arc<Part>)>,
    programs: JoinSet<String>,
    /// Whether things may go wrong.
    storm: watch::Sender<bool>,
}

impl World {
    fn new(seed: Seed) -> Self {
        let mut random = seed.rng("world");
        let flaps = random.u8(..64) == 0;
        let plan = if flaps {
            FaultPlan::calm()
        } else {
            FaultPlan::drawn(&mut random)
        };
        let era = Era::draw(&mut seed.rng("era"));
        let network = SimNetwork::new(seed.split("network", 0), plan.clone());
        let clock = SimClock::new();
        clock.install();
        let place = |name: &str, account: &str, privilege| {
            let disk = SimDisk::new(seed.split(name, 0).value());
            let identity = PeerIdentity::new(AccountId::new(account), privilege);
            Arc::new(Place {
                machine: SimMachine::new(network.clone(), identity, disk),
                present: Mutex::default(),
                stop: Arc::default(),
            })
        };
        let service = place("service", "0", Privilege::Administrator);
        let count = random.usize(1..=3);
        let agents = (0..count).map(|agent| {
            // The first two may be two programs of one user.
            let account = ["1000", ["1000", "1001"][random.usize(..2)], "1002"][agent];
            let place = place(&format!("agent {agent}"), account, Privilege::Ordinary);
            (place, Arc::new(draw_part(agent, &mut random)))
        });
        let agents: Vec<(Arc<Place>, Arc<Part>)> = agents.collect();
        Self {
            seed,
            random,
            plan,
            era: era.clone(),
            flaps,
            network: network.clone(),
            clock,
            model: Arc::new(Mutex::new(Model::new(
                agents.iter().map(|(_, part)| part.overflow),
                era.has_ledger(),
            ))),
            service,
            agents,
            programs: JoinSet::new(),
            storm: watch::Sender::new(true),
        }
    }

    async fn run(mut self) -> Result<Summary, String> {
        let began = Instant::now();
        self.start();
        self.rage().await;
        self.calm();
        self.drain().await?;
        self.check(began)
    }

    fn start(&mut self) {
        let (model, era) = (Arc::clone(&self.model), self.era.clone());
        self.supervise(
            "service",
            Arc::clone(&self.service),
            move |process, stop| service::serve(process, Arc::clone(&model), era.clone(), stop),
        );
        for (place, part) in self.agents.clone() {
            let (model, era) = (Arc::clone(&self.model), self.era.clone());
            let name = format!("agent {}", part.agent);
            self.supervise(&name, place, move |process, stop| {
                agent::play(
                    process,
                    Arc::clone(&part),
                    Arc::clone(&model),
                    era.clone(),
                    stop,
                )
            });
        }
    }

    /// Starts the program, and again after each crash and each end.
    fn supervise<P>(
        &mut self,
        name: &str,
        place: Arc<Place>,
        program: impl Fn(SimProcess, Arc<Notify>) -> P + Send + 'static,
    ) where
        P: Future<Output = Result<(), String>> + Send + 'static,
    {
        let mut random = self.seed.rng(name);
        let storm = self.storm.subscribe();
        let plan = self.plan.clone();
        let name = name.to_owned();
        self.programs.spawn(async move {
            loop {
                let process = place.machine.start();
                process.disk().limit_room(None);
                *place.present.lock().unwrap() = Some(process.clone());
                if *storm.borrow() && plan.strikes(FaultKind::Crash, &mut random) {
                    process.disk().crash_at_sync(random.u64(..6));
                }
                let ended = tokio::select! {
                    biased;
                    () = process.ended() => Ok(()),
                    ended = program(process.clone(), Arc::clone(&place.stop)) => ended,
                };
                if let Err(error) = ended
                    && process.is_running()
                {
                    return format!("{name} failed: {error}");
                }
                process.end();
                let pause = [0, 50, 2_000, 120_000][random.usize(..4)];
                sleep(Duration::from_millis(random.u64(..=pause))).await;
            }
        });
    }

    /// Lets things go wrong for a while.
    async fn rage(&mut self) {
        if self.flaps {
            return self.flap().await;
        }
        let longest = [10_000, 60_000, 300_000][self.random.usize(..3)];
        let until = Instant::now() + Duration::from_millis(self.random.u64(..longest));
        let step = [200, 2_000, 20_000][self.random.usize(..3)];
        while Instant::now() < until {
            let pause = self.random.u64(..step);
            sleep(Duration::from_millis(pause)).await;
            self.mishap().await;
        }
    }

    async fn flap(&mut self) {
        for _ in 0..500 {
            sleep(Duration::from_millis(250)).await;
            if let Some(service) = self.service.process() {
                service.host().sever();
            }
        }
    }

    async fn mishap(&mut self) {
        let random = &mut self.random;
        for kind in [FaultKind::Crash, FaultKind::ClockJump, FaultKind::SleepGap] {
            if !self.plan.strikes(kind, random) {
                continue;
            }
            match kind {
                FaultKind::ClockJump => {
                    self.clock.jump(Duration::from_secs(48 * 3600), random);
                    self.network.record(kind);
                }
                FaultKind::SleepGap => {
                    self.network.record(kind);
                    sleep_gap(Duration::from_secs(12 * 3600), random).await;
                }
                _ => {
                    let place = match random.usize(..=self.agents.len()) {
                        0 => &self.service,
                        agent => &self.agents[agent - 1].0,
                    };
                    let Some(process) = place.process() else {
                        continue;
                    };
                    // A service whose disk fails asks for the message again, and may find later that it
                    // was stored after all: only a ledger makes that harmless.
                    let is_service = Arc::ptr_eq(place, &self.service);
                    let spares_disk = is_service && !self.era.has_ledger();
                    match random.u8(..10) {
                        8.. if spares_disk => process.crash(),
                        0..3 => process.crash(),
                        3 | 4 => place.stop.notify_waiters(),
                        5..8 => process.disk().crash_at_sync(random.u64(..8)),
                        8 => process.disk().fail_sync(random.u64(..4)),
                        _ => process.disk().limit_room(Some(random.usize(..20_000))),
                    }
                }
            }
        }
    }

    /// Nothing goes wrong any more.
    fn calm(&mut self) {
        self.storm.send_replace(false);
        self.network.calm();
        let agents = self.agents.iter().map(|(place, _)| place);
        for place in agents.chain([&self.service]) {
            if let Some(process) = place.process() {
                process.disk().cancel_faults();
                process.disk().limit_room(None);
            }
        }
    }

    /// Waits until every agent is through, and its messages with it.
    async fn drain(&mut self) -> Result<(), String> {
        let agents = &self.agents;
        let over = async {
            while !agents.iter().all(|(_, part)| part.is_over()) {
                sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::select! {
            biased;
            Some(failed) = self.programs.join_next() => Err(match failed {
                Ok(failed) => failed,
                Err(panic) => format!("a program panicked: {panic}"),
            }),
            drained = timeout(PATIENCE, over) => drained.map_err(|_| "stuck".to_owned()),
        }
    }

    /// Looks at what the service has on its disk after one more crash, and compares.
    fn check(self, began: Instant) -> Result<Summary, String> {
        if let Some(problem) = self.agents.iter().find_map(|(_, part)| part.problem()) {
            return Err(problem);
        }
        let mut trace = self.network.trace();
        let counts = self.network.counts();
        drop(self.programs);
        let (log, dead) = service::read_store(&self.service.machine.start())
            .map_err(|error| format!("the store cannot be read: {error}"))?;
        let model = self.model.lock().unwrap();
        for name in &log {
            trace.note_bytes(name.to_string().as_bytes());
        }
        for label in model.labels() {
            trace.note_bytes(label.as_bytes());
        }
        model
            .check(&log, &dead)
            .map_err(|wrong| format!("{wrong}\n{}", self.era))?;
        let mut ends = BTreeMap::new();
        for end in model.ends() {
            *ends.entry(end).or_default() += 1;
        }
        Ok(Summary {
            runs: 1,
            messages: model.len() as u64,
            virtual_time: began.elapsed(),
            counts,
            ends,
            trace,
        })
    }
}

fn draw_part(agent: usize, random: &mut Rng) -> Part {
    let count = random.usize(1..=16);
    let mut lines: Vec<Line> = (0..count).map(|_| Line::draw(random)).collect();
    // Now and then more than a receiver remembers one by one.
    if random.u16(..400) == 0 {
        let count = random.usize(1000..1400);
        lines.extend((0..count).map(|_| Line::quick(random)));
    }
    let (room, overflow) = match random.u8(..8) {
        0 => (random.usize(1..6), Overflow::DropOldest),
        1 => (random.usize(1..6), Overflow::Wait),
        _ => (10_000, Overflow::Wait),
    };
    Part::new(agent, lines, room, overflow)
}
