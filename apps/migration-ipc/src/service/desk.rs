//! The state together with the connections of the agents that it speaks of.

use std::collections::HashMap;

use migration_ipc::messages::{BackupRequest, UserId};
use migration_ipc::{
    ConnectionId, ConnectionState, DisconnectReason, IpcConnection, MessagePayload, SendError,
    Timestamp,
};

use super::agents::{AgentId, Audience};
use super::key::AgentKey;
use super::state::{Leaving, Migration};
use crate::operator::{AgentStatus, SendReport};
use crate::service_message::ServiceMessage;

/// What the keeper decides over.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) migration: Migration,
    /// Invariant: the values of `ids` are the keys of `connections`.
    connections: HashMap<AgentId, IpcConnection>,
    ids: HashMap<ConnectionId, AgentId>,
    next_id: u64,
}

impl Desk {
    pub(crate) fn new(migration: Migration) -> Self {
        Self {
            migration,
            connections: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
        }
    }

    /// An agent announced itself over a connection.
    pub(crate) fn handle_announced(
        &mut self,
        connection: IpcConnection,
        agent: AgentKey,
        name: UserId,
        now: Timestamp,
    ) -> Option<BackupRequest> {
        let next = AgentId(self.next_id);
        let id = *self.ids.entry(connection.id()).or_insert(next);
        self.next_id += u64::from(id == next);
        let state = connection.state();
        let connection_id = connection.id();
        self.connections.insert(id, connection);
        let request = self.migration.handle_announced(id, agent, name, now);
        // Its end may have been reported before it was known here.
        if let Some(how) = leaving(&state.borrow()) {
            self.handle_gone(connection_id, how, now);
        }
        request
    }

    /// A connection ended.
    pub(crate) fn handle_gone(&mut self, connection: ConnectionId, how: Leaving, now: Timestamp) {
        if let Some(id) = self.ids.remove(&connection) {
            self.connections.remove(&id);
            self.migration.handle_gone(id, how, now);
        }
    }

    /// Ends of connections may have been missed.
    pub(crate) fn sweep(&mut self, now: Timestamp) {
        let gone = |connection: &IpcConnection| {
            let how = leaving(&connection.state().borrow())?;
            Some((connection.id(), how))
        };
        let gone: Vec<_> = self.connections.values().filter_map(gone).collect();
        gone.into_iter()
            .for_each(|(connection, how)| self.handle_gone(connection, how, now));
    }

    /// Sends to one agent; one that is gone meanwhile needs nothing any more.
    pub(crate) fn send(&self, to: AgentId, message: impl MessagePayload) -> Result<(), SendError> {
        match self.connections.get(&to) {
            Some(agent) => agent.try_send(message).map(drop),
            None => Ok(()),
        }
    }

    /// An operator wants a message sent.
    pub(crate) fn handle_send(
        &mut self,
        audience: &Audience,
        message: ServiceMessage,
        now: Timestamp,
    ) -> SendReport {
        match message {
            ServiceMessage::BackupRequest(request) => {
                let requested = self.migration.handle_request(audience, request);
                SendReport {
                    agents: requested.agents,
                    pending_users: requested.users,
                    standing: requested.standing,
                    mailed: false,
                }
            }
            ServiceMessage::EscalationNotice(notice) => {
                let agents = self.migration.handle_escalation(audience, &notice, now);
                SendReport {
                    agents,
                    ..SendReport::default()
                }
            }
            ServiceMessage::StatusUpdate(_)
            | ServiceMessage::ConfigurationUpdate(_)
            | ServiceMessage::ShutdownRequest(_) => {
                let agents = self.migration.agents_in(audience);
                let sent = |id: &AgentId| {
                    self.connections
                        .get(id)
                        .is_some_and(|agent| message.clone().send_to(agent).is_ok())
                };
                SendReport {
                    agents: agents.iter().filter(|id| sent(id)).count(),
                    ..SendReport::default()
                }
            }
        }
    }

    /// The connected agents of a user.
    pub(crate) fn agents_of(&self, user: &super::key::UserKey) -> Vec<AgentStatus> {
        let status = |(id, session): (AgentId, _)| {
            let connection = self.connections.get(&id)?;
            Some(AgentStatus {
                session: migration_ipc::SessionId::as_str(&session).to_owned(),
                connected: connection.connected_at(),
                last_message: connection.last_message_at(),
            })
        };
        self.migration
            .sessions_of(user)
            .into_iter()
            .filter_map(status)
            .collect()
    }
}

/// How a connection ended, if it did.
fn leaving(state: &ConnectionState) -> Option<Leaving> {
    match state {
        ConnectionState::Gone(reason) => Some(Leaving::of(reason)),
        _ => None,
    }
}

impl Leaving {
    pub(super) fn of(reason: &DisconnectReason) -> Self {
        match reason {
            DisconnectReason::Goodbye(_) => Self::Orderly,
            _ => Self::Lost,
        }
    }
}
