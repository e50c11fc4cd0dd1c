//! How a message of an agent ends.

use migration_ipc::messages::BackupRequest;
use migration_ipc::{Effects, ErrorCode, MessagePayload, RawValue};

use super::state::{DelayAnswer, Refusal};

/// How a message of an agent ends: what its sender is told, now and whenever it asks again.
#[derive(Debug)]
pub(crate) enum Ending {
    Handled,
    Replied {
        message_type: &'static str,
        payload: Box<RawValue>,
    },
    /// For good.
    Refused(String),
}

impl Ending {
    fn reply<P: MessagePayload>(payload: &P) -> Self {
        match serde_json::value::to_raw_value(payload) {
            Ok(payload) => Self::Replied {
                message_type: P::TYPE,
                payload,
            },
            Err(error) => Self::Refused(format!("the answer cannot be written: {error}")),
        }
    }

    /// The effects, ended in this way.
    pub(crate) fn end(self, effects: Effects) -> Effects {
        match self {
            Self::Handled => effects,
            Self::Replied {
                message_type,
                payload,
            } => effects.reply(message_type, payload),
            Self::Refused(text) => effects.reject(ErrorCode::HandlerFailed, text),
        }
    }
}

impl From<()> for Ending {
    fn from((): ()) -> Self {
        Self::Handled
    }
}

impl From<Option<BackupRequest>> for Ending {
    fn from(request: Option<BackupRequest>) -> Self {
        request.as_ref().map_or(Self::Handled, Self::reply)
    }
}

impl From<DelayAnswer> for Ending {
    fn from(answer: DelayAnswer) -> Self {
        match answer {
            DelayAnswer::Granted(request) => Self::reply(&request),
            DelayAnswer::Escalated(notice) => Self::reply(&notice),
        }
    }
}

impl<T: Into<Self>> From<Result<T, Refusal>> for Ending {
    fn from(result: Result<T, Refusal>) -> Self {
        match result {
            Ok(value) => value.into(),
            Err(refusal) => Self::Refused(refusal.to_string()),
        }
    }
}
