//! The program of an agent: it sends its part, line by line, from where its last life ended.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::{
    Backoff, Execution, MessageDispatcher, Overflow, QueueLimits, Receipt, ReconnectingIpcClient,
    SendError,
};
use migration_ipc_testkit::machine::SimProcess;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::asking;
use crate::era::{Abilities, Era};
use crate::model::{Kind, Line, Model, Name};
use crate::payloads::action;
use crate::service::GRACE;

/// How long one try to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Short segments, so that they are begun, cleaned and removed within a run.
const SEGMENT_BYTES: u32 = 2048;

/// How often an agent that is through looks whether anything is left.
const LOOK: Duration = Duration::from_millis(500);

/// How many lines are accepted together at most.
const MOST_TOGETHER: usize = 40;

const BACKOFF_BASE: Duration = Duration::from_secs(1);
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// So many tries, none of which led to a connection that stayed up, take at least `BACKOFF_BASE`
/// each. The last five of them wait for 30 s on average; that all twelve together wait for less
/// than 12 s happens once in a hundred million times.
const TRIES: usize = 12;

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
    era: Era,
    stop: Arc<Notify>,
) -> Result<(), String> {
    let life = part.begin();
    let client = start(&process, &part, life, era.abilities()).await?;
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
        match line.kind {
            Kind::Durable | Kind::Memory | Kind::Large => {
                let (names, sent) = send(part, model, client, next).await;
                if !process.is_running() {
                    // Nobody is there to see what it came to.
                    continue;
                }
                for (place, name) in names.into_iter().enumerate() {
                    let Ok(receipts) = &sent else {
                        model.lock().unwrap().refuse(name);
                        continue;
                    };
                    model.lock().unwrap().accept(name, receipts[place].id());
                }
                for receipt in sent.into_iter().flatten() {
                    fates.spawn(watch(process.clone(), receipt, Arc::clone(model)));
                }
            }
            Kind::Unasked | Kind::Request(_) => {
                let line = *line;
                let name = model.lock().unwrap().offer(part.agent, &[line])[0];
                let (process, model) = (process.clone(), Arc::clone(model));
                fates.spawn(asking::ask(process, model, client.clone(), name, line));
            }
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

/// Sends a line, and those that are accepted together with it.
async fn send(
    part: &Part,
    model: &Mutex<Model>,
    client: &ReconnectingIpcClient,
    next: usize,
) -> (Vec<Name>, Result<Vec<Receipt>, SendError>) {
    let lines = &part.lines[next..];
    let joining = lines.windows(2).take(MOST_TOGETHER - 1);
    let joining = joining.take_while(|pair| pair[1].goes_with(&pair[0]));
    let lines = &lines[..=joining.count()];
    let names = model.lock().unwrap().offer(part.agent, lines);
    let actions = names.iter().zip(lines);
    let mut actions = actions.map(|(name, line)| action(*name, line.task));
    let options = lines[0].options();
    let sent = match (lines[0].kind, actions.len()) {
        (Kind::Large, _) => client
            .send_large(actions.next().unwrap())
            .await
            .map(|one| vec![one]),
        (_, 1) => {
            let sent = client.send_with(actions.next().unwrap(), options).await;
            sent.map(|one| vec![one])
        }
        (_, _) => client.send_batch(actions, options).await,
    };
    (names, sent)
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
    abilities: Abilities,
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
    let builder = ReconnectingIpcClient::builder(MessageDispatcher::empty());
    let builder = match abilities.encryption {
        _ if abilities.is_plain => builder.without_hello(),
        Some(encryption) => builder.encryption(encryption),
        None => builder,
    };
    builder
        .connector(connect)
        .connection_config(abilities.config)
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
