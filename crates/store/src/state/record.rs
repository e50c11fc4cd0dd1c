//! A message as it is stored.

use std::borrow::Cow;

use migration_ipc_protocol::{IpcMessage, MessageId, MessageType, RawValue, Timestamp};
use serde::{Deserialize, Serialize};

/// The parts of an [`IpcMessage`], borrowed when written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MessageRecord<'a> {
    id: Cow<'a, MessageId>,
    #[serde(rename = "type")]
    message_type: Cow<'a, str>,
    timestamp: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<Cow<'a, RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_reply_to: Option<Cow<'a, MessageId>>,
}

impl<'a> From<&'a IpcMessage> for MessageRecord<'a> {
    fn from(message: &'a IpcMessage) -> Self {
        Self {
            id: Cow::Borrowed(&message.id),
            message_type: Cow::Borrowed(&message.message_type),
            timestamp: message.timestamp,
            payload: message.payload.as_deref().map(Cow::Borrowed),
            in_reply_to: message.in_reply_to.as_ref().map(Cow::Borrowed),
        }
    }
}

impl From<MessageRecord<'_>> for IpcMessage {
    fn from(record: MessageRecord<'_>) -> Self {
        Self {
            id: record.id.into_owned(),
            message_type: MessageType::new(&record.message_type),
            timestamp: record.timestamp,
            payload: record.payload.map(Cow::into_owned),
            in_reply_to: record.in_reply_to.map(Cow::into_owned),
        }
    }
}
