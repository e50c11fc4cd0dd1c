//! What the agent says that has no backup behind it.

use std::time::Duration;

use migration_ipc::messages::{DelayReason, DelayRequest, Seconds, UserAction};
use migration_ipc::{Answer, IpcConnection, SendError, ServiceKind};

use super::inbox::read_reply;
use super::steps::UserAct;
use crate::service_message::ServiceMessage;

/// Speaks for one user.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    pub(crate) user: String,
    pub(crate) service: IpcConnection,
    pub(crate) kind: ServiceKind,
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

    pub(crate) async fn request_delay(
        &self,
        by: Duration,
        delays_used: u32,
    ) -> Result<DelayReply, SendError> {
        let by = Seconds::from(by);
        let delay = DelayRequest::new(self.user.as_str(), DelayReason::UserBusy, by, delays_used);
        if self.kind == ServiceKind::Plain {
            self.service.send(delay).await?;
            return Ok(DelayReply::Later);
        }
        match self.service.send_acknowledged(delay).await {
            Ok(Answer::Replied(reply)) => Ok(match read_reply(&reply) {
                Ok(message) => DelayReply::Message(message),
                Err(error) => DelayReply::Refused(error.to_string()),
            }),
            Ok(Answer::Handled) => Ok(DelayReply::Refused("no new deadline was given".to_owned())),
            Err(SendError::Rejected(rejection)) => Ok(DelayReply::Refused(rejection.error)),
            Err(error) => Err(error),
        }
    }
}
