//! The policy of a server, as a program says it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use migration_ipc_protocol::hello::Role;
use migration_ipc_protocol::{Sender, message_types};
use migration_ipc_transport::PeerIdentity;
use thiserror::Error;

use super::role::{Rule, Verdict};

/// How many roles of its own a server may have: with the two built-in ones a set of roles is one
/// machine word.
pub const MAX_ROLES: usize = 62;

/// The longest name of a role in bytes. Names are in the hello, which is small.
pub const MAX_ROLE_NAME: usize = 64;

/// Which types each role may send to a server. What is not named here is refused, also where a
/// handler or the fallback would take it.
///
/// | policy | agents | operators | roles of your own |
/// |---|---|---|---|
/// | [`Policy::migration`], the default | the built-in types of agents, and handled types whose payload declares [`Sender::Agent`] or [`Sender::Any`] | handled types whose payload declares [`Sender::Operator`] or [`Sender::Any`] | what [`allow`](Self::allow) names |
/// | [`Policy::strict`] | what [`allow`](Self::allow) names | likewise | likewise |
///
/// What runs a connection (hello, acknowledgments, heartbeats, credit, goodbye) is no matter of a
/// policy: everybody does that for its own connection, and it reaches no handler.
///
/// A peer is an agent unless its hello asks for another role and the role's rule lets it have that,
/// on what the operating system says of it. A role holds for the whole connection, and takes the
/// place of that of an agent: whoever needs both uses two connections.
///
/// ```
/// use migration_ipc::{Policy, Role};
///
/// let policy = Policy::migration()
///     // A role of its own: the account of the monitoring may ask for the status.
///     .role("monitoring", |peer| peer.account().as_str() == "997")
///     .allow("monitoring", "SERVICE_STATUS_REQUEST")
///     // A type without a handler of its own, for the fallback.
///     .allow(Role::Agent, "DISK_SPACE");
/// # drop(policy);
/// ```
#[derive(Debug, Clone)]
#[must_use = "a policy is given to `IpcServerBuilder::policy`"]
pub struct Policy {
    pub(super) listing: Listing,
    pub(super) roles: Vec<(Role, Rule)>,
    pub(super) more_operators: Option<Rule>,
    pub(super) allowed: BTreeMap<Role, BTreeSet<Cow<'static, str>>>,
    pub(super) unlisted: BTreeSet<Role>,
}

/// Where the table begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listing {
    /// With what types and payloads declare.
    Declared,
    /// With nothing.
    Empty,
}

/// A policy that cannot be meant: a mistake of the program.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A role has two rules, or the name of a built-in one.
    #[error("the role `{0}` is there already; give it another name")]
    Duplicate(Role),
    /// A name that cannot be a role's.
    #[error(
        "`{}` is no name of a role; use 1 to {MAX_ROLE_NAME} bytes without control characters",
        .0.as_str().escape_debug()
    )]
    Name(Role),
    /// There are more roles than [`MAX_ROLES`].
    #[error("{0} roles are too many; {MAX_ROLES} are the most")]
    TooMany(usize),
    /// Something is allowed to a role that nobody defined.
    #[error("types are allowed to the role `{0}`, which nobody defined; define it with `role`")]
    Unknown(Role),
    /// A type that no peer of a server may send, or that its connection takes care of.
    #[error("`{message_type}` cannot be allowed to `{role}`: {why}")]
    Type {
        /// The role.
        role: Role,
        /// The type.
        message_type: Cow<'static, str>,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Default for Policy {
    fn default() -> Self {
        Self::migration()
    }
}

impl Policy {
    /// What is right for the migration protocol: everybody sends what is declared to be theirs. A type
    /// of your own gets in by its handler, with the payload's
    /// [`SENDER`](migration_ipc_protocol::MessagePayload::SENDER) as its declaration.
    pub fn migration() -> Self {
        Self::beginning_with(Listing::Declared)
    }

    /// Nothing but what [`allow`](Self::allow) names.
    pub fn strict() -> Self {
        Self::beginning_with(Listing::Empty)
    }

    fn beginning_with(listing: Listing) -> Self {
        Self {
            listing,
            roles: Vec::new(),
            more_operators: None,
            allowed: BTreeMap::new(),
            unlisted: BTreeSet::new(),
        }
    }

    /// Lets a role send a type.
    pub fn allow(
        mut self,
        role: impl Into<Role>,
        message_type: impl Into<Cow<'static, str>>,
    ) -> Self {
        let types = self.allowed.entry(role.into()).or_default();
        types.insert(message_type.into());
        self
    }

    /// Lets a role send every type that has no handler and is not built in, to the fallback. Where
    /// the fallback passes things on without looking, so does this.
    pub fn allow_unlisted(mut self, role: impl Into<Role>) -> Self {
        self.unlisted.insert(role.into());
        self
    }

    /// A role of your own, for peers that ask for it in their hello and that the rule lets have it.
    ///
    /// The rule is asked once for a connection, on the connection's task: it must not block. A panic
    /// and an error are a no.
    pub fn role<V: Verdict>(
        mut self,
        name: &str,
        rule: impl Fn(&PeerIdentity) -> V + Send + Sync + 'static,
    ) -> Self {
        self.roles.push((Role::from(name), Rule::new(rule)));
        self
    }

    /// Who may be an operator beside administrators and the service's own account. The rule is as
    /// for [`role`](Self::role).
    pub fn more_operators<V: Verdict>(
        mut self,
        rule: impl Fn(&PeerIdentity) -> V + Send + Sync + 'static,
    ) -> Self {
        self.more_operators = Some(Rule::new(rule));
        self
    }

    pub(super) fn check(&self) -> Result<(), PolicyError> {
        if self.roles.len() > MAX_ROLES {
            return Err(PolicyError::TooMany(self.roles.len()));
        }
        let mut known = BTreeSet::from([Role::Agent, Role::Operator]);
        for (role, _) in &self.roles {
            let name = role.as_str();
            if name.is_empty() || name.len() > MAX_ROLE_NAME || name.chars().any(char::is_control) {
                return Err(PolicyError::Name(role.clone()));
            }
            if !known.insert(role.clone()) {
                return Err(PolicyError::Duplicate(role.clone()));
            }
        }
        let mentioned = self.allowed.keys().chain(&self.unlisted);
        if let Some(unknown) = mentioned.into_iter().find(|role| !known.contains(role)) {
            return Err(PolicyError::Unknown(unknown.clone()));
        }
        for (role, types) in &self.allowed {
            for message_type in types {
                let why = match message_types::sender_of(message_type) {
                    Some(Sender::Service) => "only services send it",
                    Some(Sender::Any) => "connections take care of it themselves",
                    Some(Sender::Agent | Sender::Operator) | None => continue,
                };
                return Err(PolicyError::Type {
                    role: role.clone(),
                    message_type: message_type.clone(),
                    why,
                });
            }
        }
        Ok(())
    }
}
