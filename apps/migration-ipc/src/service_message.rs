//! Any message that the service sends to agents, for those who do not know beforehand which.

use migration_ipc::messages::{
    BackupRequest, ConfigurationUpdate, EscalationNotice, ShutdownRequest, StatusUpdate,
};
use migration_ipc::{
    AccountId, IpcConnection, MailError, MailOptions, MessagePayload, Receipt, SendError,
    ServerSender,
};
use serde_json::Value;

/// A message that the service may send to agents.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ServiceMessage {
    BackupRequest(BackupRequest),
    StatusUpdate(StatusUpdate),
    EscalationNotice(EscalationNotice),
    ConfigurationUpdate(ConfigurationUpdate),
    ShutdownRequest(ShutdownRequest),
}

macro_rules! from_payload {
    ($($payload:ident),+) => {
        $(impl From<$payload> for ServiceMessage {
            fn from(payload: $payload) -> Self {
                Self::$payload(payload)
            }
        })+
    };
}

from_payload!(
    BackupRequest,
    StatusUpdate,
    EscalationNotice,
    ConfigurationUpdate,
    ShutdownRequest
);

/// The types of [`ServiceMessage`].
const TYPES: [&str; 5] = [
    BackupRequest::TYPE,
    StatusUpdate::TYPE,
    EscalationNotice::TYPE,
    ConfigurationUpdate::TYPE,
    ShutdownRequest::TYPE,
];

/// Why a type and JSON are not a message of the service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAServiceMessage {
    #[error("`{0}` is not a type that the service sends; use one of {list}", list = TYPES.join(", "))]
    Type(String),
    #[error("this is not the payload of {message_type}: {problem}")]
    Payload {
        message_type: String,
        problem: String,
    },
}

impl ServiceMessage {
    /// Reads what an operator wrote, or a reply whose type nobody could foresee.
    pub(crate) fn parse(message_type: &str, payload: &Value) -> Result<Self, NotAServiceMessage> {
        match message_type {
            BackupRequest::TYPE => read(payload).map(Self::BackupRequest),
            StatusUpdate::TYPE => read(payload).map(Self::StatusUpdate),
            EscalationNotice::TYPE => read(payload).map(Self::EscalationNotice),
            ConfigurationUpdate::TYPE => read(payload).map(Self::ConfigurationUpdate),
            ShutdownRequest::TYPE => read(payload).map(Self::ShutdownRequest),
            other => Err(NotAServiceMessage::Type(other.to_owned())),
        }
    }

    /// Sends the message to one agent if its lane has room.
    pub(crate) fn send_to(self, agent: &IpcConnection) -> Result<(), SendError> {
        match self {
            Self::BackupRequest(request) => agent.try_send(request),
            Self::StatusUpdate(status) => agent.try_send(status),
            Self::EscalationNotice(notice) => agent.try_send(notice),
            Self::ConfigurationUpdate(update) => agent.try_send(update),
            Self::ShutdownRequest(request) => agent.try_send(request),
        }
        .map(drop)
    }
}

impl ServiceMessage {
    /// Keeps the message for a user who is absent. On return it is on the disk.
    pub(crate) async fn mail(
        self,
        server: &ServerSender,
        user: &AccountId,
        options: MailOptions,
    ) -> Result<Receipt, MailError> {
        match self {
            Self::BackupRequest(request) => server.send_to(user, &request, options).await,
            Self::StatusUpdate(status) => server.send_to(user, &status, options).await,
            Self::EscalationNotice(notice) => server.send_to(user, &notice, options).await,
            Self::ConfigurationUpdate(update) => server.send_to(user, &update, options).await,
            Self::ShutdownRequest(request) => server.send_to(user, &request, options).await,
        }
    }
}

fn read<P: MessagePayload>(payload: &Value) -> Result<P, NotAServiceMessage> {
    let wrong = |problem: String| NotAServiceMessage::Payload {
        message_type: P::TYPE.to_owned(),
        problem,
    };
    if !payload.is_object() {
        return Err(wrong("it must be a JSON object".to_owned()));
    }
    serde_json::from_value(payload.clone()).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_of_the_service_is_read() {
        let payloads = [
            json!({"deadline": "2024-01-01T12:00:00Z"}),
            json!({"overallStatus": "ready"}),
            json!({"reason": "timeout"}),
            json!({"key": "x"}),
            json!({"reason": "update"}),
        ];
        for (message_type, payload) in TYPES.into_iter().zip(payloads) {
            ServiceMessage::parse(message_type, &payload).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = ServiceMessage::parse("AGENT_STARTED", &json!({}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("BACKUP_REQUEST"), "{error}");
        let error = ServiceMessage::parse("BACKUP_REQUEST", &json!({}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("deadline"), "{error}");
        let error = ServiceMessage::parse("BACKUP_REQUEST", &json!([]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("object"), "{error}");
    }
}
