//! At most one backup per user at a time.

use std::time::Duration;

use migration_ipc::Timestamp;
use migration_ipc::messages::SessionId;
use serde::{Deserialize, Serialize};

use super::key::AgentKey;
use crate::cli::visible;

/// An agent that holds a lease and says nothing for this long may lose it to another one. Running
/// backups report several times a second; a sleeping computer's may pause for long, and takes its
/// lease up again if nobody else did. It is also how long agents wait at most before they connect
/// again, so that a restart of the service takes no lease away.
pub(crate) const IDLE: Duration = Duration::from_secs(5 * 60);

/// An agent whose connection was lost keeps its lease for this long; agents try to connect again
/// within seconds.
pub(crate) const LOST: Duration = Duration::from_secs(30);

/// The right of one agent to back a user up, renewed by everything it says about the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lease {
    holder: AgentKey,
    valid_until: Timestamp,
    /// A fact of this run of the service.
    #[serde(skip)]
    presence: Presence,
}

/// Whether the holder of a lease is connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    Connected,
    #[default]
    Absent,
}

/// Another agent of the same user is at it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent in session `{}` is backing this user up", visible(.0.as_str()))]
pub(crate) struct LeaseHeld(SessionId);

impl Lease {
    pub(crate) fn new(holder: AgentKey, presence: Presence, now: Timestamp) -> Self {
        Self {
            holder,
            valid_until: now + IDLE,
            presence,
        }
    }

    pub(crate) fn is_held_by(&self, agent: &AgentKey) -> bool {
        self.holder == *agent
    }

    /// Fails if the lease keeps this agent from working.
    pub(crate) fn check(&self, agent: &AgentKey, now: Timestamp) -> Result<(), LeaseHeld> {
        if self.is_held_by(agent) || now >= self.valid_until {
            Ok(())
        } else {
            Err(LeaseHeld(self.holder.session.clone()))
        }
    }

    pub(crate) fn holder(&self) -> &AgentKey {
        &self.holder
    }

    /// The lease comes from the disk.
    pub(crate) fn restore(&mut self, presence: Presence, now: Timestamp) {
        self.presence = presence;
        self.renew(now);
    }

    pub(crate) fn renew(&mut self, now: Timestamp) {
        self.valid_until = now + IDLE;
    }

    /// The holder is connected again.
    pub(crate) fn handle_back(&mut self, now: Timestamp) {
        self.presence = Presence::Connected;
        self.renew(now);
    }

    /// The holder's connection was lost.
    pub(crate) fn handle_lost(&mut self, now: Timestamp) {
        self.presence = Presence::Absent;
        self.valid_until = self.valid_until.min(now + LOST);
    }

    /// When the lease ends by itself; `None` while its holder is connected.
    pub(crate) fn expiry(&self) -> Option<Timestamp> {
        match self.presence {
            Presence::Connected => None,
            Presence::Absent => Some(self.valid_until),
        }
    }
}
