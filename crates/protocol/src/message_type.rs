//! The names of message types.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;

use crate::payload::MessagePayload;

/// The names of the types that this crate defines.
pub mod message_types {
    use crate::payload::{Idempotence, Sender};

    /// Service to agent: asks the user to start a backup.
    pub const BACKUP_REQUEST: &str = "BACKUP_REQUEST";
    /// Service to agent: how the migration as a whole stands.
    pub const STATUS_UPDATE: &str = "STATUS_UPDATE";
    /// Service to agent: the case has been handed to support staff.
    pub const ESCALATION_NOTICE: &str = "ESCALATION_NOTICE";
    /// Service to agent: a setting has changed.
    pub const CONFIGURATION_UPDATE: &str = "CONFIGURATION_UPDATE";
    /// Service to agent: the agent is to exit.
    pub const SHUTDOWN_REQUEST: &str = "SHUTDOWN_REQUEST";
    /// Agent to service: an agent is there and ready.
    pub const AGENT_STARTED: &str = "AGENT_STARTED";
    /// Agent to service: a backup has begun.
    pub const BACKUP_STARTED: &str = "BACKUP_STARTED";
    /// Agent to service: how far a backup is.
    pub const BACKUP_PROGRESS: &str = "BACKUP_PROGRESS";
    /// Agent to service: a backup has ended.
    pub const BACKUP_COMPLETED: &str = "BACKUP_COMPLETED";
    /// Agent to service: the user asks for a later deadline.
    pub const DELAY_REQUEST: &str = "DELAY_REQUEST";
    /// Agent to service: the user did something else.
    pub const USER_ACTION: &str = "USER_ACTION";
    /// Agent to service: something went wrong at the agent.
    pub const ERROR_REPORT: &str = "ERROR_REPORT";
    /// Both ways: the sender is alive.
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// Both ways: a message was handled, or why it was not.
    pub const ACKNOWLEDGMENT: &str = "ACKNOWLEDGMENT";
    /// Peers that negotiate: what the sender can do, and the answer to it.
    pub const HELLO: &str = "HELLO";
    /// Peers that negotiated it: how many more messages the receiver takes.
    pub const CREDIT: &str = "CREDIT";
    /// Peers that negotiated it: the sender is about to close.
    pub const GOODBYE: &str = "GOODBYE";

    /// The fourteen types that every peer knows.
    pub const PLAIN: [&str; 14] = [
        BACKUP_REQUEST,
        STATUS_UPDATE,
        ESCALATION_NOTICE,
        CONFIGURATION_UPDATE,
        SHUTDOWN_REQUEST,
        AGENT_STARTED,
        BACKUP_STARTED,
        BACKUP_PROGRESS,
        BACKUP_COMPLETED,
        DELAY_REQUEST,
        USER_ACTION,
        ERROR_REPORT,
        HEARTBEAT,
        ACKNOWLEDGMENT,
    ];

    /// Peers that negotiated it: nobody waits for the answer to a request any more.
    pub const CANCEL: &str = "CANCEL";
    /// Peers that negotiated it: how many more items of a streaming reply its reader takes.
    pub const ITEMS: &str = "ITEMS";
    /// Peers that negotiated it: many messages were handled, or why some were not.
    pub const ACKNOWLEDGMENTS: &str = "ACKNOWLEDGMENTS";
    /// Peers that negotiated it: many messages in one.
    pub const BATCH: &str = "BATCH";
    /// Peers that negotiated it: what came of the messages of a batch.
    pub const BATCH_OUTCOMES: &str = "BATCH_OUTCOMES";
    /// Peers that negotiated it: a body follows in pieces.
    pub const CHUNKS_BEGIN: &str = "CHUNKS_BEGIN";
    /// Peers that negotiated it: how much of that body its receiver takes.
    pub const CHUNKS_TAKE: &str = "CHUNKS_TAKE";
    /// Peers that negotiated it: no more of that body.
    pub const CHUNKS_END: &str = "CHUNKS_END";
    /// Peers that negotiated it: the sender encrypts from here on.
    pub const ENCRYPTED: &str = "ENCRYPTED";
    /// Peers that negotiated it: what the sender has seen of both hellos.
    pub const ENCRYPTION_CONFIRM: &str = "ENCRYPTION_CONFIRM";

    /// The types with which peers that negotiate run their connection, and `BATCH`.
    pub const NEGOTIATED: [&str; 13] = [
        HELLO,
        CREDIT,
        GOODBYE,
        CANCEL,
        ITEMS,
        ACKNOWLEDGMENTS,
        BATCH,
        BATCH_OUTCOMES,
        CHUNKS_BEGIN,
        CHUNKS_TAKE,
        CHUNKS_END,
        ENCRYPTED,
        ENCRYPTION_CONFIRM,
    ];

    /// Whether a type runs the connection, and is no work for handlers.
    #[must_use]
    pub fn is_control(name: &str) -> bool {
        matches!(
            name,
            HEARTBEAT
                | ACKNOWLEDGMENT
                | HELLO
                | CREDIT
                | GOODBYE
                | CANCEL
                | ITEMS
                | ACKNOWLEDGMENTS
                | BATCH_OUTCOMES
                | CHUNKS_BEGIN
                | CHUNKS_TAKE
                | CHUNKS_END
                | ENCRYPTED
                | ENCRYPTION_CONFIRM
        )
    }

    /// Who may send a type of this list; `None` for a type that is not built in.
    #[must_use]
    pub fn sender_of(name: &str) -> Option<Sender> {
        match name {
            BACKUP_REQUEST | STATUS_UPDATE | ESCALATION_NOTICE | CONFIGURATION_UPDATE
            | SHUTDOWN_REQUEST => Some(Sender::Service),
            AGENT_STARTED | BACKUP_STARTED | BACKUP_PROGRESS | BACKUP_COMPLETED | DELAY_REQUEST
            | USER_ACTION | ERROR_REPORT => Some(Sender::Agent),
            HEARTBEAT | ACKNOWLEDGMENT => Some(Sender::Any),
            _ => NEGOTIATED.contains(&name).then_some(Sender::Any),
        }
    }

    /// Whether a receiver that does not recognise repetitions may get a type of this list twice;
    /// of a type that is not built in nobody says so.
    #[must_use]
    pub fn idempotence_of(name: &str) -> Idempotence {
        match name {
            AGENT_STARTED | BACKUP_STARTED | BACKUP_PROGRESS | BACKUP_COMPLETED | ERROR_REPORT => {
                Idempotence::Idempotent
            }
            _ => Idempotence::Unknown,
        }
    }
}

/// The name of a message type. A name that this crate defines takes no memory of its own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageType(Cow<'static, str>);

impl MessageType {
    /// The type with this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let known = message_types::PLAIN
            .into_iter()
            .chain(message_types::NEGOTIATED);
        match known.into_iter().find(|known| *known == name) {
            Some(known) => Self::from_static(known),
            None => Self(Cow::Owned(name.to_owned())),
        }
    }

    /// The type with this name, without a copy of it.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The type of messages with this payload.
    #[must_use]
    pub const fn of<T: MessagePayload>() -> Self {
        Self::from_static(T::TYPE)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&'static str> for MessageType {
    fn from(name: &'static str) -> Self {
        Self::from_static(name)
    }
}

impl Deref for MessageType {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for MessageType {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for MessageType {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for MessageType {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
