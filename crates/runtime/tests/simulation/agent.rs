//! The program of an agent: it sends its part, line by line, from where its last life ended.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::{
    Backoff, Clock, ConnectionConfig, Execution, MessageDispatcher, Overflow, QueueLimits, Receipt,
    ReconnectingIpcClient, SendOptions,
};
use migration_ipc_testkit::faults::thread_time;
use migration_ipc_testkit::machine::SimProcess;
use serde_json::{from_value, to_value};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::model::{Kind, Line, Model, Name, Task};
use crate::service::GRACE;

/// How long one try to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Short segments, so that they are begun, cleaned and removed within a run.
const SEGMENT_BYTES: u32 = 2048;

/// How often an agent that is through looks whether anything is left.
const LOOK: Duration = Duration::from_millis(500);

const BACKOFF_BASE: Duration = Duration::from_secs(1);
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// So many tries, none of which led to a connection that stayed up, take at least `BACKOFF_BASE`
/// each. The last five of them wait for 30 s on average; that all twelve together wait for less
/// than 12 s happens once in a hundred million times.
const TRIES: usize = 12;

pub(crate) fn connection_config() -> ConnectionConfig {
    ConnectionConfig {
        clock: Clock::from_fn(thread_time),
        ..ConnectionConfig::default()
    }
}

/// The message that asks for this task.
pub(crate) fn request(name: Name, task: Task) -> UserAction {
    UserAction::new("", "act")
        .with_detail("name", to_value(name).unwrap())
        .with_detail("task", to_value(task).unwrap())
}

/// What a message asks for.
pub(crate) fn asked(action: &UserAction) -> (Name, Task) {
    let of = |member: &str| action.details[member].clone();
    (
        from_value(of("name")).unwrap(),
        from_value(of("task")).unwrap(),
    )
}

/// An agent's part, and how far it has come.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) agent: usize,
    pub(crate) lines: Vec<Line>,
    /// How many messages may wait, and what happens to one more.
    pub(crate) room: usize,
    pub(crate) overflow: Overflow,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    lives: u64,
    is_over: bool,
    problem: Option<String>,
    /// When this life tried to connect.
    tries: Vec<Instant>,
}

impl Part {
    pub(crate) fn new(agent: usize, lines: Vec<Line>, room: usize, overflow: Overflow) -> Self {
        Self {
            agent,
            lines,
            room,
            overflow,
            progress: Mutex::default(),
        }
    }

    /// Everything is sent, and its fate is known.
    pub(crate) fn is_over(&self) -> bool {
        self.progress.lock().unwrap().is_over
    }

    /// What is wrong with how it behaves, if anything is.
    pub(crate) fn problem(&self) -> Option<String> {
        self.progress.lock().unwrap().problem.clone()
    }

    /// Another life begins; its number.
    fn begin(&self) -> u64 {
        let mut progress = self.progress.lock().unwrap();
        progress.is_over = false;
        progress.tries.clear();
        progress.lives += 1;
        progress.lives
    }

    fn end(&self) {
        self.progress.lock().unwrap().is_over = true;
    }

    /// Notes a try to connect, which must not be one of too many.
    fn note_try(&self) {
        let mut progress = self.progress.lock().unwrap();
        progress.tries.push(Instant::now());
        let Some(last) = progress.tries.last_chunk::<TRIES>() else {
            return;
        };
        let short = last.windows(2).all(|pair| pair[1] - pair[0] < STABLE_AFTER);
        let span = last[TRIES - 1] - last[0];
        if short && span < BACKOFF_BASE * 12 {
            progress.problem = Some(format!("{TRIES} tries to connect within {span:?}"));
        }
    }
}

/// Runs until it is asked to stop, in good order, or dropped.
pub(crate) async fn play(
    process: SimProcess,
    part: Arc<Part>,
    model: Arc<Mutex<Model>>,
    stop: Arc<Notify>,
) -> Result<(), String> {
    let life = part.begin();
    let client = start(&process, &part, life).await?;
    let acting = act(&process, &part, &model, &client);
    tokio::select! {
        biased;
        () = stop.notified() => {}
        never = acting => match never {},
    }
    client.stop(GRACE).await;
    Ok(())
}

/// Sends what is left of the part, and waits until all of it has come to its end.
async fn act(
    process: &SimProcess,
    part: &Arc<Part>,
    model: &Arc<Mutex<Model>>,
    client: &ReconnectingIpcClient,
) -> Infallible {
    let mut fates = JoinSet::new();
    if let Some(mut restored) = client.restored() {
        let (process, model) = (process.clone(), Arc::clone(model));
        fates.spawn(async move {
            while let Some(restored) = restored.recv().await {
                if process.is_running() {
                    model.lock().unwrap().learn(&restored.id, restored.fate);
                }
            }
        });
    }
    loop {
        let next = model.lock().unwrap().offered(part.agent);
        let Some(line) = part.lines.get(next) else {
            break;
        };
        sleep(line.pause).await;
        let name = model.lock().unwrap().offer(part.agent, *line);
        let mut options = SendOptions::new();
        if let Kind::Durable = line.kind {
            options = options.durable();
        }
        if let Some(stream) = line.stream_name() {
            options = options.stream(stream);
        }
        let sent = client.send_with(request(name, line.task), options).await;
        if !process.is_running() {
            // Nobody is there to see what it came to.
            continue;
        }
        match sent {
            Ok(receipt) => {
                model.lock().unwrap().accept(name, receipt.id());
                let watch = watch(process.clone(), receipt, Arc::clone(model));
                fates.spawn(watch);
            }
            Err(_) => model.lock().unwrap().refuse(name),
        }
    }
    loop {
        while fates.try_join_next().is_some() {}
        if client.outstanding() == 0 && fates.is_empty() {
            part.end();
        }
        sleep(LOOK).await;
    }
}

async fn watch(process: SimProcess, receipt: Receipt, model: Arc<Mutex<Model>>) {
    let fate = receipt.fate().await;
    if process.is_running() {
        model.lock().unwrap().learn(receipt.id(), fate.clone());
    }
}

async fn start(
    process: &SimProcess,
    part: &Arc<Part>,
    life: u64,
) -> Result<ReconnectingIpcClient, String> {
    let connect = {
        let (host, part) = (process.host().clone(), Arc::clone(part));
        move || {
            let (host, part) = (host.clone(), Arc::clone(&part));
            async move {
                part.note_try();
                let connected = host.connect(CONNECT_TIMEOUT).await;
                connected.map_err(io::Error::other)
            }
        }
    };
    let backoff = Backoff {
        base: BACKOFF_BASE,
        cap: Duration::from_secs(60),
        first: BACKOFF_BASE,
        stable_after: STABLE_AFTER,
        ..Backoff::default()
    };
    let session = format!("session {}", part.agent);
    ReconnectingIpcClient::builder(MessageDispatcher::empty())
        .connector(connect)
        .connection_config(connection_config())
        .announce_with(move || AgentStarted::new("", "1.0.0", session.clone()))
        .backoff(backoff.unlimited())
        .seed(fastrand::u64(..) ^ life)
        .outbox(
            process.folder(),
            OutboxOptions::default().segment_bytes(SEGMENT_BYTES),
        )
        .outbox_limits(QueueLimits {
            messages: part.room,
            ..QueueLimits::DISK
        })
        .queue_limits(QueueLimits {
            messages: part.room,
            ..QueueLimits::MEMORY
        })
        .overflow::<UserAction>(part.overflow)
        .execution(Execution::Inline)
        .start()
        .await
        .map_err(|error| error.to_string())
}
