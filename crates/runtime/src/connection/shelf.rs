//! What had arrived of bodies when their connections ended, for senders that come again.
//!
//! Each part belongs to an account, and only a connection of that account finds it. What it is part
//! of is known by its digest, which is checked when it is whole: a wrong part spoils nothing but
//! the transfer of its own account.

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migration_ipc_protocol::extensions::Sha256;
use migration_ipc_protocol::limits::MAX_TRANSFERS;
use migration_ipc_transport::AccountId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::account::Account;
use super::chunk_room::Hold;

/// Bytes of all parts together: two of the longest bodies for each of two accounts, by default.
pub(crate) const SHELF_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of the parts of one account: two of the longest bodies.
pub(crate) const SHELF_BYTES_PER_ACCOUNT: usize = 32 * 1024 * 1024;

/// Parts of one account: what one connection has under way.
const PARTS_PER_ACCOUNT: usize = MAX_TRANSFERS;

/// What a part is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole {
    /// Its length in bytes.
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256,
}

/// The beginning of a body, and the digest of it so far.
pub(crate) struct Part {
    pub(crate) body: Vec<u8>,
    pub(crate) hasher: sha2::Sha256,
}

impl fmt::Debug for Part {
    /// How long it is, and not what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Entry {
    owner: AccountId,
    whole: Whole,
    part: Part,
    expires: Instant,
    /// The account's memory that it takes, and its room.
    _charge: Charge,
    _room: Option<Hold>,
}

/// Memory of an account, until this is dropped.
#[derive(Debug)]
struct Charge {
    account: Arc<Account>,
    counted: usize,
}

impl Charge {
    fn new(account: Arc<Account>, bytes: usize) -> Self {
        let mut counted = 0;
        account.recount(&mut counted, bytes);
        Self { account, counted }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.recount(&mut self.counted, 0);
    }
}

/// Parts of bodies, shared by the connections of a server, or by those that a client has one after
/// the other. Its owner lets [`watch`](Self::watch) run, so that nothing is kept beyond its time.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// In the order in which they were put here.
    entries: Mutex<VecDeque<Entry>>,
    changed: Notify,
    /// How long a part is kept; zero keeps none.
    time: Duration,
}

impl Shelf {
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            entries: Mutex::default(),
            changed: Notify::new(),
            time,
        }
    }

    /// Keeps nothing: for a connection that has no next one.
    pub(crate) fn none() -> Self {
        Self::new(Duration::ZERO)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        // Every section leaves the parts whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a part, if it is not too much; others may have to go for it, those of the same account
    /// first.
    pub(crate) fn put(
        &self,
        owner: &AccountId,
        account: &Arc<Account>,
        whole: Whole,
        mut part: Part,
        room: Option<Hold>,
        now: Instant,
    ) {
        let bytes = part.body.len();
        if bytes == 0 || bytes > SHELF_BYTES_PER_ACCOUNT || self.time.is_zero() {
            return;
        }
        part.body.shrink_to_fit();
        let mut entries = self.lock();
        expire(&mut entries, now);
        let same = |entry: &Entry| entry.owner == *owner && entry.whole == whole;
        if entries
            .iter()
            .any(|entry| same(entry) && entry.part.body.len() >= bytes)
        {
            return;
        }
        entries.retain(|entry| !same(entry));
        while over(&entries, owner, bytes) {
            remove_oldest_of(&mut entries, owner);
        }
        while held(&entries, |_| true) + bytes > SHELF_BYTES {
            let Some(owner) = greediest(&entries) else {
                break;
            };
            remove_oldest_of(&mut entries, &owner);
        }
        entries.push_back(Entry {
            owner: owner.clone(),
            whole,
            expires: now + self.time,
            _charge: Charge::new(Arc::clone(account), bytes),
            _room: room,
            part,
        });
        drop(entries);
        self.changed.notify_waiters();
    }

    /// Takes the part of this body that the account left here. Its room is given back.
    pub(crate) fn take(&self, owner: &AccountId, whole: Whole, now: Instant) -> Option<Part> {
        let mut entries = self.lock();
        expire(&mut entries, now);
        let found = entries
            .iter()
            .position(|entry| entry.owner == *owner && entry.whole == whole)?;
        entries.remove(found).map(|entry| entry.part)
    }

    /// Forgets what the account left here, to make room for what it sends now.
    pub(crate) fn forget(&self, owner: &AccountId) {
        self.lock().retain(|entry| entry.owner != *owner);
    }

    /// Removes what is kept beyond its time, for as long as it is polled.
    pub(crate) async fn watch(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let next = {
                let mut entries = self.lock();
                expire(&mut entries, Instant::now());
                // All are kept for the same time.
                entries.front().map(|entry| entry.expires)
            };
            match next {
                Some(next) => tokio::select! {
                    biased;
                    () = sleep_until(next) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }
}

fn expire(entries: &mut VecDeque<Entry>, now: Instant) {
    entries.retain(|entry| entry.expires > now);
}

fn held(entries: &VecDeque<Entry>, of: impl Fn(&Entry) -> bool) -> usize {
    let parts = entries.iter().filter(|entry| of(entry));
    parts.map(|entry| entry.part.body.len()).sum()
}

/// Whether an account has no place for another part of so many bytes.
fn over(entries: &VecDeque<Entry>, owner: &AccountId, bytes: usize) -> bool {
    let own = |entry: &Entry| entry.owner == *owner;
    entries.iter().filter(|entry| own(entry)).count() >= PARTS_PER_ACCOUNT
        || held(entries, own) + bytes > SHELF_BYTES_PER_ACCOUNT
}

fn remove_oldest_of(entries: &mut VecDeque<Entry>, owner: &AccountId) {
    if let Some(oldest) = entries.iter().position(|entry| entry.owner == *owner) {
        entries.remove(oldest);
    }
}

/// Whoever has most here gives way first, so that nobody empties the shelf for the others.
fn greediest(entries: &VecDeque<Entry>) -> Option<AccountId> {
    let owners = entries.iter().map(|entry| &entry.owner);
    owners
        .max_by_key(|owner| held(entries, |entry| entry.owner == **owner))
        .cloned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use migration_ipc_transport::{PeerIdentity, Privilege};
    use sha2::Digest as _;

    use super::*;
    use crate::config::AccountLimits;

    const MIB: usize = 1024 * 1024;
    const TIME: Duration = Duration::from_secs(300);

    struct Owner(AccountId, Arc<Account>);

    fn owner(name: &str, memory: usize) -> Owner {
        let id = AccountId::new(name);
        let peer = PeerIdentity::new(id.clone(), Privilege::Ordinary);
        let limits = AccountLimits {
            memory,
            ..AccountLimits::default()
        };
        Owner(id, Arc::new(Account::of(&peer, &limits)))
    }

    fn whole(number: u8) -> Whole {
        Whole {
            bytes: 1 << 40,
            sha256: Sha256([number; 32]),
        }
    }

    fn put(shelf: &Shelf, owner: &Owner, number: u8, bytes: usize) {
        let part = Part {
            body: vec![number; bytes],
            hasher: sha2::Sha256::new(),
        };
        shelf.put(
            &owner.0,
            &owner.1,
            whole(number),
            part,
            None,
            Instant::now(),
        );
    }

    fn take(shelf: &Shelf, owner: &Owner, number: u8) -> Option<usize> {
        let part = shelf.take(&owner.0, whole(number), Instant::now())?;
        Some(part.body.len())
    }

    #[test]
    fn a_part_is_found_once_and_by_its_own_account_alone() {
        let shelf = Shelf::new(TIME);
        let (alice, bob) = (owner("alice", usize::MAX), owner("bob", usize::MAX));
        put(&shelf, &alice, 1, 10);
        put(&shelf, &bob, 1, 4);
        assert_eq!(take(&shelf, &alice, 2), None);
        assert_eq!(take(&shelf, &alice, 1), Some(10));
        assert_eq!(take(&shelf, &alice, 1), None);
        assert_eq!(take(&shelf, &bob, 1), Some(4));
    }

    #[test]
    fn of_two_parts_of_a_body_the_longer_one_stays() {
        let shelf = Shelf::new(TIME);
        let alice = owner("alice", usize::MAX);
        for bytes in [10, 30, 20] {
            put(&shelf, &alice, 1, bytes);
        }
        assert_eq!(take(&shelf, &alice, 1), Some(30));
        assert_eq!(take(&shelf, &alice, 1), None);
    }

    #[test]
    fn what_an_account_leaves_is_bounded_in_number_and_in_bytes() {
        let shelf = Shelf::new(TIME);
        let alice = owner("alice", usize::MAX);
        for number in 0..20 {
            put(&shelf, &alice, number, 10);
        }
        assert_eq!(shelf.lock().len(), PARTS_PER_ACCOUNT);
        assert_eq!(take(&shelf, &alice, 11), None, "the oldest ones went");
        assert_eq!(take(&shelf, &alice, 12), Some(10));
        put(&shelf, &alice, 30, SHELF_BYTES_PER_ACCOUNT + 1);
        assert_eq!(take(&shelf, &alice, 30), None);
        put(&shelf, &alice, 31, SHELF_BYTES_PER_ACCOUNT);
        assert_eq!(shelf.lock().len(), 1);
    }

    #[test]
    fn a_greedy_account_gives_way_to_others() {
        let shelf = Shelf::new(TIME);
        let (alice, bob) = (owner("alice", usize::MAX), owner("bob", usize::MAX));
        put(&shelf, &bob, 1, MIB);
        for number in 0..4 {
            put(&shelf, &alice, number, 8 * MIB);
        }
        for (number, name) in [(5, "carol"), (6, "dave"), (7, "erin")] {
            put(&shelf, &owner(name, usize::MAX), number, 11 * MIB);
        }
        let held = held(&shelf.lock(), |_| true);
        assert!(held <= SHELF_BYTES, "{held}");
        assert_eq!(take(&shelf, &bob, 1), Some(MIB));
        assert_eq!(take(&shelf, &alice, 0), None);
        assert_eq!(take(&shelf, &alice, 1), Some(8 * MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_beyond_its_time_nor_charged() {
        let shelf = Shelf::new(TIME);
        let alice = owner("alice", 10);
        let is_charged = || alice.1.is_out_of_memory();
        let mut watching = Box::pin(shelf.watch());
        assert!(watching.as_mut().now_or_never().is_none());
        put(&shelf, &alice, 1, 10);
        assert!(is_charged());
        let watch = tokio::time::timeout(TIME + Duration::from_secs(1), watching);
        assert!(watch.await.is_err());
        assert!(shelf.lock().is_empty());
        assert!(!is_charged());
        put(&shelf, &alice, 1, 10);
        tokio::time::advance(TIME).await;
        assert_eq!(take(&shelf, &alice, 1), None, "without anybody who watches");
    }
}
