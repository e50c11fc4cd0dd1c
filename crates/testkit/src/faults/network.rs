//! Hosts that listen and connect.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fastrand::Rng;
use migration_ipc_transport::{
    BoxFuture, ConnectError, Endpoint, Listener, PeerIdentity, Stream, memory,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::counts::{FaultCounts, FaultKind};
use super::plan::{Cut, FaultPlan, draw};
use super::seed::Seed;
use super::stream::{Flavour, SimStream, lock};
use super::trace::Trace;
use super::wire::{End, Wire};

/// How many connections wait to be accepted before a further client has to wait.
const BACKLOG: usize = 128;

/// What every part of a network shares.
#[derive(Debug)]
pub(super) struct Weather {
    pub(super) plan: FaultPlan,
    pub(super) counts: FaultCounts,
    pub(super) trace: Trace,
    pub(super) began: Instant,
    /// Nothing that was planned happens any more.
    pub(super) is_calm: bool,
}

impl Weather {
    pub(super) fn lock(weather: &Mutex<Self>) -> MutexGuard<'_, Self> {
        weather.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A network with one endpoint, at which the host that listened last is the service. Clones are
/// the same network.
#[derive(Clone, Debug)]
pub struct SimNetwork {
    weather: Arc<Mutex<Weather>>,
    exchange: Arc<Mutex<Exchange>>,
    seed: Seed,
    endpoint: Endpoint,
}

#[derive(Debug)]
struct Exchange {
    service: Option<Serving>,
    connections: u64,
    scripted: VecDeque<Cut>,
    random: Rng,
}

/// The host that listens. No [`SimHost`], which would hold the network, and with it itself.
#[derive(Clone, Debug)]
struct Serving {
    identity: PeerIdentity,
    process: Arc<Mutex<Process>>,
    arrivals: mpsc::Sender<Arrival>,
}

/// A connection that waits to be accepted, at the earliest at this time.
#[derive(Debug)]
struct Arrival {
    stream: SimStream,
    earliest: Option<Instant>,
}

impl SimNetwork {
    /// A network whose misfortunes follow this plan. It must be made inside a tokio runtime with
    /// paused time.
    pub fn new(seed: Seed, plan: FaultPlan) -> Self {
        let began = Instant::now();
        let nobody = PeerIdentity::new(
            migration_ipc_transport::AccountId::new("nobody"),
            migration_ipc_transport::Privilege::Ordinary,
        );
        Self {
            weather: Arc::new(Mutex::new(Weather {
                plan,
                counts: FaultCounts::default(),
                trace: Trace::default(),
                began,
                is_calm: false,
            })),
            exchange: Arc::new(Mutex::new(Exchange {
                service: None,
                connections: 0,
                scripted: VecDeque::new(),
                random: seed.rng("connections"),
            })),
            seed,
            endpoint: memory::listen("simulated", nobody, 1).0.endpoint().clone(),
        }
    }

    /// A program of this account. Each process that is started is a host of its own.
    pub fn host(&self, identity: PeerIdentity) -> SimHost {
        SimHost {
            network: self.clone(),
            identity,
            process: Arc::default(),
        }
    }

    /// The next connection that nothing is planned for breaks there, whatever the plan says.
    pub fn script(&self, cut: Cut) {
        self.exchange().scripted.push_back(cut);
    }

    /// Changes the plan, for everything that is drawn from now on.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.weather().plan = plan;
    }

    /// Nothing goes wrong any more: cuts that were planned are forgotten. What has gone wrong
    /// already stays so.
    pub fn calm(&self) {
        let mut weather = self.weather();
        weather.plan = FaultPlan::calm();
        weather.is_calm = true;
        drop(weather);
        self.exchange().scripted.clear();
    }

    /// Counts a fault that the test itself caused.
    pub fn record(&self, kind: FaultKind) {
        self.weather().counts.record(kind);
    }

    /// How often each kind has fired.
    pub fn counts(&self) -> FaultCounts {
        self.weather().counts
    }

    /// What was written, read, lost and delayed so far.
    pub fn trace(&self) -> Trace {
        self.weather().trace
    }

    fn weather(&self) -> MutexGuard<'_, Weather> {
        Weather::lock(&self.weather)
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws, and counts what was drawn.
    fn draw_connection(&self) -> Drawn {
        let mut exchange = self.exchange();
        let mut weather = self.weather();
        let random = &mut exchange.random;
        let plan = weather.plan.clone();
        let mut strikes = |kind, random: &mut Rng| {
            let strikes = plan.strikes(kind, random);
            if strikes && kind != FaultKind::Cut {
                weather.counts.record(kind);
            }
            strikes
        };
        let busy = strikes(FaultKind::PipeBusy, random).then(|| draw(&plan.busy, random));
        let gone = strikes(FaultKind::NoData, random).then(|| draw(&plan.gone_after, random));
        let cut = strikes(FaultKind::Cut, random).then(|| plan.draw_cut(random));
        let capacity = 1 << random.u32(6..17);
        let flavour = if random.bool() {
            Flavour::Socket
        } else {
            Flavour::Pipe
        };
        exchange.connections += 1;
        Drawn {
            number: exchange.connections,
            busy,
            gone,
            cut: exchange.scripted.pop_front().or(cut),
            capacity,
            flavour,
        }
    }
}

/// What becomes of one attempt to connect.
#[derive(Debug)]
struct Drawn {
    number: u64,
    busy: Option<Duration>,
    gone: Option<Duration>,
    cut: Option<Cut>,
    capacity: usize,
    flavour: Flavour,
}

/// One process on a [`SimNetwork`]. Clones are the same process.
#[derive(Clone, Debug)]
pub struct SimHost {
    network: SimNetwork,
    identity: PeerIdentity,
    process: Arc<Mutex<Process>>,
}

#[derive(Debug, Default)]
struct Process {
    state: watch::Sender<ProcessState>,
    wires: Vec<(End, Weak<Mutex<Wire>>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ProcessState {
    #[default]
    Running,
    Ended,
}

impl Process {
    fn lock(process: &Mutex<Self>) -> MutexGuard<'_, Self> {
        process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an end of a connection into its possession, if it is still there to do so.
    fn own(&mut self, end: End, wire: &Arc<Mutex<Wire>>) -> ProcessState {
        self.wires.retain(|(_, wire)| wire.strong_count() > 0);
        self.wires.push((end, Arc::downgrade(wire)));
        *self.state.borrow()
    }
}

impl SimHost {
    /// Becomes the service; whoever was it before is reached by nobody new.
    pub fn listen(&self) -> SimListener {
        let (sender, arrivals) = mpsc::channel(BACKLOG);
        if self.is_running() {
            self.network.exchange().service = Some(Serving {
                identity: self.identity.clone(),
                process: Arc::clone(&self.process),
                arrivals: sender,
            });
        }
        SimListener {
            endpoint: self.network.endpoint.clone(),
            arrivals,
            next: None,
        }
    }

    /// Connects to the service, as [`connect`](migration_ipc_transport::connect) does: waits while
    /// it is busy, and fails at once when there is none. Cancel safe.
    ///
    /// # Errors
    /// `NotRunning` without a service, `TimedOut` when it was busy all the time.
    pub async fn connect(&self, limit: Duration) -> Result<SimStream, ConnectError> {
        match timeout(limit, self.try_connect()).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(ConnectError::TimedOut {
                endpoint: self.network.endpoint.clone(),
                limit,
            }),
        }
    }

    async fn try_connect(&self) -> Result<SimStream, ConnectError> {
        let drawn = self.network.draw_connection();
        if let Some(busy) = drawn.busy {
            sleep(busy).await;
        }
        let not_running = || ConnectError::NotRunning {
            endpoint: self.network.endpoint.clone(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let service = self.network.exchange().service.clone();
        let service = service.ok_or_else(not_running)?;
        let place = service.arrivals.reserve().await;
        let place = place.map_err(|_gone| not_running())?;
        let gone = drawn.gone.map(|after| Instant::now() + after);
        let wire = Arc::new(Mutex::new(Wire::new(
            drawn.number,
            drawn.capacity,
            drawn.cut,
            gone,
            self.network.seed,
            Arc::clone(&self.network.weather),
        )));
        let end = |end, owner: &Mutex<Process>, peer: &PeerIdentity| match Process::lock(owner)
            .own(end, &wire)
        {
            ProcessState::Running => {
                let wire = Arc::clone(&wire);
                Ok(SimStream::new(wire, end, peer.clone(), drawn.flavour))
            }
            ProcessState::Ended => Err(not_running()),
        };
        let at_service = end(End::Service, &service.process, &self.identity)?;
        let at_client = end(End::Client, &self.process, &service.identity)?;
        place.send(Arrival {
            stream: at_service,
            earliest: gone,
        });
        Ok(at_client)
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        *Process::lock(&self.process).state.borrow() == ProcessState::Running
    }

    /// Waits until it has ended, by a crash or otherwise. Cancel safe.
    pub async fn ended(&self) {
        let mut state = Process::lock(&self.process).state.subscribe();
        let ended = state.wait_for(|state| *state == ProcessState::Ended);
        // The sender is in `self`.
        drop(ended.await);
    }

    /// Its connections end now, each as one that is cut; it goes on, and may have others.
    pub fn sever(&self) {
        let wires = std::mem::take(&mut Process::lock(&self.process).wires);
        for (end, wire) in wires {
            if let Some(wire) = wire.upgrade() {
                self.network.record(FaultKind::Cut);
                lock(&wire).close(end);
            }
        }
    }

    /// The process crashes: it [ends](Self::end), which counts as a fault.
    pub fn crash(&self) {
        if self.is_running() {
            self.network.record(FaultKind::Crash);
            self.end();
        }
    }

    /// The process is no more: its connections end, as for an end that is dropped, and whatever of
    /// it still runs can neither listen nor connect. Nothing happens the second time.
    pub fn end(&self) {
        let wires = {
            let mut process = Process::lock(&self.process);
            process.state.send_replace(ProcessState::Ended);
            std::mem::take(&mut process.wires)
        };
        let mut exchange = self.network.exchange();
        let is_mine = |serving: &mut Serving| Arc::ptr_eq(&serving.process, &self.process);
        drop(exchange.service.take_if(is_mine));
        drop(exchange);
        for (end, wire) in wires {
            if let Some(wire) = wire.upgrade() {
                lock(&wire).close(end);
            }
        }
    }
}

/// A service's place on a [`SimNetwork`].
#[derive(Debug)]
pub struct SimListener {
    endpoint: Endpoint,
    arrivals: mpsc::Receiver<Arrival>,
    next: Option<Arrival>,
}

impl Listener for SimListener {
    /// Waits for ever once its host has crashed or another one listens.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            loop {
                if let Some(earliest) = self.next.as_ref().and_then(|next| next.earliest) {
                    sleep_until(earliest).await;
                }
                if let Some(next) = self.next.take() {
                    return Ok(Box::new(next.stream) as Box<dyn Stream>);
                }
                match self.arrivals.recv().await {
                    Some(next) => self.next = Some(next),
                    None => pending().await,
                }
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}
