//! Each fault does what it says, counts itself, and replays from its seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io;
use std::time::Duration;

use migration_ipc_testkit::faults::{
    Cut, End, FaultKind, FaultPlan, Learns, Seed, SimClock, SimHost, SimListener, SimNetwork,
    SimStream, sleep_gap, thread_time,
};
use migration_ipc_transport::{
    AccountId, ConnectError, IdentifyError, IdentifyWhen, Listener, PeerIdentity, Privilege, Stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(3600);

struct Stage {
    network: SimNetwork,
    service: SimHost,
    agent: SimHost,
    listener: SimListener,
}

fn identity(account: &str) -> PeerIdentity {
    PeerIdentity::new(AccountId::new(account), Privilege::Ordinary)
}

fn stage(seed: u64, plan: FaultPlan) -> Stage {
    let network = SimNetwork::new(Seed::new(seed), plan);
    let service = network.host(identity("service"));
    let agent = network.host(identity("agent"));
    let listener = service.listen();
    Stage {
        network,
        service,
        agent,
        listener,
    }
}

impl Stage {
    async fn connect(&mut self) -> (SimStream, Box<dyn Stream>) {
        let at_agent = self.agent.connect(PATIENCE).await.unwrap();
        (at_agent, self.listener.accept().await.unwrap())
    }

    fn fired(&self, kind: FaultKind) -> u64 {
        self.network.counts().of(kind)
    }
}

fn always(kind: FaultKind) -> FaultPlan {
    FaultPlan::calm().with(kind, 1.0)
}

async fn is_stuck<T>(future: impl Future<Output = T>) -> bool {
    timeout(PATIENCE, future).await.is_err()
}

async fn heard(stream: &mut (impl Stream + ?Sized)) -> Vec<u8> {
    let mut heard = Vec::new();
    let reading = stream.read_to_end(&mut heard);
    timeout(PATIENCE, reading).await.expect("an end").unwrap();
    heard
}

fn is_broken<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_a_bounded_connection_between_two_identities() {
    let mut stage = stage(1, FaultPlan::calm());
    let (mut at_agent, mut at_service) = stage.connect().await;
    assert_eq!(at_agent.identify().await.unwrap(), identity("service"));
    if at_service.identify_when() == IdentifyWhen::AfterFirstRead {
        let early = at_service.identify().await;
        assert!(matches!(early, Err(IdentifyError::TooEarly)));
    }
    at_agent.write_all(b"a").await.unwrap();
    assert_eq!(at_service.read_u8().await.unwrap(), b'a');
    assert_eq!(at_service.identify().await.unwrap(), identity("agent"));

    assert!(is_stuck(at_agent.write_all(&[0; 100_000])).await, "bounded");
    drop(at_agent);
    assert!(!heard(&mut *at_service).await.is_empty());
    assert!(is_broken(at_service.write_all(b"?").await));
    let counts = stage.network.counts();
    assert!(FaultKind::ALL.iter().all(|kind| counts.of(*kind) == 0));
}

#[tokio::test(start_paused = true)]
async fn a_writer_goes_on_when_there_is_room_again() {
    let mut stage = stage(2, FaultPlan::calm());
    let (mut at_agent, mut at_service) = stage.connect().await;
    let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let writing = async {
        at_agent.write_all(&sent).await.unwrap();
        drop(at_agent);
    };
    let (heard, ()) = tokio::join!(heard(&mut *at_service), writing);
    assert!(heard == sent);
}

#[tokio::test(start_paused = true)]
async fn delayed_and_stalled_bytes_arrive_later_and_in_order() {
    for kind in [FaultKind::Delay, FaultKind::Stall] {
        let mut stage = stage(3, always(kind));
        let (mut at_agent, mut at_service) = stage.connect().await;
        let start = Instant::now();
        for byte in 0..10 {
            at_agent.write_u8(byte).await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "the writer does not wait");
        for byte in 0..10 {
            assert_eq!(at_service.read_u8().await.unwrap(), byte);
        }
        assert!(start.elapsed() > Duration::ZERO);
        assert_eq!(stage.fired(kind), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn split_bytes_arrive_in_pieces() {
    let mut stage = stage(4, always(FaultKind::Split));
    let (mut at_agent, mut at_service) = stage.connect().await;
    assert!(at_agent.write(b"whole").await.unwrap() < 5);
    at_agent.write_all(b"whole").await.unwrap();
    drop(at_agent);
    let heard = heard(&mut *at_service).await;
    assert!(heard.ends_with(b"whole"), "{heard:?}");
    assert!(stage.fired(FaultKind::Split) > 1);
}

fn cut(writer: End, after: u64, learns: Learns) -> Cut {
    Cut {
        writer,
        after,
        learns,
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_loses_everything_from_its_byte_on() {
    for after in 0..6 {
        let mut stage = stage(5, FaultPlan::calm());
        stage
            .network
            .script(cut(End::Client, after, Learns::AtOnce));
        let (mut at_agent, mut at_service) = stage.connect().await;
        assert!(is_broken(at_agent.write_all(b"abcdef").await));
        assert!(heard(&mut at_agent).await.is_empty());
        let arrived = usize::try_from(after).unwrap();
        assert_eq!(heard(&mut *at_service).await, b"abcdef"[..arrived]);
        assert!(is_broken(at_service.write_all(b"?").await));
        assert_eq!(stage.fired(FaultKind::Cut), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_learned_of_later() {
    let mut stage = stage(6, FaultPlan::calm());
    let later = Duration::from_secs(20);
    stage
        .network
        .script(cut(End::Client, 2, Learns::After(later)));
    let (mut at_agent, mut at_service) = stage.connect().await;
    at_agent.write_all(b"abc").await.unwrap();
    at_agent.write_all(b"def").await.unwrap();
    assert_eq!(heard(&mut *at_service).await, b"ab");
    drop(at_service);
    let start = Instant::now();
    assert!(heard(&mut at_agent).await.is_empty());
    assert_eq!(start.elapsed(), later);
    assert!(is_broken(at_agent.write_all(b"?").await));
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_learned_of_at_the_next_write_or_never() {
    let mut stage = stage(7, FaultPlan::calm());
    stage
        .network
        .script(cut(End::Service, 2, Learns::AtNextWrite));
    let (mut at_agent, mut at_service) = stage.connect().await;
    at_service.write_all(b"abc").await.unwrap();
    assert_eq!(heard(&mut at_agent).await, b"ab");
    drop(at_agent);
    assert!(is_stuck(at_service.read_u8()).await);
    assert!(is_broken(at_service.write_all(b"?").await));
    assert!(heard(&mut *at_service).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_had_arrived_before_a_cut_can_still_be_read() {
    let mut stage = stage(8, FaultPlan::calm());
    stage.network.script(cut(End::Client, 0, Learns::AtOnce));
    let (mut at_agent, mut at_service) = stage.connect().await;
    at_service.write_all(b"answer").await.unwrap();
    assert!(is_broken(at_agent.write_all(b"?").await));
    assert_eq!(heard(&mut at_agent).await, b"answer");
}

#[tokio::test(start_paused = true)]
async fn a_calmed_network_forgets_its_cuts() {
    let mut stage = stage(9, always(FaultKind::Cut));
    let (mut at_agent, mut at_service) = stage.connect().await;
    stage.network.calm();
    let writing = at_agent.write_all(&[1; 50_000]);
    let mut bytes = vec![0; 50_000];
    let (wrote, read) = tokio::join!(writing, at_service.read_exact(&mut bytes));
    wrote.unwrap();
    read.unwrap();
    assert_eq!(stage.fired(FaultKind::Cut), 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_pipe_makes_clients_wait_as_long_as_they_want_to() {
    let mut plan = always(FaultKind::PipeBusy);
    let busy = Duration::from_secs(10);
    plan.busy = busy..=busy;
    let mut stage = stage(10, plan);
    let outcome = stage.agent.connect(busy / 2).await;
    assert!(matches!(outcome, Err(ConnectError::TimedOut { .. })));
    let start = Instant::now();
    stage.connect().await;
    assert_eq!(start.elapsed(), busy);
    assert_eq!(stage.fired(FaultKind::PipeBusy), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_gone_before_it_was_accepted_leaves_its_bytes() {
    let mut plan = always(FaultKind::NoData);
    let gone = Duration::from_millis(20);
    plan.gone_after = gone..=gone;
    let mut stage = stage(11, plan);
    let start = Instant::now();
    let mut at_agent = stage.agent.connect(PATIENCE).await.unwrap();
    at_agent.write_all(b"fire and forget").await.unwrap();
    let mut at_service = stage.listener.accept().await.unwrap();
    assert_eq!(start.elapsed(), gone, "not accepted before");
    assert_eq!(heard(&mut *at_service).await, b"fire and forget");
    assert!(is_broken(at_service.write_all(b"?").await));
    assert!(is_broken(at_agent.write_all(b"?").await));
    assert!(heard(&mut at_agent).await.is_empty());
    assert_eq!(stage.fired(FaultKind::NoData), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unflushed_close_discards_what_was_not_read() {
    let mut stage = stage(12, always(FaultKind::UnflushedClose));
    let (mut at_agent, mut at_service) = stage.connect().await;
    at_service.write_all(b"ab").await.unwrap();
    assert_eq!(at_agent.read_u8().await.unwrap(), b'a');
    drop(at_service);
    assert!(heard(&mut at_agent).await.is_empty());
    assert_eq!(stage.fired(FaultKind::UnflushedClose), 1);
    // Nothing of the agent's own is waiting at the service: no fault.
    drop(at_agent);
    assert_eq!(stage.fired(FaultKind::UnflushedClose), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_host_is_gone_at_once_even_if_its_tasks_run_on() {
    let mut stage = stage(13, FaultPlan::calm());
    let (mut at_agent, mut at_service) = stage.connect().await;
    stage.service.sever();
    assert!(heard(&mut at_agent).await.is_empty());
    assert!(is_broken(at_service.write_all(b"?").await));
    assert_eq!(stage.fired(FaultKind::Cut), 1);

    let (mut at_agent, mut at_service) = stage.connect().await;
    at_service.write_all(b"last words").await.unwrap();
    stage.service.crash();
    stage.service.crash();
    assert!(!stage.service.is_running());
    assert!(is_broken(at_service.write_all(b"?").await));
    assert_eq!(heard(&mut at_agent).await, b"last words");
    assert_eq!(stage.fired(FaultKind::Crash), 1);

    let outcome = stage.agent.connect(PATIENCE).await;
    assert!(matches!(outcome, Err(ConnectError::NotRunning { .. })));
    drop(stage.service.listen());
    let outcome = stage.agent.connect(PATIENCE).await;
    assert!(matches!(outcome, Err(ConnectError::NotRunning { .. })));

    let mut next = stage.network.host(identity("service")).listen();
    stage.agent.connect(PATIENCE).await.unwrap();
    assert!(is_stuck(stage.listener.accept()).await, "replaced");
    next.accept().await.unwrap();
    stage.agent.crash();
    let outcome = stage.agent.connect(PATIENCE).await;
    assert!(matches!(outcome, Err(ConnectError::NotRunning { .. })));
}

#[tokio::test(start_paused = true)]
async fn clocks_jump_and_machines_sleep() {
    let mut random = Seed::new(14).rng("test");
    let clock = SimClock::new();
    let (shown, start) = (clock.now(), Instant::now());
    sleep_gap(Duration::from_secs(7200), &mut random).await;
    assert!(start.elapsed() >= Duration::from_secs(60));
    assert_eq!(clock.now(), shown + start.elapsed());
    clock.jump(Duration::from_secs(86_400), &mut random);
    assert_ne!(clock.now(), shown + start.elapsed());
    clock.set(shown);
    assert_eq!(clock.clone().now(), shown);
    clock.install();
    assert_eq!(thread_time(), shown);
}

/// A conversation in which everything can happen, over as many connections as it takes.
async fn converse(seed: u64) -> SimNetwork {
    let mut plan = FaultPlan::calm();
    for kind in FaultKind::ALL {
        plan = plan.with(kind, 0.3);
    }
    plan.cut_within = 1024;
    let mut stage = stage(seed, plan);
    for round in 0..10 {
        let (mut at_agent, mut at_service) = stage.connect().await;
        let talking = async {
            for _ in 0..round * 5 {
                let spoke = at_agent.write_all(b"a line of some length").await;
                let answered = at_service.write_all(b"an answer").await;
                let mut bytes = [0; 9];
                let heard = at_agent.read_exact(&mut bytes).await;
                if spoke.is_err() || answered.is_err() || heard.is_err() {
                    return;
                }
            }
        };
        // Stuck is one of the things that can happen.
        drop(timeout(PATIENCE, talking).await);
        drop(at_agent);
        drop(timeout(PATIENCE, at_service.read_to_end(&mut Vec::new())).await);
    }
    stage.network
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_is_the_same_run() {
    let (one, again) = (converse(15).await, converse(15).await);
    assert_eq!(one.trace(), again.trace());
    assert_eq!(one.counts(), again.counts());
    let other = converse(16).await;
    assert_ne!(one.trace(), other.trace());
    for kind in [FaultKind::Split, FaultKind::Delay, FaultKind::Cut] {
        assert!(one.counts().of(kind) > 0, "{kind}: {}", one.counts());
    }
    let mut both = one.counts();
    both.merge(&other.counts());
    let kind = FaultKind::Delay;
    assert_eq!(
        both.of(kind),
        one.counts().of(kind) + other.counts().of(kind)
    );
    assert!(both.to_string().lines().count() == FaultKind::ALL.len());
}
