//! What a descriptor lets a token do, as `AccessCheck` decides it.
//!
//! The sources are [How AccessCheck works](https://learn.microsoft.com/windows/win32/secauthz/how-dacls-control-access-to-an-object)
//! and the algorithms of MS-DTYP 2.5.3 (access check, mandatory integrity check, lowbox tokens).
//! What concerns files alone (object entries, conditions, claims) is not there: a descriptor with an
//! entry of such a type is taken to grant nothing by it, and [`PipeSecurity::other_master`] distrusts
//! it.

use super::descriptor::{
    Ace, CLIENT_RIGHTS, CREATE_PIPE_INSTANCE, IntegrityLevel, Label, NO_EXECUTE_UP, NO_READ_UP,
    NO_WRITE_UP, PipeSecurity, READ_CONTROL, WRITE_DAC, WRITE_OWNER,
};
use super::sid::Sid;

/// `FILE_GENERIC_READ`.
const GENERIC_READ: u32 = 0x0012_0089;
/// `FILE_GENERIC_WRITE`.
const GENERIC_WRITE: u32 = 0x0012_0116;
/// `FILE_GENERIC_EXECUTE`.
const GENERIC_EXECUTE: u32 = 0x0012_00A0;

/// What a pipe without a label is taken to have.
const DEFAULT_LABEL: Label = Label {
    level: IntegrityLevel::MEDIUM,
    policy: NO_WRITE_UP,
};

/// What somebody may want to do with a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PipeAction {
    /// Open it for reading and writing, as a client.
    Connect,
    /// Create an instance of it, as a server.
    AddInstance,
    /// Change who may do what.
    ChangeDacl,
    /// Become its owner.
    TakeOwnership,
}

impl PipeAction {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Connect,
        Self::AddInstance,
        Self::ChangeDacl,
        Self::TakeOwnership,
    ];

    /// The rights that it needs. A client that asks for generic rights needs no
    /// [`CREATE_PIPE_INSTANCE`]: the pipe file system leaves that one out for clients.
    pub const fn rights(self) -> u32 {
        match self {
            Self::Connect => CLIENT_RIGHTS,
            Self::AddInstance => CREATE_PIPE_INSTANCE,
            Self::ChangeDacl => WRITE_DAC,
            Self::TakeOwnership => WRITE_OWNER,
        }
    }
}

/// How a group of a token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupUse {
    /// For what grants and what denies.
    Enabled,
    /// Only for what denies: Administrators in the everyday token of an administrator.
    DenyOnly,
    /// Not at all.
    Disabled,
}

/// Who somebody is, as far as access checks go. Made by tests, or read from the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    user: Sid,
    groups: Vec<(Sid, GroupUse)>,
    integrity: IntegrityLevel,
    package: Option<Sid>,
    restricting: Option<Vec<Sid>>,
    takes_ownership: bool,
}

impl Token {
    /// A token of medium integrity without groups.
    pub fn new(user: Sid) -> Self {
        Self {
            user,
            groups: Vec::new(),
            integrity: IntegrityLevel::MEDIUM,
            package: None,
            restricting: None,
            takes_ownership: false,
        }
    }

    /// Adds an enabled group.
    #[must_use]
    pub fn group(self, group: Sid) -> Self {
        self.group_used(group, GroupUse::Enabled)
    }

    /// Adds a group that counts as is said.
    #[must_use]
    pub fn group_used(mut self, group: Sid, group_use: GroupUse) -> Self {
        self.groups.push((group, group_use));
        self
    }

    /// Sets the integrity level.
    #[must_use]
    pub fn integrity(mut self, level: IntegrityLevel) -> Self {
        self.integrity = level;
        self
    }

    /// Makes it that of an app container with this package SID (`S-1-15-2-...`).
    #[must_use]
    pub fn app_container(mut self, package: Sid) -> Self {
        self.package = Some(package);
        self
    }

    /// Restricts it: what is granted must be granted to these as well.
    #[must_use]
    pub fn restricted_to(mut self, restricting: Vec<Sid>) -> Self {
        self.restricting = Some(restricting);
        self
    }

    /// Gives it the privilege to take ownership of anything, which administrators have.
    #[must_use]
    pub fn taking_ownership(mut self) -> Self {
        self.takes_ownership = true;
        self
    }

    /// Whether an entry for this SID grants something to this token.
    fn is_granted_as(&self, sid: &Sid) -> bool {
        self.user == *sid
            || self
                .groups
                .iter()
                .any(|(group, group_use)| group == sid && *group_use == GroupUse::Enabled)
    }

    /// Whether an entry for this SID denies something to this token.
    fn is_denied_as(&self, sid: &Sid) -> bool {
        self.user == *sid
            || self
                .groups
                .iter()
                .any(|(group, group_use)| group == sid && *group_use != GroupUse::Disabled)
    }
}

impl PipeSecurity {
    /// Whether a token may do this with the pipe.
    pub fn allows(&self, token: &Token, action: PipeAction) -> bool {
        self.granted(token) & action.rights() == action.rights()
    }

    /// All rights that a token has: what `AccessCheck` answers for `MAXIMUM_ALLOWED`.
    pub fn granted(&self, token: &Token) -> u32 {
        let mut granted = self.granted_by_list(
            |sid| token.is_granted_as(sid),
            |sid| token.is_denied_as(sid),
        );
        if let Some(dacl) = &self.dacl
            && token.is_granted_as(&self.owner)
            && !names_owner_rights(dacl)
        {
            granted |= READ_CONTROL | WRITE_DAC;
        }
        if let Some(restricting) = &token.restricting {
            let is_one = |sid: &Sid| restricting.contains(sid);
            granted &= self.granted_by_list(is_one, is_one);
        }
        if let Some(package) = &token.package {
            let is_one = |sid: &Sid| sid == package || *sid == Sid::all_application_packages();
            granted &= self.granted_by_list(is_one, is_one);
        }
        if token.takes_ownership {
            granted |= WRITE_OWNER;
        }
        granted & self.allowed_by_label(token.integrity)
    }

    /// Entry by entry: the first one that speaks of a right decides it.
    fn granted_by_list(&self, grants: impl Fn(&Sid) -> bool, denies: impl Fn(&Sid) -> bool) -> u32 {
        let Some(dacl) = &self.dacl else {
            return u32::MAX;
        };
        let (mut granted, mut denied) = (0, 0);
        for entry in dacl {
            match entry {
                Ace::Allow(mask, sid) if grants(sid) => granted |= mask & !denied,
                Ace::Deny(mask, sid) if denies(sid) => denied |= mask & !granted,
                Ace::Allow(..) | Ace::Deny(..) | Ace::Other(_) => {}
            }
        }
        granted
    }

    /// The mandatory integrity check, which comes before the list and cannot be widened by it.
    fn allowed_by_label(&self, level: IntegrityLevel) -> u32 {
        let label = self.label.unwrap_or(DEFAULT_LABEL);
        if level >= label.level {
            return u32::MAX;
        }
        [
            (NO_READ_UP, GENERIC_READ),
            (NO_WRITE_UP, GENERIC_WRITE),
            (NO_EXECUTE_UP, GENERIC_EXECUTE),
        ]
        .into_iter()
        .filter(|(forbidden, _)| label.policy & forbidden == 0)
        .fold(0, |allowed, (_, rights)| allowed | rights)
    }
}

fn names_owner_rights(dacl: &[Ace]) -> bool {
    dacl.iter().any(|entry| match entry {
        Ace::Allow(_, sid) | Ace::Deny(_, sid) => *sid == Sid::owner_rights(),
        Ace::Other(_) => false,
    })
}
