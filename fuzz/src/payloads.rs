//! The payloads of every built-in type: what was read is written and read again as the same, and a
//! value of an enumeration that this version does not know is kept.

use std::fmt::Debug;

use migration_ipc_protocol::extensions::{
    Acknowledgments, BatchOutcomes, Cancel, ChunksBegin, ChunksEnd, ChunksTake, Encrypted,
    EncryptionConfirm, ItemGrant,
};
use migration_ipc_protocol::hello::{Credit, Goodbye, Hello, HelloAnswer};
use migration_ipc_protocol::limits::MAX_ERROR_TEXT;
use migration_ipc_protocol::messages::{
    Acknowledgment, AgentStarted, BackupCompleted, BackupProgress, BackupRequest, BackupStarted,
    ConfigurationUpdate, DelayRequest, ErrorReport, EscalationNotice, Heartbeat, ShutdownRequest,
    StatusUpdate, UserAction,
};
use migration_ipc_protocol::{
    IpcMessage, MessageId, MessagePayload, MessageType, PayloadError, RawValue, Timestamp,
};
use serde_json::Value;

use crate::variants;

mod subject {
    use super::{MessagePayload, RawValue};

    #[cfg(not(feature = "planted"))]
    pub(super) fn encode<T: MessagePayload>(payload: &T) -> Box<RawValue> {
        serde_json::value::to_raw_value(payload).expect("a payload can be written")
    }

    /// Forgets a category that it does not know.
    #[cfg(feature = "planted")]
    pub(super) fn encode<T: MessagePayload>(payload: &T) -> Box<RawValue> {
        use migration_ipc_protocol::messages::Category;

        let mut value = serde_json::to_value(payload).expect("a payload can be written");
        if let Some(serde_json::Value::String(category)) = value.get_mut("category")
            && let Category::Other(_) = Category::from(category.as_str())
        {
            *category = Category::Files.to_string();
        }
        serde_json::value::to_raw_value(&value).expect("JSON")
    }
}

/// Members whose values are texts of open enumerations.
const OPEN: [&str; 8] = [
    "overallStatus",
    "priority",
    "reason",
    "scope",
    "category",
    "categories",
    "code",
    "role",
];

/// Whether `reason` and the like are texts of an enumeration in this type.
fn is_open(message_type: &str, member: &str) -> bool {
    // The reason of a shutdown is a text for people, but kept all the same.
    OPEN.contains(&member) && message_type != "BACKUP_COMPLETED"
}

fn check<T: MessagePayload + Debug + PartialEq>(message: &IpcMessage) {
    let mut read: T = match message.payload() {
        Ok(read) => read,
        Err(error) => {
            variants::note_payload(&error);
            assert!(error.to_string().len() <= MAX_ERROR_TEXT);
            return;
        }
    };
    let written = subject::encode(&read);
    let again = IpcMessage {
        payload: Some(written.clone()),
        ..message.clone()
    };
    let again: T = again.payload().expect("what was written can be read");
    assert_eq!(read, again);
    assert_eq!(subject::encode(&again).get(), written.get());

    let came: Value = match message.payload.as_deref().map(RawValue::get) {
        // A number that no `Value` holds is in a member that nobody reads.
        Some(text) => serde_json::from_str(text).unwrap_or_default(),
        None => Value::Null,
    };
    let went: Value = serde_json::from_str(written.get()).expect("JSON");
    for member in OPEN.into_iter().filter(|member| is_open(T::TYPE, member)) {
        if let (Some(came), Some(went)) = (came.get(member), went.get(member))
            && !came.is_null()
        {
            assert_eq!(came, went, "`{member}` is kept as it came");
        }
    }
    // What the runtime asks every payload.
    let _ = (read.announcement(), read.latest_key());
    if let Some(user) = read.user_id_mut() {
        *user = "1000".into();
    }
}

type Check = fn(&IpcMessage);

/// Every type that has a payload, and how it is checked. An answer has the type of a hello.
pub const TYPES: [(&str, Check); 27] = [
    (BackupRequest::TYPE, check::<BackupRequest>),
    (StatusUpdate::TYPE, check::<StatusUpdate>),
    (EscalationNotice::TYPE, check::<EscalationNotice>),
    (ConfigurationUpdate::TYPE, check::<ConfigurationUpdate>),
    (ShutdownRequest::TYPE, check::<ShutdownRequest>),
    (AgentStarted::TYPE, check::<AgentStarted>),
    (BackupStarted::TYPE, check::<BackupStarted>),
    (BackupProgress::TYPE, check::<BackupProgress>),
    (BackupCompleted::TYPE, check::<BackupCompleted>),
    (DelayRequest::TYPE, check::<DelayRequest>),
    (UserAction::TYPE, check::<UserAction>),
    (ErrorReport::TYPE, check::<ErrorReport>),
    (Heartbeat::TYPE, check::<Heartbeat>),
    (Acknowledgment::TYPE, check::<Acknowledgment>),
    (Hello::TYPE, check::<Hello>),
    (HelloAnswer::TYPE, check::<HelloAnswer>),
    (Credit::TYPE, check::<Credit>),
    (Goodbye::TYPE, check::<Goodbye>),
    (Cancel::TYPE, check::<Cancel>),
    (ItemGrant::TYPE, check::<ItemGrant>),
    (Acknowledgments::TYPE, check::<Acknowledgments>),
    (BatchOutcomes::TYPE, check::<BatchOutcomes>),
    (ChunksBegin::TYPE, check::<ChunksBegin>),
    (ChunksTake::TYPE, check::<ChunksTake>),
    (ChunksEnd::TYPE, check::<ChunksEnd>),
    (Encrypted::TYPE, check::<Encrypted>),
    (EncryptionConfirm::TYPE, check::<EncryptionConfirm>),
];

/// Reads a message as the type that it names, if that is a built-in one.
pub fn read_as_named(message: &IpcMessage) {
    for (name, check) in TYPES {
        if message.message_type == name {
            check(message);
        }
    }
    if let Err(error) = message.payload::<Heartbeat>() {
        match &error {
            PayloadError::Missing => assert!(message.payload.is_none()),
            PayloadError::NotAnObject | PayloadError::Invalid(_) => {
                assert!(message.payload.is_some());
            }
        }
        variants::note_payload(&error);
    }
}

/// Which type, and the payload as JSON.
pub fn run(data: &[u8]) {
    let Some((which, text)) = data.split_first() else {
        return;
    };
    let (name, check) = TYPES[usize::from(*which) % TYPES.len()];
    let Ok(text) = String::from_utf8(text.to_vec()) else {
        return;
    };
    let message = IpcMessage {
        id: MessageId::new("m").expect("a short id"),
        message_type: MessageType::new(name),
        timestamp: Timestamp::UNIX_EPOCH,
        payload: RawValue::from_string(text).ok(),
        in_reply_to: None,
    };
    check(&message);
}
