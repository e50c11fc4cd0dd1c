//! What is known of one user.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use migration_ipc::Timestamp;
use migration_ipc::messages::{
    BackupCompleted, BackupProgress, BackupRequest, Category, EscalationNotice, EscalationReason,
    Percent, Priority, UserId,
};
use serde::{Deserialize, Serialize};

use super::key::UserKey;
use super::lease::Lease;

/// How many escalations are kept per user; the newest.
const MAX_ESCALATIONS: usize = 16;

/// How many categories are tracked per user, so that a peer that makes up names costs no more.
const MAX_CATEGORIES: usize = 32;

/// How much of a text that came from a peer is kept.
const MAX_TEXT: usize = 1024;

/// Where a user's backup stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Nothing was asked for and nothing is running.
    Idle,
    /// A backup was asked for and has not begun.
    Requested,
    /// A backup was asked for and put off by the user.
    Delayed,
    Running,
    Completed,
    /// The last backup ended without success.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Requested => "requested",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        })
    }
}

/// What a user holds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Ready,
    Active,
    Waiting,
    /// People have to look into it.
    Blocked,
}

/// A backup that was asked for and is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Terms {
    pub(crate) priority: Priority,
    pub(crate) deadline: Timestamp,
    pub(crate) categories: Vec<Category>,
}

impl Terms {
    pub(crate) fn to_request(&self, user: &UserKey) -> BackupRequest {
        BackupRequest::new(
            user.account(),
            self.deadline,
            self.categories.iter().cloned(),
        )
        .with_priority(self.priority.clone())
    }
}

impl From<BackupRequest> for Terms {
    fn from(request: BackupRequest) -> Self {
        Self {
            priority: request.priority,
            deadline: request.deadline,
            categories: request.categories,
        }
    }
}

/// How far one category is, in the agent's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CategoryState {
    pub(crate) percent: f64,
    pub(crate) bytes_transferred: u64,
    pub(crate) bytes_total: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current_file: Option<String>,
    /// Set once the category has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) items: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// A case that was handed to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Escalation {
    pub(crate) at: Timestamp,
    pub(crate) reason: EscalationReason,
    pub(crate) details: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ticket_number: Option<String>,
}

/// The last thing of its kind that an agent told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) at: Timestamp,
    pub(crate) text: String,
}

/// One user, connected or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserRecord {
    pub(crate) key: UserKey,
    /// What the user is called: as announced, or as the roster has it.
    pub(crate) name: UserId,
    pub(crate) phase: Phase,
    /// Kept until a backup completes, whatever becomes of attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<Terms>,
    /// Of the pending backup.
    pub(crate) delays_used: u32,
    /// Who backs the user up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<Lease>,
    /// Of the running backup, or of the last one.
    #[serde(default)]
    pub(crate) categories: BTreeMap<Category, CategoryState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) finished: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest_path: Option<String>,
    /// Whether the newest escalation still stands; a new request or a complete backup settles it.
    pub(crate) escalated: bool,
    #[serde(default)]
    pub(crate) escalations: Vec<Escalation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_action: Option<Note>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<Note>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<Timestamp>,
}

impl UserRecord {
    pub(crate) fn new(key: UserKey, name: UserId) -> Self {
        Self {
            key,
            name,
            phase: Phase::Idle,
            pending: None,
            delays_used: 0,
            lease: None,
            categories: BTreeMap::new(),
            started: None,
            finished: None,
            manifest_path: None,
            escalated: false,
            escalations: Vec::new(),
            last_action: None,
            last_error: None,
            last_seen: None,
        }
    }

    /// Whether nothing was ever asked of this user, or done.
    pub(crate) fn is_new(&self) -> bool {
        self.phase == Phase::Idle && self.finished.is_none()
    }

    /// When the backup becomes overdue; `None` if it cannot, or is known to be.
    pub(crate) fn open_deadline(&self) -> Option<Timestamp> {
        self.pending
            .as_ref()
            .filter(|_| !self.escalated)
            .map(|terms| terms.deadline)
    }

    /// When the lease of an agent that is not connected ends.
    pub(crate) fn lease_expiry(&self) -> Option<Timestamp> {
        self.lease.as_ref().and_then(Lease::expiry)
    }

    pub(crate) fn standing(&self) -> Standing {
        match self.phase {
            Phase::Completed => Standing::Ready,
            Phase::Running => Standing::Active,
            Phase::Failed => Standing::Blocked,
            Phase::Idle | Phase::Requested | Phase::Delayed if self.escalated => Standing::Blocked,
            Phase::Idle | Phase::Requested | Phase::Delayed => Standing::Waiting,
        }
    }

    /// How far the running or last backup is, from 0 to 100.
    pub(crate) fn percent(&self) -> f64 {
        if self.phase == Phase::Completed {
            return 100.0;
        }
        let add = |total: u64, state: &CategoryState| total.saturating_add(state.bytes_total);
        let bytes = self.categories.values().fold(0, add);
        if bytes == 0 {
            return 0.0;
        }
        let done = self
            .categories
            .values()
            .map(|state| state.bytes_transferred);
        Percent::of(done.fold(0, u64::saturating_add), bytes).get()
    }

    /// A backup is asked for, on new terms.
    pub(crate) fn request(&mut self, terms: Terms) {
        self.pending = Some(terms);
        self.delays_used = 0;
        self.escalated = false;
        if self.phase != Phase::Running {
            self.phase = Phase::Requested;
        }
    }

    /// The user has one more delay. It lengthens the deadline, or counts from now if that has
    /// passed, or if nothing was asked for.
    pub(crate) fn delay(&mut self, longer: Duration, now: Timestamp) -> &Terms {
        self.delays_used += 1;
        self.escalated = false;
        self.phase = Phase::Delayed;
        let terms = self.pending.get_or_insert_with(|| Terms {
            priority: Priority::Normal,
            deadline: now,
            categories: Vec::new(),
        });
        terms.deadline = terms.deadline.max(now) + longer;
        terms
    }

    pub(crate) fn begin(&mut self, now: Timestamp) {
        self.phase = Phase::Running;
        self.started = Some(now);
        self.finished = None;
        self.categories.clear();
    }

    pub(crate) fn resume(&mut self, now: Timestamp) {
        self.phase = Phase::Running;
        self.started.get_or_insert(now);
        self.finished = None;
    }

    /// The agent that was backing up is gone.
    pub(crate) fn interrupt(&mut self) {
        self.lease = None;
        self.phase = if self.pending.is_some() {
            Phase::Requested
        } else {
            Phase::Idle
        };
    }

    pub(crate) fn progress(&mut self, progress: BackupProgress) {
        let known = self.categories.contains_key(&progress.category);
        if !known && self.categories.len() >= MAX_CATEGORIES {
            return;
        }
        let state = CategoryState {
            percent: progress.progress.get(),
            bytes_transferred: progress.bytes_transferred,
            bytes_total: progress.bytes_total,
            current_file: progress.current_file.map(shorten),
            items: None,
            error: None,
        };
        self.categories.insert(progress.category, state);
    }

    pub(crate) fn complete(&mut self, completed: BackupCompleted, now: Timestamp) {
        self.lease = None;
        self.finished = Some(now);
        self.manifest_path = completed.manifest_path.map(shorten);
        for (category, result) in completed.categories.into_iter().take(MAX_CATEGORIES) {
            let state = self.categories.entry(category).or_insert(CategoryState {
                percent: 0.0,
                bytes_transferred: 0,
                bytes_total: 0,
                current_file: None,
                items: None,
                error: None,
            });
            state.current_file = None;
            state.items = Some(result.item_count);
            state.error = result.error.map(shorten);
        }
        if completed.success {
            self.phase = Phase::Completed;
            self.pending = None;
            self.escalated = false;
        } else {
            self.phase = Phase::Failed;
        }
    }

    pub(crate) fn escalate(&mut self, notice: &EscalationNotice, now: Timestamp) {
        if self.escalations.len() == MAX_ESCALATIONS {
            self.escalations.remove(0);
        }
        self.escalations.push(Escalation {
            at: now,
            reason: notice.reason.clone(),
            details: shorten(notice.details.clone()),
            ticket_number: notice.ticket_number.clone().map(shorten),
        });
        self.escalated = true;
    }
}

impl Note {
    pub(crate) fn new(at: Timestamp, text: String) -> Self {
        Self {
            at,
            text: shorten(text),
        }
    }
}

fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}
