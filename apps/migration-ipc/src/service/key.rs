//! Who is who: agents, and the users whose backups are tracked.

use std::fmt;

use migration_ipc::messages::SessionId;
use migration_ipc::{AccountId, OsSession};
use serde::{Deserialize, Serialize};

use crate::cli::visible;

/// One agent, as state is keyed by it. Only the account and the operating system's session are
/// facts; the announced session tells the agents of one account apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "StoredAgent", into = "StoredAgent")]
pub(crate) struct AgentKey {
    pub(crate) account: AccountId,
    pub(crate) os_session: OsSession,
    pub(crate) session: SessionId,
}

/// An [`AgentKey`] as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredAgent {
    account: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    os_session: Option<u32>,
    session: SessionId,
}

impl From<StoredAgent> for AgentKey {
    fn from(stored: StoredAgent) -> Self {
        Self {
            account: AccountId::new(stored.account),
            os_session: stored.os_session.map_or(OsSession::Unknown, OsSession::Id),
            session: stored.session,
        }
    }
}

impl From<AgentKey> for StoredAgent {
    fn from(agent: AgentKey) -> Self {
        Self {
            account: agent.account.as_str().to_owned(),
            os_session: agent.os_session.id(),
            session: agent.session,
        }
    }
}

impl fmt::Display for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in session `{}`",
            self.account,
            visible(self.session.as_str())
        )
    }
}

/// What counts as one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UserScope {
    /// An account, whatever sessions it has.
    Account,
    /// An account in one announced session: in development mode, where all agents run as the
    /// developer.
    Session,
}

impl UserScope {
    pub(crate) fn user_of(self, agent: &AgentKey) -> UserKey {
        match self {
            Self::Account => UserKey::of_account(&agent.account),
            Self::Session => UserKey {
                account: agent.account.as_str().to_owned(),
                session: Some(agent.session.as_str().to_owned()),
            },
        }
    }
}

/// A user whose backup is tracked, connected or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct UserKey {
    account: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
}

impl UserKey {
    pub(crate) fn of_account(account: &AccountId) -> Self {
        Self {
            account: account.as_str().to_owned(),
            session: None,
        }
    }

    pub(crate) fn account(&self) -> &str {
        &self.account
    }
}

/// The account, and the session where that counts: `1000` or `1000/agent-1`.
impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.account)?;
        match &self.session {
            Some(session) => write!(f, "/{session}"),
            None => Ok(()),
        }
    }
}
