//! Which accounts a server has to do with, how many connections each has, and who gets one more.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use migration_ipc_transport::{AccountId, PeerIdentity};

use crate::config::ServerLimits;
use crate::connection::Account;

/// Accounts without connections that are remembered, so that nobody gets rid of a debt by
/// connecting again. Far more than a machine has users; one of those who left first is forgotten
/// for the next.
const REMEMBERED: usize = 1024;

/// An account, in the part in which it acts: on Windows an administrator's everyday token and the
/// elevated one are of the same account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AccountKey {
    account: AccountId,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    Ordinary,
    Operator,
}

impl AccountKey {
    pub(super) fn of(peer: &PeerIdentity) -> Self {
        Self {
            account: peer.account().clone(),
            standing: if peer.is_operator() {
                Standing::Operator
            } else {
                Standing::Ordinary
            },
        }
    }
}

/// Why a newcomer got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Everything is taken, or everything that is not kept for others.
    Connections,
    /// The account has as many connections as one may have.
    AccountConnections,
    /// Too many have not been named by the operating system yet, and all of them have sent
    /// something.
    PendingConnections,
    /// It had one among those that are not named yet, was silent, and a newcomer needed it.
    GaveWay,
}

impl NoPlace {
    /// A short name from a closed set.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Connections => "connection_limit",
            Self::AccountConnections => "account_limit",
            Self::PendingConnections => "pending_limit",
            Self::GaveWay => "gave_way",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// Invariant: those without connections are exactly those in `absent`.
    entries: HashMap<AccountKey, Entry>,
    /// In the order in which they left.
    absent: VecDeque<AccountKey>,
    /// Invariant: the sum of the entries' connections.
    connections: usize,
}

#[derive(Debug)]
struct Entry {
    shared: Arc<Account>,
    connections: usize,
}

impl Accounts {
    /// A place for a connection of this account, if there is one, and what the account's connections
    /// share. It has to be given back.
    pub(super) fn take_place(
        &mut self,
        peer: &PeerIdentity,
        limits: &ServerLimits,
    ) -> Result<(AccountKey, Arc<Account>), NoPlace> {
        let key = AccountKey::of(peer);
        let all = self.connections;
        let entry = match self.entries.entry(key.clone()) {
            MapEntry::Occupied(entry) => entry.into_mut(),
            MapEntry::Vacant(vacant) => {
                self.absent.push_back(key.clone());
                vacant.insert(Entry {
                    shared: Arc::new(Account::of(peer, &limits.account)),
                    connections: 0,
                })
            }
        };
        let shared = Arc::clone(&entry.shared);
        let admitted = admit(key.standing, all, entry.connections, limits);
        if admitted.is_ok() {
            if entry.connections == 0 {
                self.absent.retain(|other| *other != key);
            }
            entry.connections += 1;
            self.connections += 1;
        }
        self.forget_some();
        admitted.map(|()| (key, shared))
    }

    pub(super) fn give_back(&mut self, key: &AccountKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.connections -= 1;
            self.connections -= 1;
            if entry.connections == 0 {
                self.absent.push_back(key.clone());
            }
        }
        self.forget_some();
    }

    fn forget_some(&mut self) {
        while self.absent.len() > REMEMBERED {
            if let Some(key) = self.absent.pop_front() {
                self.entries.remove(&key);
            }
        }
    }
}

/// Whether one more connection is taken of an account that has `own` of `all`.
///
/// The last part of all is for operators, and the part before it for accounts that have few: so
/// neither one account nor many that take much keep a newcomer out.
fn admit(standing: Standing, all: usize, own: usize, limits: &ServerLimits) -> Result<(), NoPlace> {
    let for_everybody = limits.connections - limits.operator_connections;
    let unreserved = for_everybody - limits.reserved_connections;
    let most = match standing {
        Standing::Operator => limits.connections,
        Standing::Ordinary if own >= limits.account.connections => {
            return Err(NoPlace::AccountConnections);
        }
        Standing::Ordinary if own < limits.few_connections => for_everybody,
        Standing::Ordinary => unreserved,
    };
    if all < most {
        Ok(())
    } else {
        Err(NoPlace::Connections)
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc_transport::Privilege;

    use super::*;

    fn limits() -> ServerLimits {
        let mut limits = ServerLimits {
            connections: 100,
            reserved_connections: 20,
            few_connections: 2,
            operator_connections: 10,
            ..ServerLimits::default()
        };
        limits.account.connections = 50;
        limits
    }

    fn user(name: &str) -> PeerIdentity {
        PeerIdentity::new(AccountId::new(name), Privilege::Ordinary)
    }

    fn root() -> PeerIdentity {
        PeerIdentity::new(AccountId::new("0"), Privilege::Administrator)
    }

    /// How many connections an account gets that asks for ever, and why it got no more.
    fn greedy(accounts: &mut Accounts, peer: &PeerIdentity) -> (usize, NoPlace) {
        let mut taken = 0;
        loop {
            match accounts.take_place(peer, &limits()) {
                Ok(_) => taken += 1,
                Err(no_place) => return (taken, no_place),
            }
        }
    }

    #[test]
    fn each_part_is_kept_for_those_whom_it_is_for() {
        let mut accounts = Accounts::default();
        assert_eq!(
            greedy(&mut accounts, &user("a")),
            (50, NoPlace::AccountConnections)
        );
        // Of the 70 that are nobody's.
        assert_eq!(
            greedy(&mut accounts, &user("b")),
            (20, NoPlace::Connections)
        );
        for number in 0..10 {
            let newcomer = user(&format!("c{number}"));
            assert_eq!(greedy(&mut accounts, &newcomer), (2, NoPlace::Connections));
        }
        assert_eq!(greedy(&mut accounts, &user("d")), (0, NoPlace::Connections));
        assert_eq!(greedy(&mut accounts, &root()), (10, NoPlace::Connections));
    }

    #[test]
    fn a_place_that_is_given_back_is_there_for_the_next() {
        let mut accounts = Accounts::default();
        let (key, _) = accounts.take_place(&user("a"), &limits()).unwrap();
        greedy(&mut accounts, &user("a"));
        accounts.give_back(&key);
        assert_eq!(
            greedy(&mut accounts, &user("a")),
            (1, NoPlace::AccountConnections)
        );
    }

    /// Or a debt would be forgotten by leaving.
    #[test]
    fn who_comes_again_is_remembered_and_their_number_is_bounded() {
        let mut accounts = Accounts::default();
        let (key, first) = accounts.take_place(&user("a"), &limits()).unwrap();
        accounts.give_back(&key);
        let (key, again) = accounts.take_place(&user("a"), &limits()).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        for number in 0..2 * REMEMBERED {
            let newcomer = user(&format!("b{number}"));
            let (key, _) = accounts.take_place(&newcomer, &limits()).unwrap();
            accounts.give_back(&key);
        }
        assert_eq!(
            accounts.entries.len(),
            REMEMBERED + 1,
            "and the one that is here"
        );
        accounts.give_back(&key);
        assert_eq!(accounts.entries.len(), REMEMBERED);
    }
}
