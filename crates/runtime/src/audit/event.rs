//! What is recorded.

use std::fmt::{self, Display};

use migration_ipc_protocol::Timestamp;
use migration_ipc_transport::PeerIdentity;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::connection::{ConnectionId, IpcConnection};

/// How much of a text that a peer chose is recorded, in bytes before it is escaped: enough to
/// recognise a name, which may have a kilobyte, and no more room than a record is worth.
pub const MAX_AUDIT_TEXT: usize = 256;

/// A text of a record. What a peer chose is cut to [`MAX_AUDIT_TEXT`], and its control characters,
/// line ends and invisible characters are written as escapes, so that no peer writes a record of its
/// own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditText(Box<str>);

impl AuditText {
    /// The text as it is recorded.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let cut = text.floor_char_boundary(MAX_AUDIT_TEXT);
        let (kept, rest) = text.split_at(cut);
        let mut escaped = kept.escape_debug().to_string();
        if !rest.is_empty() {
            escaped.push('…');
        }
        Self(escaped.into())
    }

    /// The escaped text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for AuditText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditEvent {
    /// A server begins, with this policy: the types that each role may send.
    PolicyInForce {
        /// Roles with their types; `*` stands for every type that is not named.
        table: Vec<(AuditText, Vec<AuditText>)>,
    },
    /// A peer is connected and has shown what it is.
    Connected {
        /// Its role from now on.
        role: AuditText,
    },
    /// A connection was refused before its peer could say anything.
    ConnectionRefused {
        /// Why: a name from a closed set.
        reason: &'static str,
        /// More about it, for people.
        detail: Option<AuditText>,
    },
    /// A connection ended because of what its peer did.
    Disconnected {
        /// Why: [`DisconnectReason::label`](crate::DisconnectReason::label).
        reason: &'static str,
    },
    /// A peer asked for a role that it may not have.
    RoleRefused {
        /// The role.
        role: AuditText,
        /// Why: a name from a closed set.
        reason: &'static str,
    },
    /// A peer was refused because the two do not encrypt: it offers nothing where that is demanded,
    /// or does not have the same key.
    EncryptionRefused {
        /// The name of the key, if it named one; never the key.
        key: Option<AuditText>,
        /// Why: a name from a closed set.
        reason: &'static str,
    },
    /// A peer sent a message of a type that it may not send.
    TypeRefused {
        /// The type.
        message_type: AuditText,
    },
    /// A message names another account than its sender's.
    IdentityMismatch {
        /// The account that it names.
        named: AuditText,
    },
    /// A peer does something that only its role allows; recorded before it is done.
    Action {
        /// What it does: a name of the program's.
        action: &'static str,
        /// What it does that with, for example a message's type.
        what: AuditText,
        /// Whom or what it concerns.
        to: AuditText,
    },
    /// So many records of a peer were left out, because it caused too many.
    Suppressed {
        /// How many.
        records: u64,
    },
}

/// Whether what happened was let happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditOutcome {
    /// It was.
    Allowed,
    /// It was refused.
    Refused,
    /// It was over before it was finished.
    Ended,
}

impl AuditOutcome {
    /// The text in a record.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Ended => "ended",
        }
    }
}

impl AuditEvent {
    /// The name in a record.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PolicyInForce { .. } => "policy_in_force",
            Self::Connected { .. } => "connected",
            Self::ConnectionRefused { .. } => "connection_refused",
            Self::Disconnected { .. } => "disconnected",
            Self::RoleRefused { .. } => "role_refused",
            Self::EncryptionRefused { .. } => "encryption_refused",
            Self::TypeRefused { .. } => "type_refused",
            Self::IdentityMismatch { .. } => "identity_mismatch",
            Self::Action { .. } => "action",
            Self::Suppressed { .. } => "suppressed",
        }
    }

    /// Whether it was let happen.
    #[must_use]
    pub const fn outcome(&self) -> AuditOutcome {
        match self {
            Self::PolicyInForce { .. } | Self::Connected { .. } | Self::Action { .. } => {
                AuditOutcome::Allowed
            }
            Self::Disconnected { .. } => AuditOutcome::Ended,
            Self::ConnectionRefused { .. }
            | Self::RoleRefused { .. }
            | Self::EncryptionRefused { .. }
            | Self::TypeRefused { .. }
            | Self::IdentityMismatch { .. }
            | Self::Suppressed { .. } => AuditOutcome::Refused,
        }
    }

    /// Whether a peer could cause any number of these. What is the program's own doing, or that of
    /// somebody with a role, is never left out.
    pub(super) const fn is_limited(&self) -> bool {
        match self {
            Self::PolicyInForce { .. } | Self::Action { .. } | Self::Suppressed { .. } => false,
            Self::Connected { .. }
            | Self::ConnectionRefused { .. }
            | Self::Disconnected { .. }
            | Self::RoleRefused { .. }
            | Self::EncryptionRefused { .. }
            | Self::TypeRefused { .. }
            | Self::IdentityMismatch { .. } => true,
        }
    }
}

/// The event's own members.
impl Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PolicyInForce { table } => {
                for (index, (role, types)) in table.iter().enumerate() {
                    let gap = if index == 0 { "" } else { "; " };
                    write!(f, "{gap}{role}:")?;
                    for message_type in types {
                        write!(f, " {message_type}")?;
                    }
                }
                Ok(())
            }
            Self::Connected { role } => write!(f, "role {role}"),
            Self::ConnectionRefused {
                reason,
                detail: Some(detail),
            } => write!(f, "{reason}: {detail}"),
            Self::ConnectionRefused {
                reason,
                detail: None,
            }
            | Self::Disconnected { reason } => f.write_str(reason),
            Self::RoleRefused { role, reason } => write!(f, "role {role}: {reason}"),
            Self::EncryptionRefused {
                key: Some(key),
                reason,
            } => write!(f, "key {key}: {reason}"),
            Self::EncryptionRefused { key: None, reason } => f.write_str(reason),
            Self::TypeRefused { message_type } => write!(f, "type {message_type}"),
            Self::IdentityMismatch { named } => write!(f, "names account {named}"),
            Self::Action { action, what, to } => write!(f, "{action} {what} to {to}"),
            Self::Suppressed { records } => write!(f, "{records} records left out"),
        }
    }
}

/// Whom a record is about, as the operating system says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSubject {
    /// The account.
    pub account: AuditText,
    /// The operating system's session.
    pub os_session: Option<u32>,
    /// The session that the peer announced.
    pub session: Option<AuditText>,
    /// The process, for people alone: ids are recycled.
    pub process_id: Option<u32>,
    /// The connection, if there is one already.
    pub connection: Option<ConnectionId>,
}

impl AuditSubject {
    pub(crate) fn of(peer: &PeerIdentity, connection: Option<ConnectionId>) -> Self {
        Self {
            account: AuditText::new(peer.account().as_str()),
            os_session: peer.session().id(),
            session: None,
            process_id: peer.process_id(),
            connection,
        }
    }

    pub(crate) fn of_connection(connection: &IpcConnection) -> Self {
        let announced = connection.announcement();
        Self {
            session: announced.map(|it| AuditText::new(it.session_id.as_str())),
            ..Self::of(connection.peer(), Some(connection.id()))
        }
    }
}

impl Display for AuditSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {}", self.account)?;
        if let Some(id) = self.os_session {
            write!(f, " in session {id}")?;
        }
        if let Some(session) = &self.session {
            write!(f, " announced as \"{session}\"")?;
        }
        if let Some(id) = self.process_id {
            write!(f, " (process {id})")?;
        }
        if let Some(id) = self.connection {
            write!(f, " on {id}")?;
        }
        Ok(())
    }
}

/// One record. As JSON it is one flat object, with the members that are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When, by the server's clock.
    pub time: Timestamp,
    /// Whom it is about; nobody knows who is behind a connection that was refused at once.
    pub subject: Option<AuditSubject>,
    /// What happened.
    pub event: AuditEvent,
}

impl Serialize for AuditRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &self.time)?;
        map.serialize_entry("event", self.event.name())?;
        map.serialize_entry("outcome", self.event.outcome().as_str())?;
        if let Some(subject) = &self.subject {
            map.serialize_entry("account", subject.account.as_str())?;
            if let Some(id) = subject.os_session {
                map.serialize_entry("osSession", &id)?;
            }
            if let Some(session) = &subject.session {
                map.serialize_entry("session", session.as_str())?;
            }
            if let Some(id) = subject.process_id {
                map.serialize_entry("process", &id)?;
            }
            if let Some(id) = subject.connection {
                map.serialize_entry("connection", &id.to_string())?;
            }
        }
        match &self.event {
            AuditEvent::PolicyInForce { table } => {
                map.serialize_entry("policy", &Listing(table))?;
            }
            AuditEvent::Connected { role } => map.serialize_entry("role", role.as_str())?,
            AuditEvent::ConnectionRefused { reason, detail } => {
                map.serialize_entry("reason", reason)?;
                if let Some(detail) = detail {
                    map.serialize_entry("detail", detail.as_str())?;
                }
            }
            AuditEvent::Disconnected { reason } => map.serialize_entry("reason", reason)?,
            AuditEvent::RoleRefused { role, reason } => {
                map.serialize_entry("role", role.as_str())?;
                map.serialize_entry("reason", reason)?;
            }
            AuditEvent::EncryptionRefused { key, reason } => {
                if let Some(key) = key {
                    map.serialize_entry("key", key.as_str())?;
                }
                map.serialize_entry("reason", reason)?;
            }
            AuditEvent::TypeRefused { message_type } => {
                map.serialize_entry("type", message_type.as_str())?;
            }
            AuditEvent::IdentityMismatch { named } => {
                map.serialize_entry("named", named.as_str())?;
            }
            AuditEvent::Action { action, what, to } => {
                map.serialize_entry("action", action)?;
                map.serialize_entry("what", what.as_str())?;
                map.serialize_entry("to", to.as_str())?;
            }
            AuditEvent::Suppressed { records } => map.serialize_entry("records", records)?,
        }
        map.end()
    }
}

/// The policy as an object: roles with their types.
struct Listing<'a>(&'a [(AuditText, Vec<AuditText>)]);

impl Serialize for Listing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let roles = self.0.iter().map(|(role, types)| {
            let types: Vec<&str> = types.iter().map(AuditText::as_str).collect();
            (role.as_str(), types)
        });
        serializer.collect_map(roles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_peer_is_one_line_and_has_a_limit() {
        let hostile = "a\r\n\u{1b}[2J\u{9b}\u{202e}\u{2028}\0b";
        let text = AuditText::new(hostile);
        assert_eq!(text.as_str(), r"a\r\n\u{1b}[2J\u{9b}\u{202e}\u{2028}\0b");
        let long = AuditText::new(&"é".repeat(1000));
        assert_eq!(long.as_str().chars().count(), MAX_AUDIT_TEXT / 2 + 1);
        assert!(long.as_str().ends_with('…'));
    }
}
