//! The task that owns the state: one decision after the other, stored before it is told.
//!
//! Whoever wants something decided sends a job to the task. The task runs the jobs that are there,
//! stores what they changed in one commit, and only then answers them and sends what is to be
//! sent. Progress is stored at most once a second, and nobody waits for that.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use migration_ipc::{ConnectionEvent, EventStream, Observed, ServerSender, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::clock::Clock;
use super::desk::Desk;
use super::record::UserRecord;
use super::state::{Changed, Effect, Leaving};
use super::store::{Store, StoreError, Update};

/// How many jobs wait at most; handlers, and with them their connections, wait beyond it.
const INBOX: usize = 1024;

/// How many jobs share a commit at most.
const BATCH: usize = 256;

/// How long progress may be newer in memory than on disk.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the task sleeps at most before it looks at the clock again, which may have jumped.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce(&mut Desk, Timestamp) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), KeeperError>) + Send>;

/// Why something was not decided, or is not known to be.
// No `std::error::Error`, so that its conversion into a `HandlerError` can choose the code.
#[derive(Debug, Clone)]
pub(crate) enum KeeperError {
    Stopping,
    Store(Arc<StoreError>),
}

impl fmt::Display for KeeperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("the service is stopping"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

/// A handle to the task that owns the state. The task ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    inbox: mpsc::Sender<Job>,
}

impl Keeper {
    /// The handle, and the task to run once the server has started.
    pub(crate) fn new(desk: Desk, store: Store) -> (Self, KeeperTask) {
        let (inbox, jobs) = mpsc::channel(INBOX);
        let task = KeeperTask {
            desk,
            clock: Clock::new(),
            store: Arc::new(store),
            jobs,
            unsaved: Changed::default(),
        };
        (Self { inbox }, task)
    }

    /// Runs `decide` on the state, and returns its result once all that it changed is durable.
    ///
    /// Dropping the future does not take the decision back.
    pub(crate) async fn decide<R: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Desk, Timestamp) -> R + Send + 'static,
    ) -> Result<R, KeeperError> {
        let (answer, decided) = oneshot::channel();
        let job: Job = Box::new(move |desk, now| {
            let result = decide(desk, now);
            // Whoever asked may have gone away.
            Box::new(move |stored| drop(answer.send(stored.map(|()| result))))
        });
        self.inbox
            .send(job)
            .await
            .map_err(|_| KeeperError::Stopping)?;
        decided.await.unwrap_or(Err(KeeperError::Stopping))
    }
}

/// The task that owns the state.
#[derive(Debug)]
pub(crate) struct KeeperTask {
    desk: Desk,
    clock: Clock,
    store: Arc<Store>,
    jobs: mpsc::Receiver<Job>,
    /// What a commit failed to store, or what need not be stored yet.
    unsaved: Changed,
}

impl KeeperTask {
    /// Runs until the last handle is gone; everything is stored then.
    pub(crate) async fn run(mut self, server: ServerSender, mut events: EventStream) {
        let mut jobs = Vec::with_capacity(BATCH);
        let mut save_progress = Instant::now();
        loop {
            let timeout = self.next_timeout();
            tokio::select! {
                taken = self.jobs.recv_many(&mut jobs, BATCH) => if taken == 0 { break },
                Some(event) = events.recv() => self.handle_event(&event),
                () = sleep_until(timeout) => self.desk.migration.handle_timeout(self.clock.now()),
                () = sleep_until(save_progress), if !self.unsaved.progressed.is_empty() => {
                    save_progress = Instant::now() + PROGRESS_INTERVAL;
                    self.save(WithProgress::Yes).await.unwrap_or_else(|error| log(&error));
                    continue;
                }
            }
            let answers: Vec<Answer> = jobs
                .drain(..)
                .map(|job| job(&mut self.desk, self.clock.now()))
                .collect();
            let stored = self.save(WithProgress::No).await;
            if let Err(error) = &stored {
                log(error);
            }
            answers
                .into_iter()
                .for_each(|answer| answer(stored.clone()));
            self.send_effects(&server);
        }
        self.save(WithProgress::Yes)
            .await
            .unwrap_or_else(|error| log(&error));
    }

    fn next_timeout(&mut self) -> Instant {
        let now = self.clock.now();
        let timeout = self.desk.migration.next_timeout();
        let left = timeout.map_or(CLOCK_INTERVAL, |at| at.saturating_duration_since(now));
        // A little late rather than a little early, which would spin.
        Instant::now() + left.min(CLOCK_INTERVAL) + Duration::from_millis(1)
    }

    fn handle_event(&mut self, event: &Observed<ConnectionEvent>) {
        match event {
            Observed::Item(ConnectionEvent::Disconnected {
                connection, reason, ..
            }) => {
                let how = Leaving::of(reason);
                self.desk
                    .handle_gone(connection.id(), how, self.clock.now());
            }
            Observed::Item(_) => {}
            Observed::Missed(_) => self.desk.sweep(self.clock.now()),
        }
    }

    async fn save(&mut self, progress: WithProgress) -> Result<(), KeeperError> {
        self.unsaved.merge(self.desk.migration.take_changed());
        let mut saving = match progress {
            WithProgress::Yes => std::mem::take(&mut self.unsaved),
            WithProgress::No => self.unsaved.take_decided(),
        };
        let update = self.update(&saving);
        if update.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let saved = tokio::task::spawn_blocking(move || store.save(&update)).await;
        match saved {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                saving.merge(std::mem::take(&mut self.unsaved));
                self.unsaved = saving;
                Err(KeeperError::Store(Arc::new(error)))
            }
            Err(_panicked) => Err(KeeperError::Stopping),
        }
    }

    fn update(&self, changed: &Changed) -> Update {
        let migration = &self.desk.migration;
        let keys = changed.decided.union(&changed.progressed);
        let users: Vec<UserRecord> = keys
            .filter_map(|key| migration.user(key))
            .cloned()
            .collect();
        let standing = changed
            .standing_request
            .then(|| migration.standing_request().cloned());
        Update {
            users,
            standing_request: standing,
        }
    }

    fn send_effects(&mut self, server: &ServerSender) {
        for effect in self.desk.migration.take_effects() {
            let sent = match effect {
                Effect::Request { to, request } => self.desk.send(to, request),
                Effect::Escalation { to, notice } => self.desk.send(to, notice),
                Effect::Broadcast(status) => server.broadcast(&status).map(drop),
            };
            if let Err(error) = sent {
                tracing::warn!(%error, "a message to an agent was not sent");
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WithProgress {
    Yes,
    No,
}

fn log(error: &KeeperError) {
    tracing::error!(%error, "the state is not durable");
}
