//! Ids and times for messages.

use std::time::UNIX_EPOCH;

use migration_ipc_protocol::{
    EncodeError, EnvelopeHead, IpcMessage, MessageId, MessagePayload, MessageSerializer,
    MessageType, RawValue, Timestamp,
};

use crate::clock::Clock;

/// Makes messages with a fresh id (UUID version 7, RFC 9562) and the present time.
///
/// Sending does this by itself; the factory is for messages that are kept or compared.
#[derive(Debug, Clone, Copy, Default)]
pub struct MessageFactory;

impl MessageFactory {
    /// A message with this payload, a fresh id and the present time.
    ///
    /// # Errors
    /// When the payload cannot be written as JSON.
    pub fn create<P: MessagePayload>(payload: &P) -> Result<IpcMessage, EncodeError> {
        let (id, timestamp) = stamp(Clock::default());
        IpcMessage::new(id, timestamp, payload)
    }

    /// A message of any type, with a payload that is JSON already.
    #[must_use]
    pub fn create_raw(message_type: MessageType, payload: Box<RawValue>) -> IpcMessage {
        let (id, timestamp) = stamp(Clock::default());
        IpcMessage {
            id,
            message_type,
            timestamp,
            payload: Some(payload),
            in_reply_to: None,
        }
    }
}

/// A fresh id and the present time, from one reading of the clock.
pub(crate) fn stamp(clock: Clock) -> (MessageId, Timestamp) {
    let now = clock.system_time();
    let millis = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    let id = uuid::Builder::from_unix_timestamp_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
        &random,
    );
    (MessageId::from(id.into_uuid()), Timestamp::from(now))
}

/// Appends a message with a fresh id and the present time as one whole frame.
pub(crate) fn encode<P: MessagePayload>(
    clock: Clock,
    frame: &mut Vec<u8>,
    payload: &P,
) -> Result<MessageId, EncodeError> {
    let (id, timestamp) = stamp(clock);
    let head = EnvelopeHead::new(&id, P::TYPE, timestamp);
    MessageSerializer::encode(frame, head, payload)?;
    Ok(id)
}
