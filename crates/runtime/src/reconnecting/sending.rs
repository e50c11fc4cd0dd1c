//! Messages on their way from the queues to a connection, and the answers to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use migration_ipc_protocol::limits::DELIVERY_WINDOW;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{DeliveryHead, Priority, RawValue, StreamName};
use migration_ipc_store::planted::{PlantedBug, is_planted};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::backoff::any_up_to;
use super::company::{self, Company};
use super::guarantee::{Clearance, Receiver, Verdict};
use super::large;
use super::log::OutboxFailure;
use super::queue::{Confidence, Entry, Queue, Withheld};
use super::sealing::{LockedBy, OutboxKeyId, Sealer};
use super::shared::{Core, OnDisk, Shared};
use super::stored::{Head, Stored};
use crate::config::SensitivePolicy;
use crate::connection::{
    AnswerResult, ConnectionState, DisconnectReason, IpcConnection, Parcel, Rejection, Secrecy,
    SendError,
};
use crate::delivery::Fate;

/// Messages of one queue that are sent and not answered, at most.
const MAX_UNDER_WAY: usize = 1024;

/// Messages for which marks are asked at a time: they share one sync.
const MARK_AHEAD: usize = 64;

/// How long a stream that the service puts off for the first time waits before it is sent again:
/// between half of this and one and a half times this. Each further time doubles it.
const PUT_OFF: Duration = Duration::from_millis(500);

/// The longest that grows to, for a service that can take nothing for hours (its disk is full).
const MAX_PUT_OFF: Duration = Duration::from_secs(30);

/// Messages in memory are one order, whatever stream they name.
const IN_MEMORY: Option<StreamName> = None;

const _: () = assert!(MAX_UNDER_WAY as u64 <= DELIVERY_WINDOW);

/// A message that was taken out of its queue to be sent.
#[derive(Debug)]
pub(super) enum Job {
    Memory {
        number: u64,
        entry: Entry<Vec<u8>>,
    },
    Disk {
        number: u64,
        entry: Entry<()>,
        record: Vec<u8>,
        /// Whom it goes to.
        receiver: Receiver,
    },
}

/// One that was sent.
#[derive(Debug)]
struct UnderWay {
    job: Job,
    answer: oneshot::Receiver<AnswerResult>,
}

impl UnderWay {
    async fn answered(self) -> (Job, AnswerResult) {
        let lost = Err(SendError::Lost(DisconnectReason::Aborted));
        (self.job, self.answer.await.unwrap_or(lost))
    }
}

impl Job {
    pub(super) fn company(&self) -> Option<u64> {
        match self {
            Self::Memory { .. } => None,
            Self::Disk { entry, .. } => entry.company,
        }
    }

    /// Bytes of what it says.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Memory { entry, .. } => entry.body.len(),
            Self::Disk { record, .. } => record.len(),
        }
    }

    /// What was kept in memory to be sent is not needed any more once it is on its way, if the disk
    /// has it too.
    fn shed(&mut self) {
        match self {
            Self::Memory { .. } => {}
            Self::Disk { record, .. } => *record = Vec::new(),
        }
    }

    /// The message as it is sent, unless it is sealed: that is opened when it is posted.
    pub(super) fn parcel(&self) -> Result<JobParcel<'_>, SendError> {
        let (record, seq) = self.record();
        match Stored::read(record) {
            Ok(Stored::Message(head, payload)) => Ok(self.addressed(head, payload)),
            Ok(Stored::Sealed(..)) => Err(unreadable(seq, "it is sealed")),
            Ok(Stored::Mark(_)) => Err(unreadable(seq, "it is a mark")),
            Err(error) => Err(unreadable(seq, &error.to_string())),
        }
    }

    fn record(&self) -> (&[u8], Option<u64>) {
        match self {
            Self::Memory { entry, .. } => (&entry.body, None),
            Self::Disk { number, record, .. } => (record, Some(*number)),
        }
    }

    fn addressed<'a>(&self, head: Head<'a>, payload: &'a RawValue) -> JobParcel<'a> {
        let (seq, priority) = match self {
            Self::Memory { .. } => (None, head.priority),
            // Another lane would take it out of the order of its outbox.
            Self::Disk { number, .. } => (Some(*number), Priority::Normal),
        };
        JobParcel {
            head,
            payload,
            seq,
            priority,
        }
    }

    pub(super) async fn post(
        &self,
        connection: &IpcConnection,
        sealer: &Sealer,
    ) -> Result<oneshot::Receiver<AnswerResult>, SendError> {
        let (record, seq) = self.record();
        let Ok(Stored::Sealed(head, sealed)) = Stored::read(record) else {
            return connection.post_parcel(self.parcel()?.get()).await;
        };
        let unsealed = sealer
            .open(sealed)
            .map_err(|by| locked(seq, sealed.with, by))?;
        let parcel = self.addressed(head, &unsealed.payload);
        connection.post_parcel(parcel.get()).await
    }
}

/// What a job says, read in place.
pub(super) struct JobParcel<'a> {
    head: Head<'a>,
    payload: &'a RawValue,
    seq: Option<u64>,
    priority: Priority,
}

impl JobParcel<'_> {
    pub(super) fn get(&self) -> Parcel<'_> {
        Parcel {
            id: &self.head.id,
            message_type: &self.head.message_type,
            timestamp: self.head.timestamp,
            payload: self.payload,
            delivery: self.seq.map(|seq| DeliveryHead {
                seq,
                stream: self.head.stream.as_deref(),
            }),
            priority: self.priority,
        }
    }
}

fn locked(seq: Option<u64>, key: OutboxKeyId, by: LockedBy) -> SendError {
    SendError::NotStored(Arc::new(OutboxFailure::Locked {
        seq: seq.unwrap_or_default(),
        key,
        by,
    }))
}

/// Whether the message is there and cannot be opened.
fn is_locked(error: &SendError) -> bool {
    matches!(error, SendError::NotStored(failure) if matches!(**failure, OutboxFailure::Locked { .. }))
}

fn unreadable(seq: Option<u64>, why: &str) -> SendError {
    SendError::NotStored(Arc::new(OutboxFailure::Unreadable {
        seq: seq.unwrap_or_default(),
        why: why.to_owned(),
    }))
}

/// Sends what waits over this connection, and takes the answers, until the connection has ended and
/// every message of it is accounted for.
pub(super) async fn serve(shared: &Shared, connection: &IpcConnection, rng: &mut Rng) {
    shared.begin_connection(connection);
    let (sent, mut to_watch) = mpsc::channel(2 * MAX_UNDER_WAY);
    // Until it refuses a batch as a whole.
    let takes_batches = &AtomicBool::new(true);
    let pump = async move {
        let mut ended = std::pin::pin!(ended(connection));
        // Until it is certain what the service is, nothing durable goes to it: taken for a plain
        // one, a new one that is slow would get messages that it cannot recognise again.
        let mut receiver = None;
        let mut secrecy = None;
        loop {
            let company = || match takes_batches.load(Ordering::Relaxed) {
                true => company::of(connection),
                false => Company::Alone,
            };
            let load = tokio::select! {
                biased;
                () = &mut ended => return,
                known = connection.secrecy_known(), if secrecy.is_none() => {
                    secrecy = Some(known);
                    if known == Secrecy::Encrypted {
                        shared.withhold(Withheld::Nothing);
                    }
                    continue;
                }
                () = connection.shown().cancelled(), if receiver.is_none() => {
                    receiver = Some(shared.meet(connection));
                    continue;
                }
                load = shared.next_load(receiver, company) => load,
            };
            for (mut job, posted) in company::post(load, connection, &shared.sealer).await {
                if let Err(error) = &posted
                    && is_locked(error)
                {
                    // At once: what is behind it must not overtake it.
                    shared.lock_away(job, error);
                    continue;
                }
                job.shed();
                let answer = posted.unwrap_or_else(|error| {
                    let (known, answer) = oneshot::channel();
                    drop(known.send(Err(error)));
                    answer
                });
                // As many as can be under way fit.
                if sent.send(UnderWay { job, answer }).await.is_err() {
                    return;
                }
            }
        }
    };
    let watch = async {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some((job, answer)) = under_way.next() => {
                    if let Err(SendError::BatchRejected(_)) = answer {
                        takes_batches.store(false, Ordering::Relaxed);
                    }
                    shared.handle_answer(job, answer, rng);
                }
                Some(sent) = to_watch.recv() => under_way.push(UnderWay::answered(sent)),
                else => return,
            }
        }
    };
    tokio::join!(pump, watch, large::serve(shared, connection));
}

/// Waits until the connection accepts nothing more.
pub(super) async fn ended(connection: &IpcConnection) {
    let mut state = connection.state();
    // An error means that the connection is gone altogether.
    let _ = state.wait_for(ConnectionState::is_ending).await;
}

impl Shared {
    /// What the last connection put off need not wait any longer. What is sensitive waits until it
    /// is known that this one is encrypted, if that is asked for.
    fn begin_connection(&self, connection: &IpcConnection) {
        self.withhold(match connection.config().sensitive {
            SensitivePolicy::AsTheyAre => Withheld::Nothing,
            SensitivePolicy::Encrypted => Withheld::Sensitive,
        });
        let mut core = self.lock();
        core.memory.resume_all();
        if let Some(disk) = &mut core.disk {
            disk.queue.resume_all();
        }
    }

    fn withhold(&self, withheld: Withheld) {
        let mut core = self.lock();
        core.memory.withhold(withheld);
        if let Some(disk) = &mut core.disk {
            disk.queue.withhold(withheld);
        }
    }

    /// It is certain what the service is.
    fn meet(&self, connection: &IpcConnection) -> Receiver {
        match connection.seen() {
            Some(seen) => {
                self.number_after(seen);
                Receiver::Recognising
            }
            None => Receiver::Plain,
        }
    }

    /// Waits for the next message to send, and those that may go out with it. Cancel safe: they are
    /// taken in the last step.
    async fn next_load(
        &self,
        receiver: Option<Receiver>,
        company: impl Fn() -> Company,
    ) -> Vec<Job> {
        loop {
            let load = self.lock().next_load(receiver, company(), Instant::now());
            if !load.is_empty() {
                return load;
            }
            // What is not sent may wait for the log, or may have come to its end.
            self.note_settled();
            self.work.notified().await;
        }
    }

    /// A message cannot be opened: it stays, and holds up its stream.
    fn lock_away(&self, job: Job, error: &SendError) {
        let Job::Disk { number, entry, .. } = job else {
            return;
        };
        tracing::error!(number, %error, "a message of the outbox is kept and not sent");
        let mut core = self.lock();
        if let Some(disk) = &mut core.disk {
            disk.under_way -= 1;
            disk.queue.lock_from(entry.stream.clone(), number);
            disk.queue.insert(number, entry.locked());
        }
        drop(core);
        self.note_settled();
    }

    fn handle_answer(&self, job: Job, answer: AnswerResult, rng: &mut Rng) {
        let mut core = self.lock();
        match job {
            Job::Memory { number, entry } => core.answer_memory(number, entry, answer, rng),
            Job::Disk {
                number,
                entry,
                record: _,
                receiver,
            } => core.answer_disk(number, entry, answer, receiver, rng),
        }
        drop(core);
        self.work.notify_one();
        self.changed.notify_one();
        self.note_settled();
    }
}

impl Core {
    pub(super) fn next_job(&mut self, receiver: Option<Receiver>, now: Instant) -> Option<Job> {
        self.memory_first = !self.memory_first;
        if self.memory_first {
            self.next_in_memory(now)
                .or_else(|| self.next_on_disk(receiver, now))
        } else {
            self.next_on_disk(receiver, now)
                .or_else(|| self.next_in_memory(now))
        }
    }

    fn next_in_memory(&mut self, now: Instant) -> Option<Job> {
        while self.memory_under_way < MAX_UNDER_WAY && !self.memory.is_put_off(&IN_MEMORY) {
            let (number, entry) = self.memory.pop_sendable()?;
            if entry.expires.is_some_and(|expires| expires <= now) {
                self.settle_memory(entry, Fate::Expired);
                continue;
            }
            self.memory_under_way += 1;
            return Some(Job::Memory { number, entry });
        }
        None
    }

    pub(super) fn next_on_disk(&mut self, receiver: Option<Receiver>, now: Instant) -> Option<Job> {
        let receiver = receiver?;
        loop {
            let disk = self.disk.as_mut()?;
            if disk.under_way >= MAX_UNDER_WAY || disk.lost || disk.desk.is_numbering() {
                return None;
            }
            let below = disk.desk.floor().saturating_add(DELIVERY_WINDOW);
            let Some((number, entry)) = disk.next_sendable(below) else {
                if disk.queue.sendable(u64::MAX).next().is_some() {
                    disk.desk.want_sync();
                }
                return None;
            };
            let expired =
                entry.expires.is_some_and(|expires| expires <= now) && !entry.history.attempted;
            let over = match receiver.clear(entry.history) {
                Clearance::Settle(fate) => Some(fate),
                Clearance::Mark | Clearance::Send if expired => Some(Fate::Expired),
                Clearance::Mark => {
                    disk.ask_for_marks(below, receiver);
                    return None;
                }
                Clearance::Send => None,
            };
            if let Some(fate) = over {
                let entry = disk.queue.take(number)?;
                self.settle_disk(number, entry, fate, now);
                continue;
            }
            let Some(record) = disk.desk.take_record(number) else {
                let ahead = disk.queue.sendable(below);
                disk.desk
                    .read(ahead.map(|(number, entry)| (number, entry.bytes)));
                return None;
            };
            let entry = disk.queue.take(number)?;
            disk.under_way += 1;
            if is_planted(PlantedBug::SettleBeforeAcknowledgment) {
                disk.desk.settle(number, now);
            }
            return Some(Job::Disk {
                number,
                entry,
                record,
                receiver,
            });
        }
    }

    fn answer_memory(
        &mut self,
        number: u64,
        mut entry: Entry<Vec<u8>>,
        answer: AnswerResult,
        rng: &mut Rng,
    ) {
        self.memory_under_way -= 1;
        match answer {
            // Its type turned out to be sensitive while it was waiting.
            Err(SendError::NotEncrypted) => {
                entry.history.confidence = Confidence::Sensitive;
                self.memory.insert(number, entry);
            }
            // It goes out with the next connection, in its old place.
            Err(SendError::Closed(_)) => self.memory.insert(number, entry),
            // A service that stops takes nothing that is behind it either, so the order holds.
            Err(SendError::Rejected(Rejection {
                code: Some(ErrorCode::Stopping),
                ..
            })) => {
                self.memory.put_off_by_peer(IN_MEMORY, rng);
                self.memory.insert(number, entry);
            }
            answer => {
                self.memory.forget_refusals(&IN_MEMORY);
                self.settle_memory(entry, Fate::of(answer));
            }
        }
    }

    fn answer_disk(
        &mut self,
        number: u64,
        mut entry: Entry<()>,
        answer: AnswerResult,
        receiver: Receiver,
        rng: &mut Rng,
    ) {
        let now = Instant::now();
        if let Err(SendError::NotEncrypted) = answer {
            entry.history.confidence = Confidence::Sensitive;
        }
        let verdict = receiver.judge(&mut entry.history, answer);
        let Some(disk) = &mut self.disk else { return };
        disk.under_way -= 1;
        match verdict {
            Verdict::Settle(fate) => {
                disk.queue.forget_refusals(&entry.stream);
                self.settle_disk(number, entry, fate, now);
            }
            Verdict::PutBack => disk.queue.insert(number, entry),
            Verdict::PutOff => {
                disk.queue.put_off_by_peer(entry.stream.clone(), rng);
                disk.queue.insert(number, entry);
            }
        }
    }
}

impl<B> Queue<B> {
    /// The peer takes nothing of a stream at the moment: it goes out again a little later.
    fn put_off_by_peer(&mut self, stream: Option<StreamName>, rng: &mut Rng) {
        let doublings = self.count_refusal(&stream).saturating_sub(1);
        let delay = 2_u32
            .checked_pow(doublings)
            .map_or(MAX_PUT_OFF, |times| (PUT_OFF * times).min(MAX_PUT_OFF));
        let until = Instant::now() + delay / 2 + any_up_to(delay, rng);
        self.put_off(stream, until);
    }
}

impl OnDisk {
    pub(super) fn next_sendable(&self, below: u64) -> Option<(u64, &Entry<()>)> {
        let fresh = |(_, entry): &(u64, &Entry<()>)| !entry.history.attempted;
        if is_planted(PlantedBug::ReorderOnRetry)
            && let Some(next) = self.queue.sendable(below).find(fresh)
        {
            return Some(next);
        }
        self.queue.sendable(below).next()
    }

    fn ask_for_marks(&mut self, below: u64, receiver: Receiver) {
        let ahead = self.queue.sendable(below).take(MARK_AHEAD);
        for (number, entry) in ahead {
            if let Clearance::Mark = receiver.clear(entry.history) {
                self.desk.mark(number);
            }
        }
    }
}
