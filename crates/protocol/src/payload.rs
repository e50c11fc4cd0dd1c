//! What makes a Rust type the payload of a message type.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::limits::MAX_ERROR_TEXT;
use crate::messages::{SessionId, UserId};

/// Who may send a type of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// An agent, to the service.
    Agent,
    /// The service, to agents.
    Service,
    /// An operator, to the service.
    Operator,
    /// Everybody.
    Any,
}

/// Whether handling a message twice comes to the same as handling it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Idempotence {
    /// It does: the message may be sent again when it is not known what became of it.
    Idempotent,
    /// Nobody says so: a receiver that does not recognise repetitions gets it once at most.
    Unknown,
}

/// How urgent a message is among those that wait to be sent over one connection. None waits for
/// ever: each kind gets its share of what is sent, the larger the more urgent it is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// It may take its time: large messages that should not hold up others.
    Bulk,
    /// As usual.
    #[default]
    Normal,
    /// Ahead of others.
    High,
}

/// Who an agent says it is, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Announcement {
    /// The name of the user in the agent's spelling.
    pub user_id: UserId,
    /// The session that the agent runs in.
    pub session_id: SessionId,
}

/// A Rust type that is the payload of one type of message. The built-in types are defined with this
/// trait and nothing more, and so are an application's own.
///
/// ```
/// use migration_ipc_protocol::{MessagePayload, Sender};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// #[serde(rename_all = "camelCase")]
/// struct DiskSpace {
///     free_bytes: u64,
/// }
///
/// impl MessagePayload for DiskSpace {
///     const TYPE: &'static str = "DISK_SPACE";
///     const SENDER: Sender = Sender::Agent;
/// }
/// ```
pub trait MessagePayload: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name of the type, at most [`MAX_MESSAGE_TYPE`](crate::limits::MAX_MESSAGE_TYPE) bytes.
    const TYPE: &'static str;

    /// Who may send it.
    const SENDER: Sender;

    /// Whether a receiver that does not recognise repetitions may get it twice.
    const IDEMPOTENCE: Idempotence = Idempotence::Unknown;

    /// How urgent messages of this type are, unless their sender says otherwise. Messages of
    /// different priority may overtake each other; what must keep its order needs the same one.
    const PRIORITY: Priority = Priority::Normal;

    /// Whether it has members that no log and no error may show, usually
    /// [`Sensitive`](crate::Sensitive) ones. Then an error about the payload says where it is wrong
    /// and quotes nothing of it.
    const SENSITIVE: bool = false;

    /// The member that names an account. What a peer wrote there is checked against its identity
    /// and replaced.
    fn user_id_mut(&mut self) -> Option<&mut UserId> {
        None
    }

    /// Who the sender says it is, if this message says so.
    fn announcement(&self) -> Option<Announcement> {
        None
    }

    /// What the message is the latest word on, where a queue keeps only the latest: of two waiting
    /// messages of one type with the same key the older one is dropped.
    fn latest_key(&self) -> String {
        String::new()
    }
}

/// A message that is answered with another one, whose type its sender knows.
///
/// ```
/// use migration_ipc_protocol::{MessagePayload, Request, Sender};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// struct AskDiskSpace {
///     folder: String,
/// }
///
/// impl MessagePayload for AskDiskSpace {
///     const TYPE: &'static str = "ASK_DISK_SPACE";
///     const SENDER: Sender = Sender::Service;
/// }
///
/// #[derive(Debug, Serialize, Deserialize)]
/// struct DiskSpace {
///     free: u64,
/// }
///
/// impl MessagePayload for DiskSpace {
///     const TYPE: &'static str = "DISK_SPACE";
///     const SENDER: Sender = Sender::Agent;
/// }
///
/// impl Request for AskDiskSpace {
///     type Reply = DiskSpace;
/// }
/// ```
pub trait Request: MessagePayload {
    /// What it is answered with.
    type Reply: MessagePayload;
}

/// A message that is answered with a number of items, and then with a reply.
pub trait StreamingRequest: MessagePayload {
    /// What comes before the reply, any number of times.
    type Item: MessagePayload;
    /// What it is answered with in the end.
    type Reply: MessagePayload;
}

/// Why a payload is not what its type asks for. The peer is at fault.
///
/// The text is what goes into an error acknowledgment; it is at most [`MAX_ERROR_TEXT`] bytes, and
/// may quote the peer: escape it where control characters do harm, as in logs. Of a payload that is
/// [`SENSITIVE`](MessagePayload::SENSITIVE) it quotes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// There is none.
    #[error("Failed to deserialize payload: there is none")]
    Missing,
    /// It is not a JSON object.
    #[error("Failed to deserialize payload: not an object")]
    NotAnObject,
    /// Its members are not those of the type.
    #[error("Failed to deserialize payload: {0}")]
    Invalid(Box<str>),
}

/// The text of the acknowledgment for a type that nobody handles.
#[must_use]
pub fn no_handler_text(message_type: &str) -> String {
    format!("No handler registered for message type: {message_type}")
}

/// What an error may quote, so that introduction and quotation together fit [`MAX_ERROR_TEXT`].
pub(crate) const MAX_DETAIL: usize = MAX_ERROR_TEXT - 64;

/// Cuts a text that may quote a peer.
pub(crate) fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_DETAIL));
    text
}

pub(crate) fn read<T: MessagePayload>(payload: Option<&RawValue>) -> Result<T, PayloadError> {
    read_text(payload.ok_or(PayloadError::Missing)?.get())
}

/// The text need not be JSON: what is not is an error.
pub(crate) fn read_text<T: MessagePayload>(text: &str) -> Result<T, PayloadError> {
    // A derived reader would take an array for a struct.
    if !text.starts_with('{') {
        return Err(PayloadError::NotAnObject);
    }
    serde_json::from_str(text).map_err(|error| {
        let detail = if T::SENSITIVE {
            unquoted(&error)
        } else {
            shorten(error.to_string())
        };
        PayloadError::Invalid(detail.into())
    })
}

/// What an error says that quotes nothing: what kind it is, and where.
fn unquoted(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        Category::Data => "a member is not what the type asks for",
        Category::Syntax => "not JSON",
        Category::Eof => "it ends too early",
        Category::Io => "it cannot be read",
    };
    format!("{what} at line {} column {}", error.line(), error.column())
}
