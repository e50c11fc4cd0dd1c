//! The task that owns the state: one decision after the other, stored before it is told.
//!
//! Whoever wants something decided sends a job to the task. A decision is made in memory and handed
//! to the store at once, together with the fact that its message is done; the next one does not
//! wait for the disk. What is to be sent because of a decision is sent once that is stored.
//!
//! When a decision cannot be stored, those after it are not stored either (see [`super::store`]):
//! their messages are put off, and the state goes back to what is on the disk.
//!
//! Progress is stored at most once a second, and nobody waits for that.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;
use std::{fmt, future};

use migration_ipc::{
    Commit, CommitError, ConnectionEvent, Delivery, Effects, ErrorCode, EventStream, Observed,
    ProgramCommit, ServerSender, StoreHandle, StoredOutcome, Timestamp,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::clock::Clock;
use super::desk::Desk;
use super::ending::Ending;
use super::state::{Changed, Effect, Leaving};
use super::store::{self, StateError, Update};

/// How many jobs wait at most; handlers, and with them their connections, wait beyond it.
const INBOX: usize = 1024;

/// How many jobs are done at most before the task looks at what else there is.
const BATCH: usize = 256;

/// How many decisions wait for the disk at most; jobs wait beyond it.
const UNSTORED: usize = 4096;

/// How long progress may be newer in memory than on disk.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the task sleeps at most before it looks at the clock again, which may have jumped.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

/// How long the task waits before it tries again to read what is stored.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

type Decide<R> = Box<dyn FnOnce(&mut Desk, Timestamp) -> R + Send>;
type Answer = Box<dyn FnOnce(Result<(), KeeperError>) + Send>;

/// Something to decide.
enum Job {
    /// About a message, whose sender is told how it ended.
    Message {
        delivery: Delivery,
        decide: Decide<Ending>,
        commit: oneshot::Sender<Result<Commit, KeeperError>>,
    },
    /// About anything else.
    Question(Decide<Answer>),
}

/// Why something was not decided, or is not known to be.
// No `std::error::Error`, so that its conversion into a `HandlerError` can choose the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeeperError {
    Stopping,
    /// Nothing of it is stored. Another try may succeed.
    NotStored,
}

impl fmt::Display for KeeperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopping => "the service is stopping",
            Self::NotStored => "the service cannot store its state now",
        })
    }
}

/// A handle to the task that owns the state. The task ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    inbox: mpsc::Sender<Job>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

impl Keeper {
    /// The handle, and the task to run once the server has started.
    pub(crate) fn new(desk: Desk, store: StoreHandle, decision: u64) -> (Self, KeeperTask) {
        let (inbox, jobs) = mpsc::channel(INBOX);
        let task = KeeperTask {
            desk,
            clock: Clock::new(),
            store,
            jobs,
            decision,
            unstored: VecDeque::new(),
            unsaved: Changed::default(),
        };
        (Self { inbox }, task)
    }

    /// Decides about a message; its sender is told once all that was changed is durable.
    ///
    /// Dropping the future does not take the decision back.
    pub(crate) async fn decide(
        &self,
        delivery: Delivery,
        decide: impl FnOnce(&mut Desk, Timestamp) -> Ending + Send + 'static,
    ) -> Result<Commit, KeeperError> {
        let (commit, decided) = oneshot::channel();
        let decide = Box::new(decide);
        self.send(Job::Message {
            delivery,
            decide,
            commit,
        })
        .await?;
        decided.await.unwrap_or(Err(KeeperError::NotStored))
    }

    /// Runs `decide` on the state, and returns its result once all that it changed is durable.
    ///
    /// Dropping the future does not take the decision back.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Desk, Timestamp) -> R + Send + 'static,
    ) -> Result<R, KeeperError> {
        let (answer, decided) = oneshot::channel();
        let question: Decide<Answer> = Box::new(move |desk, now| {
            let result = decide(desk, now);
            // Whoever asked may have gone away.
            Box::new(move |stored| drop(answer.send(stored.map(|()| result))))
        });
        self.send(Job::Question(question)).await?;
        decided.await.unwrap_or(Err(KeeperError::NotStored))
    }

    async fn send(&self, job: Job) -> Result<(), KeeperError> {
        let sent = self.inbox.send(job).await;
        sent.map_err(|_| KeeperError::Stopping)
    }
}

/// A decision on its way to the disk, and what is to be done when it is there.
struct Unstored {
    commit: ProgramCommit,
    answers: Vec<Answer>,
    send: Vec<Effect>,
}

/// The task that owns the state.
pub(crate) struct KeeperTask {
    desk: Desk,
    clock: Clock,
    store: StoreHandle,
    jobs: mpsc::Receiver<Job>,
    /// The number of the last decision.
    decision: u64,
    /// In the order of the decisions, which is that of their commits.
    unstored: VecDeque<Unstored>,
    /// Progress that need not be stored yet.
    unsaved: Changed,
}

impl KeeperTask {
    /// Runs until the last handle is gone; everything is stored then.
    pub(crate) async fn run(mut self, server: ServerSender, mut events: EventStream) {
        let mut jobs = Vec::with_capacity(BATCH);
        let mut save_progress = Instant::now();
        loop {
            let timeout = self.next_timeout();
            let room = self.unstored.len() < UNSTORED;
            tokio::select! {
                stored = first_stored(&mut self.unstored) => self.handle_stored(stored, &server).await,
                taken = self.jobs.recv_many(&mut jobs, BATCH), if room => {
                    if taken == 0 {
                        break;
                    }
                    jobs.drain(..).for_each(|job| self.handle_job(job));
                }
                Some(event) = events.recv() => {
                    self.handle_event(&event);
                    self.store_changes(None);
                }
                () = sleep_until(timeout) => {
                    self.desk.migration.handle_timeout(self.clock.now());
                    self.store_changes(None);
                }
                () = sleep_until(save_progress), if !self.unsaved.progressed.is_empty() => {
                    save_progress = Instant::now() + PROGRESS_INTERVAL;
                    self.store_progress();
                }
            }
        }
        self.store_progress();
        while !self.unstored.is_empty() {
            let stored = first_stored(&mut self.unstored).await;
            self.handle_stored(stored, &server).await;
        }
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
                let now = self.clock.now();
                self.desk.handle_gone(connection.id(), how, now);
            }
            Observed::Item(_) => {}
            Observed::Missed(_) => self.desk.sweep(self.clock.now()),
        }
    }

    fn handle_job(&mut self, job: Job) {
        let now = self.clock.now();
        match job {
            Job::Message {
                delivery,
                decide,
                commit,
            } => {
                let ending = decide(&mut self.desk, now);
                let effects = ending.end(self.take_effects());
                let under_way = delivery.commit(effects);
                // The handler may be gone with its connection; what it asked for is done.
                drop(commit.send(Ok(under_way.clone())));
                self.wait_for(under_way.into(), None);
            }
            Job::Question(decide) => {
                let answer = decide(&mut self.desk, now);
                self.store_changes(Some(answer));
            }
        }
    }

    /// Hands what was changed to the store, and answers when that, and all that was decided before,
    /// is there: nobody is told what may not have happened.
    fn store_changes(&mut self, answer: Option<Answer>) {
        self.merge_changed();
        if self.unsaved.is_decided() {
            let effects = self.take_effects();
            let commit = self.store.commit(effects);
            self.wait_for(commit, answer);
        } else if let Some(answer) = answer {
            match self.unstored.back_mut() {
                Some(last) => last.answers.push(answer),
                None => answer(Ok(())),
            }
        }
    }

    fn store_progress(&mut self) {
        self.merge_changed();
        if !self.unsaved.is_empty() {
            let all = std::mem::take(&mut self.unsaved);
            let effects = self.effects_of(&all);
            let commit = self.store.commit(effects);
            self.wait_for(commit, None);
        }
    }

    fn merge_changed(&mut self) {
        self.unsaved.merge(self.desk.migration.take_changed());
    }

    /// What was decided since the last call.
    fn take_effects(&mut self) -> Effects {
        self.merge_changed();
        let decided = self.unsaved.take_decided();
        self.effects_of(&decided)
    }

    fn effects_of(&mut self, changed: &Changed) -> Effects {
        let update = self.update(changed);
        if update.is_empty() {
            return Effects::new();
        }
        self.decision += 1;
        update.into_effects(self.decision).unwrap_or_else(|error| {
            tracing::error!(%error, "the state cannot be written");
            Effects::new().reject(ErrorCode::Busy, error.to_string())
        })
    }

    fn update(&self, changed: &Changed) -> Update {
        let migration = &self.desk.migration;
        let keys = changed.decided.union(&changed.progressed);
        let users = keys.filter_map(|key| migration.user(key)).cloned();
        let standing = changed
            .standing_request
            .then(|| migration.standing_request().cloned());
        Update {
            users: users.collect(),
            standing_request: standing,
        }
    }

    fn wait_for(&mut self, commit: ProgramCommit, answer: Option<Answer>) {
        self.unstored.push_back(Unstored {
            commit,
            answers: Vec::from_iter(answer),
            send: self.desk.migration.take_effects(),
        });
    }

    /// A decision is on the disk, or will not get there.
    async fn handle_stored(&mut self, (unstored, result): Settled, server: &ServerSender) {
        if self.conclude(unstored, &result, server) == Storing::Worked {
            return;
        }
        tracing::error!(?result, "a decision was not stored");
        // What was decided on top of it is not stored either.
        while !self.unstored.is_empty() {
            let (unstored, result) = first_stored(&mut self.unstored).await;
            self.conclude(unstored, &result, server);
        }
        self.go_back().await;
    }

    fn conclude(
        &self,
        unstored: Unstored,
        result: &Result<StoredOutcome, CommitError>,
        server: &ServerSender,
    ) -> Storing {
        let storing = match result {
            Ok(outcome) if !outcome.is_put_off() => Storing::Worked,
            Ok(_) | Err(_) => Storing::Failed,
        };
        if storing == Storing::Worked {
            self.send(unstored.send, server);
        }
        for answer in unstored.answers {
            answer(match storing {
                Storing::Worked => Ok(()),
                Storing::Failed => Err(KeeperError::NotStored),
            });
        }
        storing
    }

    /// Goes back to what is on the disk. Until that can be read, everything is refused.
    async fn go_back(&mut self) {
        let stored = loop {
            let read = self.store.read(|reader| Ok(store::load(reader))).await;
            match read.map_err(StateError::from).flatten() {
                Ok(stored) => break stored,
                Err(error) => tracing::error!(%error, "the state cannot be read"),
            }
            if self.refuse_for_a_while().await.is_break() {
                return;
            }
        };
        tracing::warn!(decision = stored.decision, "went back to what is stored");
        self.decision = stored.decision;
        self.unsaved = Changed::default();
        let now = self.clock.now();
        let migration = &mut self.desk.migration;
        migration.restore(stored.users, stored.standing_request, now);
    }

    /// Breaks when nobody wants anything any more.
    async fn refuse_for_a_while(&mut self) -> ControlFlow<()> {
        let until = Instant::now() + RELOAD_INTERVAL;
        loop {
            tokio::select! {
                () = sleep_until(until) => return ControlFlow::Continue(()),
                job = self.jobs.recv() => match job {
                    None => return ControlFlow::Break(()),
                    // Whoever waits for it learns that it is not stored.
                    Some(refused) => drop(refused),
                }
            }
        }
    }

    fn send(&self, effects: Vec<Effect>, server: &ServerSender) {
        for effect in effects {
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
enum Storing {
    Worked,
    Failed,
}

type Settled = (Unstored, Result<StoredOutcome, CommitError>);

/// Waits for the first decision that is on its way to the disk. Cancel safe.
async fn first_stored(unstored: &mut VecDeque<Unstored>) -> Settled {
    let Some(first) = unstored.front_mut() else {
        return future::pending().await;
    };
    let result = (&mut first.commit).await;
    match unstored.pop_front() {
        Some(first) => (first, result),
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests;
