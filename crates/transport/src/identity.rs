//! Who is at the other end, as the operating system says.

use std::fmt;
use std::sync::Arc;

use crate::security::{IntegrityLevel, Sid};

/// The operating system's own name of an account, in the one form in which it is compared.
///
/// On Unix the decimal user id (`1000`), on Windows the SID (`S-1-5-21-...`). Cheap to clone.
///
/// The canonical form is made by the transport or by [`resolve_account`](crate::resolve_account);
/// [`AccountId::new`] takes its text as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// Wraps an id that is canonical already, for example one that was stored before.
    pub fn new(canonical: impl Into<Arc<str>>) -> Self {
        Self(canonical.into())
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountId({})", self.0)
    }
}

impl AsRef<str> for AccountId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The log-on session that a peer runs in, where the operating system has such a thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OsSession {
    /// The operating system tells no session: always so on Unix.
    #[default]
    Unknown,
    /// The session id of the peer's token (Windows; 0 is the services' session).
    Id(u32),
}

impl OsSession {
    /// The session id, if there is one.
    pub fn id(self) -> Option<u32> {
        match self {
            Self::Unknown => None,
            Self::Id(id) => Some(id),
        }
    }
}

impl fmt::Display for OsSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("-"),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

/// What the operating system lets a peer's account do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// root; SYSTEM, or a token in which the Administrators group is enabled.
    Administrator,
    /// The account that this process runs as.
    ServiceAccount,
    /// Everybody else.
    Ordinary,
}

/// What a Windows access token says of its holder.
///
/// The transport reads all of it from the operating system, once; if anything of it cannot be read
/// the peer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TokenFacts {
    /// The account.
    pub user: Sid,
    /// The session (`TokenSessionId`); 0 is the services'.
    pub session: u32,
    /// Which log-on it belongs to.
    pub logon: LogonId,
    /// The integrity level.
    pub integrity: IntegrityLevel,
    /// Whether it is one half of an administrator's pair.
    pub elevation: Elevation,
    /// The groups that are enabled, without those that count only for denials.
    pub groups: Vec<Sid>,
    /// Whether its holder is confined.
    pub confinement: Confinement,
}

impl TokenFacts {
    /// Those of an everyday token of an account, for tests: session 0, log-on 0, medium integrity, no
    /// groups.
    pub fn new(user: Sid) -> Self {
        Self {
            user,
            session: 0,
            logon: LogonId(0),
            integrity: IntegrityLevel::MEDIUM,
            elevation: Elevation::Default,
            groups: Vec::new(),
            confinement: Confinement::Free,
        }
    }

    /// Whether a group counts for what grants.
    pub fn is_member(&self, group: &Sid) -> bool {
        self.groups.contains(group)
    }
}

/// A log-on, as the operating system numbers them until it is started again
/// (`TokenStatistics.AuthenticationId`). The two halves of an administrator's pair of tokens have
/// one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogonId(pub u64);

impl fmt::Display for LogonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Whether a token is one half of an administrator's pair (`TokenElevationType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elevation {
    /// There is no pair: an ordinary account, a service, or no user account control.
    Default,
    /// The elevated half.
    Full,
    /// The everyday half.
    Limited,
}

/// Whether the holder of a token is confined to less than its account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Confinement {
    /// It is not.
    Free,
    /// What is granted must be granted to a second list of accounts too (`CreateRestrictedToken`).
    Restricted,
    /// It is in an app container, and may be restricted too.
    AppContainer,
}

/// A peer's identity, frozen when it was established.
///
/// Nothing that a peer sends changes it, nor does anything that its process does later: a peer that
/// drops its privileges after it connected is still known as what it connected as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    account: AccountId,
    session: OsSession,
    process_id: Option<u32>,
    privilege: Privilege,
    token: Option<Arc<TokenFacts>>,
}

impl PeerIdentity {
    /// An identity without session and process id.
    ///
    /// The transports make these from what the kernel says; a caller makes them for
    /// [`memory`](crate::memory) connections.
    pub fn new(account: AccountId, privilege: Privilege) -> Self {
        Self {
            account,
            session: OsSession::Unknown,
            process_id: None,
            privilege,
            token: None,
        }
    }

    /// Sets the operating system's session.
    #[must_use]
    pub fn with_session(mut self, session: OsSession) -> Self {
        self.session = session;
        self
    }

    /// Sets the process id.
    #[must_use]
    pub fn with_process_id(mut self, process_id: Option<u32>) -> Self {
        self.process_id = process_id;
        self
    }

    /// Sets what the peer's token says.
    #[must_use]
    pub fn with_token(mut self, token: TokenFacts) -> Self {
        self.token = Some(Arc::new(token));
        self
    }

    /// The account, in canonical form.
    pub fn account(&self) -> &AccountId {
        &self.account
    }

    /// The operating system's session.
    pub fn session(&self) -> OsSession {
        self.session
    }

    /// The process that connected, for logs only: ids are recycled, and a connected socket or
    /// handle can be handed to another process.
    pub fn process_id(&self) -> Option<u32> {
        self.process_id
    }

    /// What the account may do here.
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// What the client's token said when it was identified: on Windows for the clients of a service;
    /// never on Unix.
    pub fn token(&self) -> Option<&TokenFacts> {
        self.token.as_deref()
    }

    /// Whether the peer may act as an operator: an administrator, or the service's own account.
    pub fn is_operator(&self) -> bool {
        match self.privilege {
            Privilege::Administrator | Privilege::ServiceAccount => true,
            Privilege::Ordinary => false,
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {}", self.account)?;
        if let Some(id) = self.session.id() {
            write!(f, " in session {id}")?;
        }
        if let Some(id) = self.process_id {
            write!(f, " (process {id})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_administrators_and_the_service_account() {
        let peer = |privilege| PeerIdentity::new(AccountId::new("1000"), privilege);
        assert!(peer(Privilege::Administrator).is_operator());
        assert!(peer(Privilege::ServiceAccount).is_operator());
        assert!(!peer(Privilege::Ordinary).is_operator());
    }

    #[test]
    fn display_names_what_is_known() {
        let peer = PeerIdentity::new(AccountId::new("1000"), Privilege::Ordinary);
        assert_eq!(peer.to_string(), "account 1000");
        let peer = peer
            .with_session(OsSession::Id(3))
            .with_process_id(Some(42));
        assert_eq!(peer.to_string(), "account 1000 in session 3 (process 42)");
    }
}
