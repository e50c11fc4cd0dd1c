//! Values that must not be seen where people and programs look by the way: logs, errors, metrics.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// What stands for the value wherever something is printed.
const HIDDEN: &str = "Sensitive(hidden)";

/// A member of a payload that is written to the wire and nowhere else: a password, a token, a key.
///
/// On the wire it is the value that it wraps. It has no `Display`, its `Debug` is the same for every
/// value, and an error says that the member is wrong and not what it holds. Who needs the value
/// calls [`expose`](Self::expose), which is easy to search for.
///
/// * Wrap the whole member: `Sensitive<Vec<String>>` and not `Vec<Sensitive<String>>`, of which a peer
///   may send a text instead of the list, and see it quoted in the error.
/// * Set [`SENSITIVE`](crate::MessagePayload::SENSITIVE) for the payload. Then no error quotes any
///   of its members: a sender may have put the secret into the wrong one.
/// * What a handler writes into its own error, or panics with, goes to the peer and into logs as it
///   is.
/// * The value is stored and sent as it is. Outbox, mail, dead letters and the journal hold payloads as
///   they are on the wire, and an operator who asks for a dead letter sees it. Memory is not
///   wiped.
///
/// ```
/// use migration_ipc_protocol::{MessagePayload, Sender, Sensitive};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// #[serde(rename_all = "camelCase")]
/// struct UnlockArchive {
///     archive: String,
///     password: Sensitive<String>,
/// }
///
/// impl MessagePayload for UnlockArchive {
///     const TYPE: &'static str = "UNLOCK_ARCHIVE";
///     const SENDER: Sender = Sender::Service;
///     const SENSITIVE: bool = true;
/// }
///
/// let unlock = UnlockArchive {
///     archive: "mail.pst".to_owned(),
///     password: Sensitive::new("hunter2".to_owned()),
/// };
/// assert!(!format!("{unlock:?}").contains("hunter2"));
/// assert_eq!(unlock.password.expose(), "hunter2");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Sensitive<T>(T);

impl<T> Sensitive<T> {
    /// Hides a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one place that needs it.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// The value, no longer hidden.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Sensitive<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Sensitive<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<T: Serialize> Serialize for Sensitive<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0
            .serialize(serializer)
            .map_err(|_quoted| ser::Error::custom("a sensitive value cannot be written"))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Sensitive<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The reader's own text quotes what it found.
        T::deserialize(deserializer).map(Self).map_err(|_quoted| {
            de::Error::custom("a sensitive member is not what its type asks for")
        })
    }
}

/// What the `Debug` of a message shows of its payload: the payload's own type would hide its
/// sensitive members, and the text does not know its type.
pub(crate) struct Size(usize);

impl Size {
    pub(crate) const fn of(text: &str) -> Self {
        Self(text.len())
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}
