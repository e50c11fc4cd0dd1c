//! The policy of a server that runs: asked for every message, so it takes no lock and no memory.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use migration_ipc_protocol::hello::Role;
use migration_ipc_protocol::{Sender, message_types};
use migration_ipc_transport::PeerIdentity;

use super::policy::{Listing, Policy, PolicyError};
use super::role::{No, Rule};
use crate::dispatch::{MessageDispatcher, Route};

/// A role by its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoleId(u8);

impl RoleId {
    pub(crate) const AGENT: Self = Self(0);
    pub(crate) const OPERATOR: Self = Self(1);

    pub(crate) fn from_index(index: u8) -> Self {
        Self(index)
    }

    pub(crate) fn index(self) -> u8 {
        self.0
    }
}

/// The roles that may send a type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Roles(u64);

impl Roles {
    fn add(&mut self, role: RoleId) {
        self.0 |= Self::bit(role);
    }

    fn has(self, role: RoleId) -> bool {
        self.0 & Self::bit(role) != 0
    }

    /// A role that cannot be is in no set.
    fn bit(role: RoleId) -> u64 {
        1_u64.checked_shl(role.0.into()).unwrap_or(0)
    }

    /// Those to whom a type belongs that its payload declares to be theirs.
    fn declared(sender: Sender) -> Self {
        let mut roles = Self::default();
        match sender {
            Sender::Agent => roles.add(RoleId::AGENT),
            Sender::Operator => roles.add(RoleId::OPERATOR),
            Sender::Any => {
                roles.add(RoleId::AGENT);
                roles.add(RoleId::OPERATOR);
            }
            Sender::Service => {}
        }
        roles
    }
}

/// Why a peer does not get the role that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoleDenied {
    /// There is no such role.
    Unknown,
    /// The rule says no.
    Decided,
    /// The rule failed or panicked.
    Failed,
}

impl RoleDenied {
    /// A short name from a closed set, for records.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_role",
            Self::Decided => "not_entitled",
            Self::Failed => "rule_failed",
        }
    }
}

/// Which role may send what, for the handlers of one dispatcher.
#[derive(Debug)]
pub(crate) struct Table {
    /// By [`RoleId`]; the two built-in roles come first, and have no rule of their own.
    roles: Vec<(Role, Option<Rule>)>,
    more_operators: Option<Rule>,
    /// By the number of the handler.
    handled: Vec<Roles>,
    /// Types without a handler, which go to the fallback.
    named: HashMap<Box<str>, Roles, RandomState>,
    /// All other types, which go to the fallback too.
    unlisted: Roles,
    /// The same for people: the types of each role.
    listing: Vec<(Role, Vec<Box<str>>)>,
}

impl Table {
    /// The table for these handlers.
    pub(crate) fn new(policy: Policy, dispatcher: &MessageDispatcher) -> Result<Self, PolicyError> {
        policy.check()?;
        let mut roles = vec![(Role::Agent, None), (Role::Operator, None)];
        roles.extend(
            policy
                .roles
                .into_iter()
                .map(|(role, rule)| (role, Some(rule))),
        );
        let id_of = |role: &Role| {
            let index = roles.iter().position(|(known, _)| known == role)?;
            u8::try_from(index).ok().map(RoleId)
        };

        // Ordered, so that what is recorded of it is the same at every start.
        let mut by_type: BTreeMap<&str, Roles> = BTreeMap::new();
        if policy.listing == Listing::Declared {
            for name in message_types::PLAIN {
                // Control is the connection's own, and no fallback gets it.
                let sender = message_types::sender_of(name).filter(|it| *it != Sender::Any);
                by_type.insert(name, sender.map(Roles::declared).unwrap_or_default());
            }
            for route in dispatcher.routes() {
                by_type.insert(route.message_type(), Roles::declared(route.sender()));
            }
        }
        for (role, types) in &policy.allowed {
            for message_type in types {
                if let Some(id) = id_of(role) {
                    by_type.entry(message_type).or_default().add(id);
                }
            }
        }
        let mut unlisted = Roles::default();
        for role in &policy.unlisted {
            if let Some(id) = id_of(role) {
                unlisted.add(id);
            }
        }

        let mut handled = vec![Roles::default(); dispatcher.routes().count()];
        for route in dispatcher.routes() {
            // A service is spoken to by its clients, whatever a policy says.
            let of_services = route.sender() == Sender::Service;
            let allowed = by_type.get(route.message_type()).filter(|_| !of_services);
            if let (Some(place), Some(allowed)) = (handled.get_mut(route.number()), allowed) {
                *place = *allowed;
            }
        }
        let listing = roles
            .iter()
            .map(|(role, _)| {
                let mut types = Vec::new();
                if let Some(id) = id_of(role) {
                    let of_role = by_type.iter().filter(|(_, roles)| roles.has(id));
                    types.extend(of_role.map(|(name, _)| Box::from(*name)));
                    if unlisted.has(id) {
                        types.push("*".into());
                    }
                }
                (role.clone(), types)
            })
            .collect();
        // What is built in and allowed to nobody is not unlisted.
        for name in message_types::PLAIN
            .into_iter()
            .chain(message_types::NEGOTIATED)
        {
            by_type.entry(name).or_default();
        }
        let named = by_type
            .into_iter()
            .map(|(name, roles)| (name.into(), roles))
            .collect();
        Ok(Self {
            roles,
            more_operators: policy.more_operators,
            handled,
            named,
            unlisted,
            listing,
        })
    }

    /// Whether a role may send messages of this type, which go to this route.
    pub(crate) fn permits(&self, role: RoleId, route: &Route, message_type: &str) -> bool {
        let roles = if route.is_typed() {
            self.handled.get(route.number()).copied()
        } else {
            let named = self.named.get(message_type).copied();
            named.or(Some(self.unlisted))
        };
        roles.is_some_and(|roles| roles.has(role))
    }

    /// Whether a peer may have the role that it asks for, by what the operating system says of it.
    pub(crate) fn grant(&self, role: &Role, peer: &PeerIdentity) -> Result<RoleId, RoleDenied> {
        let decided = |rule: Option<&Rule>| match rule.map(|rule| rule.ask(peer)) {
            Some(Ok(())) => Ok(()),
            Some(Err(No::Failed)) => Err(RoleDenied::Failed),
            Some(Err(No::Decided)) | None => Err(RoleDenied::Decided),
        };
        match role {
            Role::Agent => Ok(RoleId::AGENT),
            Role::Operator if peer.is_operator() => Ok(RoleId::OPERATOR),
            Role::Operator => decided(self.more_operators.as_ref()).map(|()| RoleId::OPERATOR),
            Role::Other(_) => {
                let found = self.roles.iter().position(|(known, _)| known == role);
                let index = found.ok_or(RoleDenied::Unknown)?;
                let id = u8::try_from(index).map_err(|_| RoleDenied::Unknown)?;
                let rule = self.roles.get(index).and_then(|(_, rule)| rule.as_ref());
                decided(rule).map(|()| RoleId(id))
            }
        }
    }

    /// The role of this number.
    pub(crate) fn role(&self, id: RoleId) -> &Role {
        self.roles
            .get(usize::from(id.0))
            .map_or(&Role::Agent, |(role, _)| role)
    }

    /// The types of each role, for records: `*` stands for all that is not listed.
    pub(crate) fn listing(&self) -> &[(Role, Vec<Box<str>>)] {
        &self.listing
    }
}
