//! At most one backup per user at a time.

use std::time::Duration;

use migration_ipc::Timestamp;
use migration_ipc::messages::SessionId;

use super::key::AgentKey;
use crate::cli::visible;

/// An agent that holds a lease and says nothing for this long may lose it to another one. Running
/// backups report several times a second; a sleeping computer's may pause for long, and takes its
/// lease up again if nobody else did.
pub(crate) const IDLE: Duration = Duration::from_secs(5 * 60);

/// The right of one agent to back a user up, renewed by everything it says about the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    holder: AgentKey,
    renewed: Timestamp,
}

/// Another agent of the same user is at it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent in session `{}` is backing this user up", visible(.0.as_str()))]
pub(crate) struct LeaseHeld(SessionId);

impl Lease {
    pub(crate) fn new(holder: AgentKey, now: Timestamp) -> Self {
        Self {
            holder,
            renewed: now,
        }
    }

    pub(crate) fn is_held_by(&self, agent: &AgentKey) -> bool {
        self.holder == *agent
    }

    /// Whether the lease keeps this agent from working.
    pub(crate) fn held_against(&self, agent: &AgentKey, now: Timestamp) -> bool {
        !self.is_held_by(agent) && now.saturating_duration_since(self.renewed) < IDLE
    }

    pub(crate) fn renew_or_take_over(
        &mut self,
        agent: &AgentKey,
        now: Timestamp,
    ) -> Result<(), LeaseHeld> {
        if self.held_against(agent, now) {
            return Err(LeaseHeld(self.holder.session.clone()));
        }
        *self = Self::new(agent.clone(), now);
        Ok(())
    }
}
