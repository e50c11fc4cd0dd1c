//! Metrics of reconnecting clients, beside those of their connections.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `ipc_fates_total` | counter, messages whose fate is known | `fate` |
//! | `ipc_overflows_total` | counter, messages refused or displaced by a full queue | `policy` |
//! | `ipc_connect_attempts_total` | counter | `outcome` (`connected`, `failed`) |
//! | `ipc_outbox_commits_total` | counter, syncs of an outbox | |
//! | `ipc_outbox_commit_messages` | histogram, messages accepted by one sync | |

use std::fmt;

use metrics::{Counter, Histogram, counter, histogram};

use super::queue::Overflow;
use crate::delivery::Fate;

pub(crate) struct Metrics {
    handled: Counter,
    commits: Counter,
    commit_messages: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            handled: counter!("ipc_fates_total", "fate" => Fate::Handled.label()),
            commits: counter!("ipc_outbox_commits_total"),
            commit_messages: histogram!("ipc_outbox_commit_messages"),
        }
    }

    pub(crate) fn resolved(&self, fate: &Fate) {
        match fate {
            Fate::Handled => self.handled.increment(1),
            fate => counter!("ipc_fates_total", "fate" => fate.label()).increment(1),
        }
    }

    pub(crate) fn overflowed(&self, overflow: Overflow, messages: usize) {
        let policy = match overflow {
            Overflow::Wait => "wait",
            Overflow::Reject => "reject",
            Overflow::DropOldest => "drop_oldest",
            Overflow::KeepLatest => "keep_latest",
        };
        counter!("ipc_overflows_total", "policy" => policy).increment(messages as u64);
    }

    pub(crate) fn tried(&self, outcome: &'static str) {
        counter!("ipc_connect_attempts_total", "outcome" => outcome).increment(1);
    }

    pub(crate) fn committed(&self, messages: usize) {
        self.commits.increment(1);
        if messages > 0 {
            self.commit_messages.record(messages as f64);
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
