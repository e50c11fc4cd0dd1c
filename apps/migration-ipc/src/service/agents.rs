//! The agents that are connected now, and what each was told.

use std::collections::{BTreeMap, BTreeSet};

use migration_ipc::AccountId;
use migration_ipc::messages::{SessionId, UserId};

use super::key::{AgentKey, UserKey, UserScope};
use super::lease::Presence;

/// The number of an agent's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AgentId(pub(crate) u64);

/// Whom an operator's message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Audience {
    /// One account in whatever sessions; it need not be connected, or known.
    Account(NamedAccount),
    /// The agents of one account that announced this session. Those of another may have given theirs
    /// the same name.
    Session {
        account: AccountId,
        session: String,
    },
    All,
}

/// An account with a name for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedAccount {
    pub(crate) account: AccountId,
    pub(crate) name: UserId,
}

/// Whether a connection was told of its user's pending request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Open,
    Made,
}

/// All connected agents, in the order of their connections.
#[derive(Debug)]
pub(crate) struct Agents {
    scope: UserScope,
    connected: BTreeMap<AgentId, Agent>,
}

#[derive(Debug)]
struct Agent {
    key: AgentKey,
    offer: Offer,
}

impl Agents {
    pub(crate) fn new(scope: UserScope) -> Self {
        Self {
            scope,
            connected: BTreeMap::new(),
        }
    }

    pub(crate) fn scope(&self) -> UserScope {
        self.scope
    }

    pub(crate) fn user_of(&self, agent: &AgentKey) -> UserKey {
        self.scope.user_of(agent)
    }

    pub(crate) fn insert(&mut self, id: AgentId, key: AgentKey, offer: Offer) {
        self.connected.insert(id, Agent { key, offer });
    }

    pub(crate) fn remove(&mut self, id: AgentId) -> Option<AgentKey> {
        self.connected.remove(&id).map(|agent| agent.key)
    }

    pub(crate) fn presence(&self, key: &AgentKey) -> Presence {
        if self.connected.values().any(|agent| agent.key == *key) {
            Presence::Connected
        } else {
            Presence::Absent
        }
    }

    /// The agents of a user.
    pub(crate) fn of_user(&self, user: &UserKey) -> Vec<AgentId> {
        self.filtered(|agent| self.user_of(&agent.key) == *user)
    }

    /// The agents of a user except this one.
    pub(crate) fn of_user_but(&self, user: &UserKey, but: &AgentKey) -> Vec<AgentId> {
        self.filtered(|agent| self.user_of(&agent.key) == *user && agent.key != *but)
    }

    /// The agents of a user, each with its session.
    pub(crate) fn sessions_of(&self, user: &UserKey) -> Vec<(AgentId, SessionId)> {
        let of_user = |agent: &Agent| self.user_of(&agent.key) == *user;
        let agents = self.connected.iter().filter(|(_, agent)| of_user(agent));
        agents
            .map(|(id, agent)| (*id, agent.key.session.clone()))
            .collect()
    }

    /// The agents of a user that were not told of the pending request.
    pub(crate) fn untold(&self, user: &UserKey) -> Vec<AgentId> {
        self.filtered(|agent| self.user_of(&agent.key) == *user && agent.offer == Offer::Open)
    }

    pub(crate) fn told(&mut self, id: AgentId) {
        if let Some(agent) = self.connected.get_mut(&id) {
            agent.offer = Offer::Made;
        }
    }

    /// The agents that an operator means.
    pub(crate) fn of_audience(&self, audience: &Audience) -> Vec<AgentId> {
        self.filtered(|agent| match audience {
            Audience::Account(named) => agent.key.account == named.account,
            Audience::Session { account, session } => {
                agent.key.account == *account && agent.key.session == *session.as_str()
            }
            Audience::All => true,
        })
    }

    /// The users of the agents that an operator means.
    pub(crate) fn users_of_audience(&self, audience: &Audience) -> BTreeSet<UserKey> {
        let ids = self.of_audience(audience);
        let agents = ids.iter().filter_map(|id| self.connected.get(id));
        agents.map(|agent| self.user_of(&agent.key)).collect()
    }

    fn filtered(&self, wanted: impl Fn(&Agent) -> bool) -> Vec<AgentId> {
        self.connected
            .iter()
            .filter(|(_, agent)| wanted(agent))
            .map(|(id, _)| *id)
            .collect()
    }
}
