//! What all connections of one account share: its rate, the memory that it may take, and the lines
//! of the log that it may cause.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use migration_ipc_transport::PeerIdentity;
use tokio::time::Instant;

use super::chunk_room::ChunkRoom;
use super::reason::DisconnectReason;
use crate::config::{AccountLimits, MAX_TIMEOUT, Rate};
use crate::log_budget::{LogBudget, Matter};

/// What a connection may hold in each of its queues even when its account has used up its memory.
/// Without it a handler could wait for ever for an answer that nobody reads, because other
/// connections of the account hold what they hold.
pub(crate) const MEMORY_FLOOR: usize = 16 * 1024;

/// One account, as the connections see it that it has at one server.
#[derive(Debug)]
pub(crate) struct Account {
    /// `None` for those who are held to no limits.
    limited: Option<Limited>,
    misdeeds: LogBudget,
    comings: LogBudget,
}

#[derive(Debug)]
struct Limited {
    rates: Option<Mutex<Rates>>,
    memory: Memory,
    /// Room for bodies in chunks.
    chunks: Arc<ChunkRoom>,
    /// Room for replies on their way in chunks.
    replies: Arc<ChunkRoom>,
    patience: Duration,
}

impl Account {
    /// An ordinary account is held to the limits. Administrators and the service's own account are
    /// not: they could do worse to the service than to send much, and the service's own is that of
    /// its tools. Lines of the log are counted for everybody.
    pub(crate) fn of(peer: &PeerIdentity, limits: &AccountLimits) -> Self {
        // Never so much of the memory that transfers alone could use it up: they would wait for it,
        // and give none of it back.
        let room = || Arc::new(ChunkRoom::new(limits.chunks.min(limits.memory / 2)));
        let limited = (!peer.is_operator()).then(|| Limited {
            rates: Rates::new(limits).map(Mutex::new),
            memory: Memory::new(limits.memory),
            chunks: room(),
            replies: room(),
            patience: limits.patience,
        });
        let subject = format!("account {}", peer.account());
        Self::new(limited, &subject, limits)
    }

    /// Those whom the operating system has not named, and whoever is not a client.
    pub(crate) fn unlimited(subject: &str, limits: &AccountLimits) -> Self {
        Self::new(None, subject, limits)
    }

    fn new(limited: Option<Limited>, subject: &str, limits: &AccountLimits) -> Self {
        let budget =
            |matter| LogBudget::new(subject, matter, limits.log_lines, limits.log_interval);
        Self {
            limited,
            misdeeds: budget(Matter::Misdeeds),
            comings: budget(Matter::Comings),
        }
    }

    /// Lines about what the account does wrong.
    pub(crate) fn misdeeds(&self) -> &LogBudget {
        &self.misdeeds
    }

    /// Lines about its connections, which come and go.
    pub(crate) fn comings(&self) -> &LogBudget {
        &self.comings
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.limited.is_some()
    }

    // --- rate ------------------------------------------------------------------------------------

    /// Until when the account is not read from, if it has used up what it may send.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let rates = self.limited.as_ref()?.rates.as_ref()?;
        lock(rates).blocked_until().filter(|until| *until > now)
    }

    /// Counts what was read. It has arrived, so it counts even beyond what is left.
    ///
    /// An error when the account has been over its limit for too long.
    pub(crate) fn charge(
        &self,
        messages: usize,
        bytes: usize,
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let Some(Limited {
            rates: Some(rates),
            patience,
            ..
        }) = &self.limited
        else {
            return Ok(());
        };
        let over_for = lock(rates).charge(messages, bytes, now);
        if over_for > *patience {
            return Err(DisconnectReason::OverRate);
        }
        Ok(())
    }

    // --- memory ----------------------------------------------------------------------------------

    /// How long a connection waits for the account's memory before it ends.
    pub(crate) fn patience(&self) -> Duration {
        self.limited
            .as_ref()
            .map_or(MAX_TIMEOUT, |limited| limited.patience)
    }

    /// The room that the account's connections share for bodies in chunks, if there is a limit.
    pub(crate) fn chunk_room(&self) -> Option<&Arc<ChunkRoom>> {
        self.limited.as_ref().map(|limited| &limited.chunks)
    }

    /// The room that the account's connections share for replies on their way to them in chunks, if
    /// there is a limit. It is no memory that reading waits for: what is read is what gives it back.
    pub(crate) fn reply_room(&self) -> Option<&Arc<ChunkRoom>> {
        self.limited.as_ref().map(|limited| &limited.replies)
    }

    /// Whether the account's connections hold as much as they may.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.limited
            .as_ref()
            .is_some_and(|limited| limited.memory.is_full())
    }

    /// Whether a connection that holds some of the account's memory may read on. If it has to wait,
    /// the waker is woken when that may have changed.
    ///
    /// A connection that holds nothing but a frame which has not arrived whole gives nothing back
    /// while it waits. If all the memory were held by such connections, they would wait for each
    /// other; so one of them at a time has a turn, until it has given back what it holds.
    pub(crate) fn ask_for_memory(self: &Arc<Self>, waker: &Waker, holds: Holds) -> Room {
        let Some(limited) = &self.limited else {
            return Room::Enough;
        };
        match limited.memory.ask(waker, holds) {
            Room::Turn(()) => Room::Turn(Turn(Arc::clone(self))),
            Room::Enough => Room::Enough,
            Room::Wait => Room::Wait,
        }
    }

    /// Brings what a part of a connection holds up to date; `counted` is what it held so far.
    pub(crate) fn recount(&self, counted: &mut usize, held: usize) {
        if let Some(limited) = &self.limited
            && *counted != held
        {
            limited.memory.change(*counted, held);
            *counted = held;
        }
    }
}

/// What a connection holds of what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Messages, whose handlers will give the memory back.
    Messages,
    /// A frame that has not arrived whole.
    APartialFrame,
}

/// The answer to a connection that wants to read on.
#[derive(Debug)]
pub(crate) enum Room<T = Turn> {
    Enough,
    /// There is none, and this connection reads on all the same until its frame is whole.
    Turn(T),
    Wait,
}

/// The right to read on without memory; the next one has it when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Account>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(limited) = &self.0.limited {
            limited.memory.end_turn();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every section leaves its state whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two buckets of tokens. A bucket is the moment at which it will be full again, so it needs no task
/// that fills it: what is taken moves that moment away, and it is empty when it is full again only
/// after a whole `burst`.
#[derive(Debug)]
struct Rates {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    burst: Duration,
    /// Since when the account has been over its limit; forgotten when it has left both buckets
    /// alone until they were half full.
    over_since: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    per_second: u64,
    full_at: Option<Instant>,
}

impl Rates {
    fn new(limits: &AccountLimits) -> Option<Self> {
        let bucket = |rate| match rate {
            Rate::Unlimited => None,
            Rate::PerSecond(per_second) => Some(Bucket {
                per_second,
                full_at: None,
            }),
        };
        let (messages, bytes) = (bucket(limits.messages), bucket(limits.bytes));
        (messages.is_some() || bytes.is_some()).then_some(Self {
            messages,
            bytes,
            burst: limits.burst,
            over_since: None,
        })
    }

    /// When the last of the buckets is full again.
    fn full_at(&self) -> Option<Instant> {
        let buckets = [&self.messages, &self.bytes];
        buckets
            .into_iter()
            .flatten()
            .filter_map(|bucket| bucket.full_at)
            .max()
    }

    fn blocked_until(&self) -> Option<Instant> {
        self.full_at()?.checked_sub(self.burst)
    }

    /// For how long the account has been over its limit.
    fn charge(&mut self, messages: usize, bytes: usize, now: Instant) -> Duration {
        let half_full_at = self
            .full_at()
            .and_then(|full| full.checked_sub(self.burst / 2));
        if half_full_at.is_none_or(|half_full| half_full <= now) {
            self.over_since = None;
        }
        for (bucket, amount) in [(&mut self.messages, messages), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.take(amount, now);
            }
        }
        if self.blocked_until().is_some_and(|until| until > now) {
            self.over_since.get_or_insert(now);
        }
        self.over_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Bucket {
    fn take(&mut self, amount: usize, now: Instant) {
        let nanoseconds = amount as u128 * 1_000_000_000 / u128::from(self.per_second);
        let time = u64::try_from(nanoseconds)
            .map_or(MAX_TIMEOUT, Duration::from_nanos)
            .min(MAX_TIMEOUT);
        let from = self.full_at.map_or(now, |full| full.max(now));
        // A debt of more than a year is that of a year, and cannot overflow.
        self.full_at = Some((from + time).min(now + MAX_TIMEOUT));
    }
}

/// Bytes that the connections of an account hold, and who waits for some of them to be given back.
#[derive(Debug)]
struct Memory {
    held: AtomicUsize,
    limit: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Drivers that do not read at present; at most one for each connection.
    waiting: Vec<Waker>,
    turn: TurnIs,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum TurnIs {
    #[default]
    Free,
    Taken,
}

impl Memory {
    fn new(limit: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            limit,
            queue: Mutex::default(),
        }
    }

    fn is_full(&self) -> bool {
        // The lock of those who wait orders what matters.
        self.held.load(Ordering::SeqCst) >= self.limit
    }

    fn ask(&self, waker: &Waker, holds: Holds) -> Room<()> {
        if !self.is_full() {
            return Room::Enough;
        }
        let mut queue = lock(&self.queue);
        if holds == Holds::APartialFrame && queue.turn == TurnIs::Free {
            queue.turn = TurnIs::Taken;
            return Room::Turn(());
        }
        if !queue.waiting.iter().any(|other| other.will_wake(waker)) {
            queue.waiting.push(waker.clone());
        }
        // Whoever gives back from now on finds the waker.
        if self.is_full() {
            Room::Wait
        } else {
            Room::Enough
        }
    }

    fn end_turn(&self) {
        let mut queue = lock(&self.queue);
        queue.turn = TurnIs::Free;
        self.wake_all(queue);
    }

    fn wake_all(&self, mut queue: MutexGuard<'_, Queue>) {
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        for waker in waiting {
            waker.wake();
        }
    }

    fn change(&self, before: usize, after: usize) {
        if after > before {
            self.held.fetch_add(after - before, Ordering::SeqCst);
            return;
        }
        let given = before - after;
        let held = self.held.fetch_sub(given, Ordering::SeqCst);
        let was_full = held >= self.limit;
        if was_full && held - given < self.limit {
            self.wake_all(lock(&self.queue));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rates(messages: u64, bytes: u64) -> Rates {
        Rates::new(&AccountLimits {
            messages: Rate::PerSecond(messages),
            bytes: Rate::PerSecond(bytes),
            burst: 2 * SECOND,
            ..AccountLimits::default()
        })
        .unwrap()
    }

    #[test]
    fn a_burst_is_free_and_what_is_beyond_it_is_waited_for() {
        let mut rates = rates(100, u64::MAX);
        let start = Instant::now();
        assert_eq!(rates.charge(200, 0, start), Duration::ZERO);
        assert_eq!(rates.blocked_until(), Some(start));
        assert_eq!(rates.charge(50, 0, start), Duration::ZERO);
        assert_eq!(rates.blocked_until(), Some(start + SECOND / 2));
    }

    #[test]
    fn the_scarcer_of_messages_and_bytes_counts() {
        let mut rates = rates(100, 1000);
        let start = Instant::now();
        rates.charge(1, 5000, start);
        assert_eq!(rates.blocked_until(), Some(start + 3 * SECOND));
        rates.charge(700, 0, start);
        // 701 messages take 7.01 s, of which two are the burst.
        assert_eq!(rates.blocked_until(), Some(start + SECOND * 501 / 100));
    }

    #[test]
    fn being_over_ends_with_a_pause_and_not_with_a_moment_under_the_limit() {
        let mut rates = rates(100, u64::MAX);
        let start = Instant::now();
        rates.charge(300, 0, start);
        for second in 1..10_u32 {
            // As fast as it is let: never over by more than a moment, and never pausing.
            let now = start + SECOND * second;
            assert_eq!(rates.charge(101, 0, now), SECOND * second);
        }
        assert_eq!(rates.charge(1, 0, start + 12 * SECOND), Duration::ZERO);
    }

    #[test]
    fn an_immense_debt_does_not_overflow() {
        let mut rates = rates(1, 1);
        let start = Instant::now();
        for _ in 0..3 {
            rates.charge(usize::MAX, usize::MAX, start);
        }
        assert!(rates.blocked_until().unwrap() <= start + MAX_TIMEOUT);
    }

    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_for_memory_is_woken_once_there_is_some() {
        let memory = Memory::new(100);
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        memory.change(0, 150);
        for _ in 0..2 {
            let room = memory.ask(&waker, Holds::Messages);
            assert!(matches!(room, Room::Wait), "{room:?}");
        }
        assert_eq!(lock(&memory.queue).waiting.len(), 1);
        memory.change(150, 100);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        memory.change(100, 99);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        let room = memory.ask(&waker, Holds::Messages);
        assert!(matches!(room, Room::Enough), "{room:?}");
    }

    #[test]
    fn one_partial_frame_at_a_time_has_a_turn() {
        let memory = Memory::new(100);
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        memory.change(0, 150);
        let first = memory.ask(&waker, Holds::APartialFrame);
        assert!(matches!(first, Room::Turn(())), "{first:?}");
        let second = memory.ask(&waker, Holds::APartialFrame);
        assert!(matches!(second, Room::Wait), "{second:?}");
        memory.end_turn();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        let second = memory.ask(&waker, Holds::APartialFrame);
        assert!(matches!(second, Room::Turn(())), "{second:?}");
    }
}
