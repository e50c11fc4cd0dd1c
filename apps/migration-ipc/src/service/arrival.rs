//! What surrounds a message of an agent.

use migration_ipc::{
    Commit, Delivery, FromContext, HandlerContext, HandlerError, IpcConnection, MessageInfo,
    SessionId, Timestamp,
};

use super::desk::Desk;
use super::ending::Ending;
use super::handlers::Office;
use super::key::AgentKey;

/// A message of an agent, without its payload: who sent it, and what it takes to decide about it.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) connection: IpcConnection,
    office: Office,
    message: MessageInfo,
    delivery: Delivery,
}

impl FromContext<Office> for Arrival {
    fn from_context(context: &HandlerContext<Office>) -> Self {
        Self {
            connection: context.connection().clone(),
            office: context.state().clone(),
            message: context.message().clone(),
            delivery: Delivery::from_context(context),
        }
    }
}

impl Arrival {
    /// Who sent it. Asked by the handler, because its arguments are made when the message arrives:
    /// the announcement before it may not be accepted then.
    pub(crate) fn agent(&self) -> AgentKey {
        let announcement = self.connection.announcement();
        self.agent_in(announcement.map_or_else(SessionId::default, |it| it.session_id))
    }

    /// The same with another session.
    pub(crate) fn agent_in(&self, session: SessionId) -> AgentKey {
        let peer = self.connection.peer();
        AgentKey {
            account: peer.account().clone(),
            os_session: peer.session(),
            session,
        }
    }

    /// Decides, and says how the message ends: the sender is told once that is stored.
    pub(crate) async fn decide<E: Into<Ending>>(
        self,
        agent: AgentKey,
        decide: impl FnOnce(&mut Desk, &AgentKey, Timestamp) -> E + Send + 'static,
    ) -> Result<Commit, HandlerError> {
        self.office.entries.enter(&self.message)?;
        let decide = move |desk: &mut Desk, now| decide(desk, &agent, now).into();
        Ok(self.office.keeper.decide(self.delivery, decide).await?)
    }
}
