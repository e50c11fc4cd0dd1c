//! What the agent says that has no backup behind it.

use std::time::Duration;

use migration_ipc::messages::{DelayReason, DelayRequest, Seconds, UserAction};
use migration_ipc::{Fate, Receipt, ReconnectingIpcClient, SendError};

use super::inbox::read_reply;
use super::steps::UserAct;
use crate::service_message::ServiceMessage;

/// Speaks for one user.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    pub(crate) user: String,
    pub(crate) service: ReconnectingIpcClient,
}

/// What the service said to a request for a delay.
#[derive(Debug)]
pub(crate) enum DelayReply {
    Message(ServiceMessage),
    /// The answer comes as a message of its own: the service is a plain one.
    Later,
    Refused(String),
}

impl Outbox {
    pub(crate) async fn report(&self, act: UserAct) -> Result<(), SendError> {
        let action = UserAction::new(self.user.as_str(), act.name());
        self.service.send(action).await.map(drop)
    }

    /// Asks for a delay; the service is asked whatever happens to this process afterwards.
    pub(crate) async fn request_delay(
        &self,
        by: Duration,
        delays_used: u32,
    ) -> Result<Receipt, SendError> {
        let by = Seconds::from(by);
        let delay = DelayRequest::new(self.user.as_str(), DelayReason::UserBusy, by, delays_used);
        self.service.send(delay).await
    }
}

impl From<&Fate> for DelayReply {
    fn from(fate: &Fate) -> Self {
        match fate {
            Fate::Replied(reply) => match read_reply(reply) {
                Ok(message) => Self::Message(message),
                Err(error) => Self::Refused(error.to_string()),
            },
            Fate::Sent | Fate::Unknown(SendError::Unanswered) => Self::Later,
            Fate::Handled => Self::Refused("no new deadline was given".to_owned()),
            Fate::Rejected(rejection) => Self::Refused(rejection.error.clone()),
            other => Self::Refused(other.to_string()),
        }
    }
}
