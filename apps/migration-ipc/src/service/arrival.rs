//! What surrounds a message of an agent.

use migration_ipc::{
    Commit, Delivery, FromContext, HandlerContext, HandlerError, IpcConnection, MessageInfo,
    Timestamp,
};

use super::desk::Desk;
use super::ending::Ending;
use super::handlers::Office;
use super::key::AgentKey;

/// A message of an agent, without its payload: who sent it, and what it takes to decide about it.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) agent: AgentKey,
    pub(crate) connection: IpcConnection,
    office: Office,
    message: MessageInfo,
    delivery: Delivery,
}

impl FromContext<Office> for Arrival {
    fn from_context(context: &HandlerContext<Office>) -> Self {
        let peer = context.peer();
        Self {
            agent: AgentKey {
                account: peer.account().clone(),
                os_session: peer.identity().session(),
                session: peer.announced_session().unwrap_or_default(),
            },
            connection: context.connection().clone(),
            office: context.state().clone(),
            message: context.message().clone(),
            delivery: Delivery::from_context(context),
        }
    }
}

impl Arrival {
    /// Decides, and says how the message ends: the sender is told once that is stored.
    pub(crate) async fn decide<E: Into<Ending>>(
        self,
        decide: impl FnOnce(&mut Desk, &AgentKey, Timestamp) -> E + Send + 'static,
    ) -> Result<Commit, HandlerError> {
        let agent = self.agent;
        self.office.entries.enter(&self.message)?;
        let decide = move |desk: &mut Desk, now| decide(desk, &agent, now).into();
        Ok(self.office.keeper.decide(self.delivery, decide).await?)
    }
}
