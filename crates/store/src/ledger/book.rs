//! The ledger itself: plain data, without locks and disk.

use std::collections::{BTreeMap, HashMap};

use migration_ipc_protocol::OutboxId;
use migration_ipc_protocol::limits::DELIVERY_WINDOW;

use super::key::OutboxKey;
use super::order::PutOff;
use super::window::{Known, Window};

/// The most outboxes that are remembered of one account. A program has one, so this is also about
/// as many programs as one user runs; when there are more, the one used longest ago is forgotten.
pub const MAX_OUTBOXES_PER_ACCOUNT: usize = 16;

/// The most outboxes that are remembered in all, at about half a kilobyte each. Beyond, the one
/// used longest ago is forgotten.
pub const MAX_OUTBOXES: usize = 16_384;

/// The number under which the outcomes of an outbox are kept: never that of two outboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) u64);

/// An outbox as it is stored.
#[derive(Debug)]
pub(crate) struct LedgerRow {
    pub(crate) key: OutboxKey,
    pub(crate) slot: Slot,
    /// The higher, the later it was used.
    pub(crate) used: u64,
    pub(crate) window: Window,
}

/// What is to be done with a message that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run its handler.
    New,
    /// It is done; nothing more is known than that it was handled.
    Handled,
    /// It is done; its outcome is kept under this slot.
    Kept(Slot),
    /// Put it off.
    Busy,
}

#[derive(Debug)]
struct Outbox {
    slot: Slot,
    used: u64,
    window: Window,
    /// Whether there is a row of it on the disk.
    is_stored: bool,
    /// Numbers whose handlers run, or whose commit is under way. At most [`DELIVERY_WINDOW`].
    in_progress: BTreeMap<u64, InProgress>,
    /// When a number last began while a higher one was in progress.
    last_out_of_order: u64,
    put_off: PutOff,
}

#[derive(Debug)]
struct InProgress {
    stream: Box<str>,
    /// The higher, the later it began.
    begun: u64,
}

/// What is known of every outbox.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Invariant: no account is empty.
    accounts: HashMap<Box<str>, HashMap<OutboxId, Outbox>>,
    /// Invariant: how many outboxes there are, at most [`MAX_OUTBOXES`].
    count: usize,
    next_slot: u64,
    next_use: u64,
    /// Outboxes that were forgotten here and are still stored.
    forgotten: Vec<(OutboxKey, Slot)>,
}

impl Book {
    /// Takes over what is stored. Work in progress and what was put off stay as they are.
    pub(crate) fn load(&mut self, mut rows: Vec<LedgerRow>) {
        self.forgotten.clear();
        for outbox in self.accounts.values_mut().flat_map(HashMap::values_mut) {
            outbox.window = Window::default();
            outbox.is_stored = false;
        }
        rows.sort_by_key(|row| row.used);
        for row in rows {
            self.next_slot = self.next_slot.max(row.slot.0 + 1);
            self.next_use = self.next_use.max(row.used + 1);
            let Some(outbox) = self.open(&row.key) else {
                continue;
            };
            outbox.slot = row.slot;
            outbox.used = row.used;
            outbox.window = row.window;
            outbox.is_stored = true;
        }
    }

    /// A message has arrived and its handler could start now.
    pub(crate) fn begin(&mut self, key: &OutboxKey, stream: &str, seq: u64) -> Verdict {
        let now = self.next_use;
        let Some(outbox) = self.open(key) else {
            return Verdict::Busy;
        };
        outbox.used = now;
        let verdict = outbox.begin(stream, seq, now);
        self.next_use += 1;
        verdict
    }

    /// The highest number that is known of an outbox; 0 for an unknown one.
    pub(crate) fn highest(&self, key: &OutboxKey) -> u64 {
        self.get(key).map_or(0, |outbox| {
            let in_progress = outbox.in_progress.last_key_value();
            let in_progress = in_progress.map_or(0, |(seq, _)| *seq);
            outbox.window.highest().max(in_progress)
        })
    }

    /// The handler of a message has ended without a commit.
    pub(crate) fn put_off(&mut self, key: &OutboxKey, stream: &str, seq: u64) {
        let now = self.next_use;
        self.next_use += 1;
        if let Some(outbox) = self.get_mut(key) {
            let ended = outbox.in_progress.remove(&seq);
            let arrived = ended.map_or(0, |this| this.begun);
            outbox.put_off.mark(stream, seq, arrived, now);
        }
    }

    /// The row that a commit would change.
    pub(crate) fn row(&self, key: &OutboxKey) -> Option<LedgerRow> {
        self.get(key).map(|outbox| LedgerRow {
            key: key.clone(),
            slot: outbox.slot,
            used: outbox.used,
            window: outbox.window.clone(),
        })
    }

    /// Whether a message may be committed, when the numbers of `window` are done: none of its stream
    /// that was put off, or that has begun again since, is to come before it.
    pub(crate) fn has_turn(
        &self,
        key: &OutboxKey,
        stream: &str,
        seq: u64,
        window: &Window,
    ) -> bool {
        self.get(key).is_none_or(|outbox| {
            let put_off = outbox.put_off.before(stream, seq);
            let mut before = put_off.chain(outbox.begun_again_before(stream, seq));
            before.all(|lower| window.look_up(lower) != Known::Open)
        })
    }

    /// The outboxes whose rows the next commit is to remove.
    pub(crate) fn forgotten(&self) -> &[(OutboxKey, Slot)] {
        &self.forgotten
    }

    /// The first so many of [`forgotten`](Self::forgotten) are removed from the disk.
    pub(crate) fn removed(&mut self, count: usize) {
        self.forgotten.drain(..count);
    }

    /// A message is done.
    pub(crate) fn done(&mut self, key: &OutboxKey, stream: &str, seq: u64) {
        if let Some(outbox) = self.get_mut(key) {
            outbox.in_progress.remove(&seq);
            outbox.put_off.done(stream, seq);
        }
    }

    /// The window of an outbox is stored.
    pub(crate) fn stored(&mut self, key: &OutboxKey, window: Window) {
        if let Some(outbox) = self.get_mut(key) {
            outbox.put_off.forget_to(window.floor());
            outbox.window = window;
            outbox.is_stored = true;
        }
    }

    fn get(&self, key: &OutboxKey) -> Option<&Outbox> {
        self.accounts.get(&key.account)?.get(&key.outbox)
    }

    fn get_mut(&mut self, key: &OutboxKey) -> Option<&mut Outbox> {
        self.accounts.get_mut(&key.account)?.get_mut(&key.outbox)
    }

    /// An outbox, which is made, and others forgotten for it, when it is unknown; `None` when there
    /// is no room because all others have work in progress.
    fn open(&mut self, key: &OutboxKey) -> Option<&mut Outbox> {
        if self.get(key).is_none() {
            self.make_room(&key.account)?;
            let outbox = Outbox {
                slot: Slot(self.next_slot),
                used: self.next_use,
                window: Window::default(),
                is_stored: false,
                in_progress: BTreeMap::new(),
                last_out_of_order: 0,
                put_off: PutOff::default(),
            };
            self.next_slot += 1;
            self.count += 1;
            let account = self.accounts.entry(key.account.clone()).or_default();
            account.insert(key.outbox, outbox);
        }
        self.get_mut(key)
    }

    fn make_room(&mut self, account: &str) -> Option<()> {
        let own = self.accounts.get_key_value(account);
        let of_account = own.map_or(0, |(_, outboxes)| outboxes.len());
        let victim = if of_account >= MAX_OUTBOXES_PER_ACCOUNT {
            least_recently_used(own.into_iter())?
        } else if self.count >= MAX_OUTBOXES {
            least_recently_used(self.accounts.iter())?
        } else {
            return Some(());
        };
        self.forget(victim);
        Some(())
    }

    fn forget(&mut self, key: OutboxKey) {
        let Some(outboxes) = self.accounts.get_mut(&key.account) else {
            return;
        };
        let Some(outbox) = outboxes.remove(&key.outbox) else {
            return;
        };
        if outboxes.is_empty() {
            self.accounts.remove(&key.account);
        }
        self.count -= 1;
        if outbox.is_stored {
            self.forgotten.push((key, outbox.slot));
        }
    }
}

/// The outbox without work in progress that was used longest ago.
fn least_recently_used<'a>(
    accounts: impl Iterator<Item = (&'a Box<str>, &'a HashMap<OutboxId, Outbox>)>,
) -> Option<OutboxKey> {
    let all = accounts.flat_map(|(account, outboxes)| {
        outboxes
            .iter()
            .map(move |(id, outbox)| (account, *id, outbox))
    });
    let (account, id, _) = all
        .filter(|(_, _, outbox)| outbox.in_progress.is_empty())
        .min_by_key(|(_, _, outbox)| outbox.used)?;
    Some(OutboxKey::new(account, id))
}

impl Outbox {
    fn begin(&mut self, stream: &str, seq: u64, now: u64) -> Verdict {
        match self.window.look_up(seq) {
            Known::Handled => {
                self.put_off.done(stream, seq);
                return Verdict::Handled;
            }
            Known::Kept => {
                self.put_off.done(stream, seq);
                return Verdict::Kept(self.slot);
            }
            Known::Open => {}
        }
        let has_turn = self.put_off.arrive(stream, seq);
        let has_room = (self.in_progress.len() as u64) < DELIVERY_WINDOW;
        if !has_turn || !has_room || self.in_progress.contains_key(&seq) {
            self.put_off.mark(stream, seq, now, now);
            return Verdict::Busy;
        }
        let stream = stream.into();
        self.in_progress
            .insert(seq, InProgress { stream, begun: now });
        let highest = self.in_progress.last_key_value();
        if highest.is_some_and(|(highest, _)| *highest > seq) {
            self.last_out_of_order = now;
        }
        Verdict::New
    }

    /// The lower numbers of the stream in progress that began after this one.
    fn begun_again_before(&self, stream: &str, seq: u64) -> impl Iterator<Item = u64> {
        let begun = self.in_progress.get(&seq).map(|this| this.begun);
        let begun = begun.filter(|begun| *begun <= self.last_out_of_order);
        begun.into_iter().flat_map(move |begun| {
            let lower = self.in_progress.range(..seq);
            let again =
                lower.filter(move |(_, other)| other.begun > begun && *other.stream == *stream);
            again.map(|(lower, _)| *lower)
        })
    }
}
