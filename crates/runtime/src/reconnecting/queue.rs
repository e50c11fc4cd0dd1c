//! What waits to be sent, in order and within bounds. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::RandomState;
use migration_ipc_protocol::{MessageId, MessageType, StreamName};
use tokio::time::Instant;

use crate::config::ConfigError;
use crate::delivery::Resolver;

/// How much may wait to be sent, what is under way and unanswered included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Messages.
    pub messages: usize,
    /// Bytes, payloads and what is kept beside them.
    pub bytes: u64,
}

impl QueueLimits {
    /// Of messages that are kept in memory: 10,000 of them and 16 MiB.
    pub const MEMORY: Self = Self {
        messages: 10_000,
        bytes: 16 * 1024 * 1024,
    };

    /// Of messages that are kept on disk: a million of them and 1 GiB.
    pub const DISK: Self = Self {
        messages: 1_000_000,
        bytes: 1024 * 1024 * 1024,
    };

    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// Names the first value that cannot work, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.messages == 0 || self.bytes == 0 {
            return Err(ConfigError::new("a queue's limit", "at least 1"));
        }
        Ok(())
    }
}

/// What happens to a message of a type when its queue is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Its sender waits for room.
    #[default]
    Wait,
    /// It is refused with [`SendError::Full`](crate::SendError::Full).
    Reject,
    /// The oldest waiting messages of its type are dropped for it, as
    /// [`Fate::Superseded`](crate::Fate::Superseded); without any, it is refused.
    DropOldest,
    /// The waiting messages of its type with the same
    /// [`latest_key`](crate::MessagePayload::latest_key) are dropped for it, as
    /// [`Fate::Superseded`](crate::Fate::Superseded), and it takes its place at the end; without
    /// any, it is refused.
    KeepLatest,
}

/// What a message may take the place of: others of its type and of this key.
pub(crate) type Rivals = (MessageType, Box<str>);

/// Who waits to know what becomes of a message.
#[derive(Debug)]
pub(crate) enum Awaited {
    Receipt(Resolver),
    /// An earlier run accepted it, under this id.
    Restored(MessageId),
}

/// A message that waits, or is under way; what it says is kept elsewhere if `B` is nothing.
#[derive(Debug)]
pub(crate) struct Entry<B> {
    pub(crate) body: B,
    pub(crate) bytes: u32,
    pub(crate) stream: Option<StreamName>,
    /// Whom it may displace, if its type's overflow says so.
    pub(crate) rivals: Option<Box<Rivals>>,
    pub(crate) expires: Option<Instant>,
    pub(crate) awaited: Awaited,
    pub(crate) history: History,
    /// Those that were accepted together have the same, and may go out together.
    pub(crate) company: Option<u64>,
}

impl<B> Entry<B> {
    /// The same for a message that cannot be opened: it stays until it can be.
    pub(crate) fn locked(self) -> Self {
        Self {
            rivals: None,
            expires: None,
            ..self
        }
    }

    /// The entry without what it says, and that.
    pub(crate) fn split(self) -> (Entry<()>, B) {
        let entry = Entry {
            body: (),
            bytes: self.bytes,
            stream: self.stream,
            rivals: self.rivals,
            expires: self.expires,
            awaited: self.awaited,
            history: self.history,
            company: self.company,
        };
        (entry, self.body)
    }
}

/// Whether a message may go over a connection that is not encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Confidence {
    /// It may go over any.
    #[default]
    Open,
    /// Not where sensitive messages are withheld.
    Sensitive,
}

impl Confidence {
    pub(crate) fn of(sensitive: bool) -> Self {
        if sensitive {
            Self::Sensitive
        } else {
            Self::Open
        }
    }
}

/// Which messages have to wait for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Withheld {
    Nothing,
    Sensitive,
}

/// What is known of a message beside what it says, and what happened to it before.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct History {
    pub(crate) idempotent: bool,
    pub(crate) confidence: Confidence,
    /// It was sent, and may have been handled: it makes way for nobody and does not expire, and
    /// only a service that recognises it may get it again if it is not idempotent.
    pub(crate) attempted: bool,
    /// How often a service that is connected did not answer it.
    pub(crate) unanswered: u8,
    /// The number under which the outbox remembers that it was begun to be sent.
    pub(crate) mark: Option<u64>,
}

/// Whether messages may enter.
#[derive(Debug)]
pub(crate) enum Admission<B> {
    /// They may, and room is set aside for them. These make way.
    Admitted(Vec<(u64, Entry<B>)>),
    /// Not now.
    Full,
    /// Not ever: they alone are more than the queue may hold.
    TooMuch,
}

/// What messages ask for that are to enter together.
#[derive(Debug, Default)]
pub(crate) struct Demand<'a> {
    pub(crate) messages: usize,
    pub(crate) bytes: u64,
    pub(crate) rivals: Vec<&'a Rivals>,
}

/// Messages in the order of their numbers. Room is held from [`admit`](Self::admit) until
/// [`release`](Self::release), wherever the message is meanwhile.
#[derive(Debug)]
pub(crate) struct Queue<B> {
    limits: QueueLimits,
    /// Invariant: `messages` and `bytes` count what is admitted and not released.
    messages: usize,
    bytes: u64,
    waiting: BTreeMap<u64, Entry<B>>,
    /// Invariant: exactly those in `waiting` that expire and were not attempted.
    expiries: BTreeSet<(Instant, u64)>,
    /// Invariant: exactly those in `waiting` that have rivals and were not attempted; no set is
    /// empty.
    rivals: HashMap<Rivals, BTreeSet<u64>, RandomState>,
    withheld: Withheld,
    /// Streams of which nothing is sent for a while.
    put_off: HashMap<Option<StreamName>, Instant, RandomState>,
    /// Streams with a message that cannot be opened, and its number.
    locked: HashMap<Option<StreamName>, u64, RandomState>,
    /// Streams that the peer put off, and how often since it took something of them.
    refusals: HashMap<Option<StreamName>, u32, RandomState>,
}

impl<B> Queue<B> {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            messages: 0,
            bytes: 0,
            waiting: BTreeMap::new(),
            expiries: BTreeSet::new(),
            rivals: HashMap::default(),
            withheld: Withheld::Nothing,
            put_off: HashMap::default(),
            locked: HashMap::default(),
            refusals: HashMap::default(),
        }
    }

    /// Messages admitted and not released.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    // --- in ------------------------------------------------------------------------------------

    pub(crate) fn admit(&mut self, demand: &Demand<'_>, overflow: Overflow) -> Admission<B> {
        if demand.messages > self.limits.messages || demand.bytes > self.limits.bytes {
            return Admission::TooMuch;
        }
        let messages = (self.messages + demand.messages).saturating_sub(self.limits.messages);
        let bytes = (self.bytes + demand.bytes).saturating_sub(self.limits.bytes);
        let victims = if messages == 0 && bytes == 0 {
            Vec::new()
        } else {
            match self.victims(demand, overflow, messages, bytes) {
                Some(victims) => victims,
                None => return Admission::Full,
            }
        };
        let displaced = victims
            .into_iter()
            .filter_map(|number| Some((number, self.take(number)?)))
            .collect::<Vec<_>>();
        for (_, entry) in &displaced {
            self.release(1, u64::from(entry.bytes));
        }
        self.hold(demand.messages, demand.bytes);
        Admission::Admitted(displaced)
    }

    /// Who makes way for as much as this, if that can be had at all.
    fn victims(
        &self,
        demand: &Demand<'_>,
        overflow: Overflow,
        messages: usize,
        bytes: u64,
    ) -> Option<Vec<u64>> {
        let of = |rivals: &&Rivals| self.rivals.get(*rivals).into_iter().flatten().copied();
        let mut candidates: Vec<u64> = match overflow {
            Overflow::Wait | Overflow::Reject => return None,
            Overflow::DropOldest | Overflow::KeepLatest => {
                demand.rivals.iter().flat_map(of).collect()
            }
        };
        candidates.sort_unstable();
        candidates.dedup();
        let (mut freed, mut enough) = ((0, 0), 0);
        for number in &candidates {
            let sufficient = freed.0 >= messages && freed.1 >= bytes;
            if sufficient && overflow == Overflow::DropOldest {
                break;
            }
            freed.0 += 1;
            freed.1 += self
                .waiting
                .get(number)
                .map_or(0, |entry| u64::from(entry.bytes));
            enough += 1;
        }
        candidates.truncate(enough);
        (freed.0 >= messages && freed.1 >= bytes).then_some(candidates)
    }

    /// Takes a message for which room is held.
    pub(crate) fn insert(&mut self, number: u64, entry: Entry<B>) {
        if entry.history.attempted {
            self.waiting.insert(number, entry);
            return;
        }
        if let Some(expires) = entry.expires {
            self.expiries.insert((expires, number));
        }
        if let Some(rivals) = &entry.rivals {
            match self.rivals.get_mut(&**rivals) {
                Some(numbers) => drop(numbers.insert(number)),
                None => drop(self.rivals.insert((**rivals).clone(), [number].into())),
            }
        }
        self.waiting.insert(number, entry);
    }

    /// Holds room for what is there whatever the limits say.
    pub(crate) fn hold(&mut self, messages: usize, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
    }

    // --- out -----------------------------------------------------------------------------------

    /// The numbers of what may be sent now, in order, below this number. What is withheld holds up
    /// what is behind it in its stream.
    pub(crate) fn sendable(&self, below: u64) -> impl Iterator<Item = (u64, &Entry<B>)> {
        let open =
            |entry: &Entry<B>| self.put_off.is_empty() || !self.put_off.contains_key(&entry.stream);
        let mut held_up = Vec::new();
        self.waiting
            .range(..below)
            .filter(move |(_, entry)| {
                if held_up.contains(&&entry.stream) {
                    return false;
                }
                if self.is_withheld(entry) {
                    held_up.push(&entry.stream);
                    return false;
                }
                open(entry)
            })
            .filter(|(number, entry)| self.locked.is_empty() || !self.is_locked(**number, entry))
            .map(|(number, entry)| (*number, entry))
    }

    /// What has to wait from now on for a better connection.
    pub(crate) fn withhold(&mut self, withheld: Withheld) {
        self.withheld = withheld;
    }

    fn is_withheld(&self, entry: &Entry<B>) -> bool {
        match self.withheld {
            Withheld::Nothing => false,
            Withheld::Sensitive => entry.history.confidence == Confidence::Sensitive,
        }
    }

    /// Takes out the first message that is not withheld, whatever its stream; its room stays held.
    pub(crate) fn pop_sendable(&mut self) -> Option<(u64, Entry<B>)> {
        let mut waiting = self.waiting.iter();
        let number = *waiting.find(|(_, entry)| !self.is_withheld(entry))?.0;
        Some((number, self.take(number)?))
    }

    /// Everything that waits below this number, in order.
    pub(crate) fn waiting_below(&self, below: u64) -> impl Iterator<Item = (u64, &Entry<B>)> {
        self.waiting
            .range(..below)
            .map(|(number, entry)| (*number, entry))
    }

    pub(crate) fn entry_mut(&mut self, number: u64) -> Option<&mut Entry<B>> {
        self.waiting.get_mut(&number)
    }

    /// Takes a message out; its room stays held.
    pub(crate) fn take(&mut self, number: u64) -> Option<Entry<B>> {
        let entry = self.waiting.remove(&number)?;
        if let Some(expires) = entry.expires {
            self.expiries.remove(&(expires, number));
        }
        if let Some(rivals) = &entry.rivals
            && let Some(numbers) = self.rivals.get_mut(&**rivals)
        {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.rivals.remove(&**rivals);
            }
        }
        Some(entry)
    }

    /// Gives room back.
    pub(crate) fn release(&mut self, messages: usize, bytes: u64) {
        self.messages -= messages;
        self.bytes -= bytes;
    }

    /// Sends nothing of a stream from this number on, for as long as the queue is there.
    pub(crate) fn lock_from(&mut self, stream: Option<StreamName>, number: u64) {
        let first = self.locked.entry(stream).or_insert(number);
        *first = number.min(*first);
    }

    fn is_locked(&self, number: u64, entry: &Entry<B>) -> bool {
        let first = self.locked.get(&entry.stream);
        first.is_some_and(|first| number >= *first)
    }

    /// Whether nothing is under way, or will be for as long as the queue is there.
    pub(crate) fn is_done(&self) -> bool {
        let mut waiting = self.waiting.iter();
        self.messages == self.waiting.len()
            && waiting.all(|(number, entry)| self.is_locked(*number, entry))
    }

    /// Sends nothing of a stream before this time.
    pub(crate) fn put_off(&mut self, stream: Option<StreamName>, until: Instant) {
        let time = self.put_off.entry(stream).or_insert(until);
        *time = until.max(*time);
    }

    pub(crate) fn is_put_off(&self, stream: &Option<StreamName>) -> bool {
        self.put_off.contains_key(stream)
    }

    /// The peer puts a stream off. How often it has done so in a row: what it answers while the
    /// stream waits already is the rest of one time.
    pub(crate) fn count_refusal(&mut self, stream: &Option<StreamName>) -> u32 {
        let waits = self.is_put_off(stream);
        let refusals = self.refusals.entry(stream.clone()).or_default();
        if !waits {
            *refusals = refusals.saturating_add(1);
        }
        *refusals
    }

    /// The peer has taken a message of this stream.
    pub(crate) fn forget_refusals(&mut self, stream: &Option<StreamName>) {
        self.refusals.remove(stream);
    }

    /// Lets streams go on whose time has come.
    pub(crate) fn resume(&mut self, now: Instant) {
        self.put_off.retain(|_, until| *until > now);
    }

    /// A new connection: what the last one put off may go on.
    pub(crate) fn resume_all(&mut self) {
        self.put_off.clear();
        self.refusals.clear();
    }

    /// When a stream goes on, or a message expires.
    pub(crate) fn next_event(&self) -> Option<Instant> {
        let expiry = self.expiries.first().map(|(at, _)| *at);
        self.put_off.values().copied().chain(expiry).min()
    }

    /// Takes out the next message that is past its time; its room stays held.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<(u64, Entry<B>)> {
        let (at, number) = self.expiries.first().copied()?;
        if at > now {
            return None;
        }
        Some((number, self.take(number)?))
    }

    /// Takes out the first message there is; its room stays held.
    pub(crate) fn pop(&mut self) -> Option<(u64, Entry<B>)> {
        let number = *self.waiting.keys().next()?;
        Some((number, self.take(number)?))
    }
}

#[cfg(test)]
mod tests;
