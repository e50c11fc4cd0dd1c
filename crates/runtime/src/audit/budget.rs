//! How many records a peer may cause.

use std::collections::BTreeMap;
use std::time::Duration;

use migration_ipc_transport::AccountId;
use tokio::time::Instant;

/// Over which time records are counted.
pub(crate) const AUDIT_WINDOW: Duration = Duration::from_secs(60);

/// How many records one account may cause in a window. An agent causes one when it connects; somebody
/// who goes on at this rate for two days has written some 30 MiB.
pub(crate) const RECORDS_PER_ACCOUNT: u32 = 30;

/// How many accounts are told apart in a window. Those after them share what one account may cause.
const ACCOUNTS: usize = 1024;

/// Who causes records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Account(AccountId),
    /// Peers that nobody could identify, or was asked to.
    Unidentified,
    /// Accounts beyond [`ACCOUNTS`].
    Others,
}

#[derive(Debug, Default)]
struct Count {
    recorded: u32,
    suppressed: u64,
}

/// What each peer has caused in this window.
#[derive(Debug)]
pub(super) struct Budget {
    until: Option<Instant>,
    counts: BTreeMap<Cause, Count>,
}

/// What was left out in the window before.
pub(super) type Suppressed = Vec<(Cause, u64)>;

impl Budget {
    pub(super) const fn new() -> Self {
        Self {
            until: None,
            counts: BTreeMap::new(),
        }
    }

    /// Whether a record of this peer is made.
    pub(super) fn admit(&mut self, cause: Cause) -> bool {
        let is_full = self.counts.len() >= ACCOUNTS && !self.counts.contains_key(&cause);
        let cause = if is_full { Cause::Others } else { cause };
        let count = self.counts.entry(cause).or_default();
        if count.recorded < RECORDS_PER_ACCOUNT {
            count.recorded += 1;
            true
        } else {
            count.suppressed += 1;
            false
        }
    }

    /// Begins a new window if this one is over.
    pub(super) fn turn(&mut self, now: Instant) -> Suppressed {
        match self.until {
            Some(until) if now < until => Vec::new(),
            Some(_) | None => {
                self.until = Some(now + AUDIT_WINDOW);
                self.close()
            }
        }
    }

    /// Ends this window.
    pub(super) fn close(&mut self) -> Suppressed {
        std::mem::take(&mut self.counts)
            .into_iter()
            .filter(|(_, count)| count.suppressed > 0)
            .map(|(cause, count)| (cause, count.suppressed))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: usize) -> Cause {
        Cause::Account(AccountId::new(number.to_string()))
    }

    #[test]
    fn one_account_does_not_use_up_what_another_may_cause() {
        let mut budget = Budget::new();
        let begun = Instant::now();
        assert!(budget.turn(begun).is_empty());
        for _ in 0..RECORDS_PER_ACCOUNT {
            assert!(budget.admit(account(1)));
        }
        for _ in 0..10_000 {
            assert!(!budget.admit(account(1)));
        }
        assert!(budget.admit(account(2)));
        assert!(budget.turn(begun + AUDIT_WINDOW / 2).is_empty());
        assert_eq!(budget.turn(begun + AUDIT_WINDOW), [(account(1), 10_000)]);
        assert!(budget.admit(account(1)), "a new window");
    }

    #[test]
    fn the_accounts_that_are_told_apart_have_a_limit() {
        let mut budget = Budget::new();
        let admitted = (0..10 * ACCOUNTS)
            .filter(|number| budget.admit(account(*number)))
            .count();
        assert_eq!(admitted, ACCOUNTS + RECORDS_PER_ACCOUNT as usize);
        assert_eq!(budget.counts.len(), ACCOUNTS + 1);
        assert!(budget.admit(account(0)), "who is known keeps its own");
    }
}
