//! What the handles of a client and its task share: two queues under one lock, and who is woken.
//!
//! `accepting` takes messages in, `sending` gives them to a connection and takes the answers,
//! `keeping` is the log's side. Here is what all three need.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use migration_ipc_protocol::MessageId;
use tokio::sync::{Notify, SetOnce, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::client::{Remaining, Restored};
use super::desk::Desk;
use super::large::Large;
use super::options::Policies;
use super::queue::{Awaited, Entry, Queue};
use super::sealing::Sealer;
use super::state::{ConnectionTrouble, ReconnectState};
use super::telemetry::Metrics;
use crate::clock::Clock;
use crate::connection::{DisconnectReason, IpcConnection, SendError, SensitiveTypes};
use crate::delivery::Fate;

/// Whether messages are taken.
#[derive(Debug, Clone)]
pub(super) enum Doors {
    Open,
    /// Only what can be kept on disk.
    GaveUp(ConnectionTrouble),
    /// Nothing; what is there is still sent until this time.
    Stopping(Instant),
    Closed,
}

/// Messages that are kept on disk.
#[derive(Debug)]
pub(super) struct OnDisk {
    /// By their numbers in the outbox.
    pub(super) queue: Queue<()>,
    pub(super) desk: Desk,
    pub(super) under_way: usize,
    /// The outbox was lost to a failure: nothing can be kept or read.
    pub(super) lost: bool,
}

pub(super) struct Core {
    pub(super) doors: Doors,
    pub(super) memory: Queue<Vec<u8>>,
    pub(super) memory_under_way: usize,
    /// Messages in memory that may be longer than a frame.
    pub(super) large: Large,
    /// The number of the next message in memory.
    pub(super) next_number: u64,
    /// The next [company](Entry::company) of messages that are accepted together.
    pub(super) next_company: u64,
    pub(super) disk: Option<OnDisk>,
    /// Whose turn it is, where both queues have something to send.
    pub(super) memory_first: bool,
    pub(super) restored: Outcomes,
    pub(super) remaining: Remaining,
    pub(super) metrics: Metrics,
}

impl fmt::Debug for Core {
    /// How much waits, and not what: messages that wait are payloads as text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_disk = self.disk.as_ref();
        f.debug_struct("Core")
            .field("doors", &self.doors)
            .field("in_memory", &self.memory.messages())
            .field("on_disk", &on_disk.map(|disk| disk.queue.messages()))
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

/// Tells what becomes of messages of earlier runs.
#[derive(Debug)]
pub(super) struct Outcomes {
    /// Has room for all of them; gone once all are told.
    sender: Option<mpsc::Sender<Restored>>,
    left: usize,
}

impl Outcomes {
    pub(super) fn new(messages: usize) -> (Self, mpsc::Receiver<Restored>) {
        let (sender, receiver) = mpsc::channel(messages.max(1));
        let outcomes = Self {
            sender: (messages > 0).then_some(sender),
            left: messages,
        };
        (outcomes, receiver)
    }

    fn tell(&mut self, id: MessageId, fate: Fate) {
        if let Some(sender) = &self.sender {
            // There is room for all; a program that does not listen dropped the other end.
            drop(sender.try_send(Restored { id, fate }));
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.sender = None;
        }
    }
}

impl Core {
    pub(super) fn resolve(&mut self, awaited: Awaited, fate: Fate) {
        self.metrics.resolved(&fate);
        match awaited {
            Awaited::Receipt(resolver) => resolver.resolve(fate),
            Awaited::Restored(id) => self.restored.tell(id, fate),
        }
    }

    /// The end of a message in memory that was taken out of its queue.
    pub(super) fn settle_memory(&mut self, entry: Entry<Vec<u8>>, fate: Fate) {
        self.memory.release(1, u64::from(entry.bytes));
        self.resolve(entry.awaited, fate);
    }

    /// The end of a durable message that was taken out of its queue.
    pub(super) fn settle_disk(&mut self, number: u64, entry: Entry<()>, fate: Fate, now: Instant) {
        if let Some(disk) = &mut self.disk {
            disk.queue.release(1, u64::from(entry.bytes));
            disk.settle(number, &entry, now);
        }
        self.resolve(entry.awaited, fate);
    }

    /// Ends everything that waits in memory.
    pub(super) fn drain_memory(&mut self, error: &SendError) -> usize {
        let mut drained = 0;
        while let Some((_, entry)) = self.memory.pop() {
            drained += 1;
            self.settle_memory(entry, Fate::NotSent(error.clone()));
        }
        drained
    }

    fn is_idle(&self) -> bool {
        let disk = self.disk.as_ref();
        let in_memory = self.memory.messages() + self.large.messages();
        in_memory == 0 && disk.is_none_or(|disk| disk.queue.is_done())
    }

    fn next_event(&self) -> Option<Instant> {
        let disk = self.disk.as_ref().and_then(|disk| disk.queue.next_event());
        self.memory.next_event().into_iter().chain(disk).min()
    }

    fn tick(&mut self, now: Instant) {
        self.memory.resume(now);
        while let Some((_, entry)) = self.memory.expired(now) {
            self.settle_memory(entry, Fate::Expired);
        }
        if let Some(disk) = &mut self.disk {
            disk.queue.resume(now);
        }
        while let Some(disk) = &mut self.disk {
            let Some((number, entry)) = disk.queue.expired(now) else {
                break;
            };
            self.settle_disk(number, entry, Fate::Expired, now);
        }
    }
}

impl OnDisk {
    /// The disk may forget a message, and its mark.
    pub(super) fn settle(&mut self, number: u64, entry: &Entry<()>, now: Instant) {
        self.desk.settle(number, now);
        if let Some(mark) = entry.history.mark {
            self.desk.settle(mark, now);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    core: Mutex<Core>,
    pub(super) policies: Policies,
    pub(super) clock: Clock,
    /// Which types are sensitive, as far as that is known.
    pub(super) sensitive: SensitiveTypes,
    pub(super) sealer: Sealer,
    pub(super) state: watch::Sender<ReconnectState>,
    /// The present connection, if there is one.
    pub(super) connection: watch::Sender<Option<IpcConnection>>,
    /// For the pump: there may be something to send.
    pub(super) work: Notify,
    /// For the log: there may be something to keep.
    pub(super) log_work: Notify,
    /// The same as `work`, for what may be longer than a frame.
    pub(super) large_work: Notify,
    /// For senders that wait, and whoever waits for the queues to be empty.
    pub(super) room: Notify,
    /// For the clock: something may be due earlier.
    pub(super) changed: Notify,
    /// For the task: the doors may have changed.
    pub(super) doors: Notify,
    pub(super) stopped: SetOnce<Remaining>,
}

impl Shared {
    pub(super) fn new(
        core: Core,
        policies: Policies,
        clock: Clock,
        sensitive: SensitiveTypes,
        sealer: Sealer,
    ) -> Self {
        Self {
            core: Mutex::new(core),
            policies,
            clock,
            sensitive,
            sealer,
            state: watch::Sender::new(ReconnectState::Connecting { attempt: 1 }),
            connection: watch::Sender::new(None),
            work: Notify::new(),
            log_work: Notify::new(),
            large_work: Notify::new(),
            room: Notify::new(),
            changed: Notify::new(),
            doors: Notify::new(),
            stopped: SetOnce::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // No code of a user runs under this lock, and every section leaves the state whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody whom the end of a message concerns.
    pub(super) fn note_settled(&self) {
        self.room.notify_waiters();
        self.log_work.notify_one();
    }

    // --- the doors -----------------------------------------------------------------------------

    /// Takes no more messages, and sends what is there until `deadline`.
    pub(super) fn request_stop(&self, deadline: Instant) {
        let mut core = self.lock();
        core.doors = match core.doors {
            Doors::Closed => return,
            Doors::Stopping(before) => Doors::Stopping(before.min(deadline)),
            Doors::Open | Doors::GaveUp(_) => Doors::Stopping(deadline),
        };
        drop(core);
        self.room.notify_waiters();
        self.doors.notify_waiters();
    }

    /// The deadline, once the client was asked to stop.
    pub(super) fn stop_deadline(&self) -> Option<Instant> {
        match self.lock().doors {
            Doors::Stopping(deadline) => Some(deadline),
            Doors::Open | Doors::GaveUp(_) | Doors::Closed => None,
        }
    }

    /// Waits until the client is asked to stop.
    pub(super) async fn stop_requested(&self) {
        self.doors_where(|doors| matches!(doors, Doors::Stopping(_) | Doors::Closed))
            .await;
    }

    /// Waits until the client that gave up is asked to go on, or to stop.
    pub(super) async fn retry_requested(&self) {
        self.doors_where(|doors| !matches!(doors, Doors::GaveUp(_)))
            .await;
    }

    async fn doors_where(&self, wanted: impl Fn(&Doors) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.doors.notified());
            changed.as_mut().enable();
            if wanted(&self.lock().doors) {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn give_up(&self, trouble: &ConnectionTrouble) {
        let mut core = self.lock();
        if let Doors::Open = core.doors {
            core.doors = Doors::GaveUp(trouble.clone());
            core.drain_memory(&SendError::GaveUp(trouble.clone()));
            core.drain_large(&SendError::GaveUp(trouble.clone()));
        }
        drop(core);
        self.note_settled();
    }

    pub(super) fn request_retry(&self) {
        let mut core = self.lock();
        if let Doors::GaveUp(_) = core.doors {
            core.doors = Doors::Open;
        }
        drop(core);
        self.doors.notify_waiters();
    }

    /// Waits until the client is asked to stop, and then until nothing waits or is under way, or the
    /// deadline of the stop is over.
    pub(super) async fn emptied_or_late(&self) {
        self.stop_requested().await;
        loop {
            let mut settled = std::pin::pin!(self.room.notified());
            settled.as_mut().enable();
            let Some(deadline) = self.stop_deadline() else {
                return;
            };
            if self.lock().is_idle() {
                return;
            }
            tokio::select! {
                biased;
                () = sleep_until(deadline) => return,
                () = settled => {}
            }
        }
    }

    /// Takes nothing any more and sends nothing any more.
    pub(super) fn close(&self) {
        let mut core = self.lock();
        core.doors = Doors::Closed;
        let stopped = SendError::Closed(DisconnectReason::Stopped);
        let dropped = core.drain_memory(&stopped) + core.drain_large(&stopped);
        core.remaining.dropped += dropped;
        while let Some(disk) = &mut core.disk
            && let Some((_, entry)) = disk.queue.pop()
        {
            disk.queue.release(1, u64::from(entry.bytes));
            core.remaining.kept += 1;
            if let Awaited::Receipt(resolver) = entry.awaited {
                resolver.resolve(Fate::Unknown(SendError::Kept));
            }
        }
        core.restored.sender = None;
        drop(core);
        self.connection.send_replace(None);
        self.room.notify_waiters();
        self.doors.notify_waiters();
        self.log_work.notify_one();
    }

    /// The log is closed too.
    pub(super) fn finish(&self) {
        let remaining = self.lock().remaining;
        self.state.send_replace(ReconnectState::Stopped);
        // Set once, by the task's end.
        drop(self.stopped.set(remaining));
    }

    /// The service has seen this number of the outbox: later messages get higher ones.
    pub(super) fn number_after(&self, seen: u64) {
        if let Some(disk) = &mut self.lock().disk {
            disk.desk.number_from(seen.saturating_add(1));
        }
        self.log_work.notify_one();
    }

    // --- time ------------------------------------------------------------------------------------

    /// Ends what expires, and lets streams go on, for as long as it is polled.
    pub(super) async fn watch_time(&self) {
        loop {
            let next = self.lock().next_event();
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = due => {
                    self.lock().tick(Instant::now());
                    self.note_settled();
                    self.work.notify_one();
                }
                () = self.changed.notified() => {}
            }
        }
    }
}
