//! The descriptors that a service's pipe may have.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::descriptor::{Ace, CLIENT_RIGHTS, FULL_RIGHTS, Label, OtherMaster, PipeSecurity};
use super::sddl;
use super::sid::Sid;

/// The security descriptor of a service's pipe: who owns it and who may do what.
///
/// Whatever the way in which one was made, it has an explicit owner, is protected from inheritance,
/// has an access control list, lets nobody but its owner, SYSTEM and Administrators add instances,
/// change the list or take ownership, and has a mandatory label. Without a descriptor a pipe would
/// be readable for everybody, the anonymous included
/// ([named pipe security](https://learn.microsoft.com/windows/win32/ipc/named-pipe-security-and-access-rights)).
///
/// | made by | owner | who may connect |
/// |---|---|---|
/// | [`authenticated`](Self::authenticated), the default | SYSTEM | Authenticated Users: services and scheduled tasks too |
/// | [`interactive`](Self::interactive) | SYSTEM | whoever is logged on at the console or over remote desktop |
/// | [`user`](Self::user) | SYSTEM | one account |
/// | [`operators`](Self::operators) | SYSTEM | nobody else, but Administrators over the network too |
/// | [`development`](Self::development) | an ordinary account | Authenticated Users, over the network too |
/// | [`builder`](Self::builder) | of your choice | of your choice |
/// | [`parse`](str::parse) | as the text says | as the text says |
///
/// SYSTEM and Administrators may connect in every case but the last; the anonymous and guests in
/// none of them, nor log-ons over the network except where it says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PipeDescriptor(PipeSecurity);

impl PipeDescriptor {
    /// Any account that logged on to this machine.
    pub fn authenticated() -> Self {
        Self::builder(Sid::system())
            .refuse(Sid::network())
            .admit(Sid::authenticated_users())
            .build()
    }

    /// Whoever is logged on at the console or over remote desktop. The hardened one: what runs as a
    /// service or a scheduled task cannot connect.
    pub fn interactive() -> Self {
        Self::builder(Sid::system())
            .refuse(Sid::network())
            .admit(Sid::interactive())
            .build()
    }

    /// One account, or the members of one group.
    pub fn user(account: Sid) -> Self {
        Self::builder(Sid::system())
            .refuse(Sid::network())
            .admit(account)
            .build()
    }

    /// Administrators, also through WinRM and SSH, whose log-ons are such over the network.
    pub fn operators() -> Self {
        Self::builder(Sid::system()).build()
    }

    /// As [`authenticated`](Self::authenticated), of an ordinary account, which may do everything.
    pub fn development(owner: Sid) -> Self {
        Self::builder(owner)
            .admit(Sid::authenticated_users())
            .build()
    }

    /// Begins with an owner who, with SYSTEM and Administrators, may do everything, and with nobody
    /// else.
    pub fn builder(owner: Sid) -> PipeDescriptorBuilder {
        PipeDescriptorBuilder {
            owner,
            refused: vec![Sid::anonymous(), Sid::guests()],
            admitted: Vec::new(),
        }
    }

    /// Who owns the pipe.
    pub fn owner(&self) -> &Sid {
        &self.0.owner
    }

    /// All of it.
    pub fn security(&self) -> &PipeSecurity {
        &self.0
    }
}

/// The descriptor in the
/// [string format](https://learn.microsoft.com/windows/win32/secauthz/security-descriptor-string-format),
/// protected from inheritance (`D:P`).
impl fmt::Display for PipeDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads the string format (SDDL). A text without a mandatory label gets
/// [`Label::MEDIUM`](super::Label::MEDIUM). A primary group (`G:`) means nothing for a pipe and is
/// dropped. Entries other than `A` and `D` in the list, and `ML` in the label, are refused.
impl FromStr for PipeDescriptor {
    type Err = DescriptorError;

    fn from_str(text: &str) -> Result<Self, DescriptorError> {
        let read = sddl::parse(text)?;
        let owner = read.owner.ok_or(DescriptorError::NoOwner)?;
        let dacl = read.dacl.ok_or(DescriptorError::NoList)?;
        if !read.protected {
            return Err(DescriptorError::NotProtected);
        }
        let security = PipeSecurity {
            owner,
            dacl: Some(dacl),
            label: Some(read.label.unwrap_or(Label::MEDIUM)),
        };
        let masters = [&security.owner, &Sid::system(), &Sid::administrators()];
        match security.other_master(&masters) {
            None => Ok(Self(security)),
            Some(OtherMaster::Account { account, rights }) => {
                Err(DescriptorError::OtherMaster { account, rights })
            }
            Some(OtherMaster::Everybody | OtherMaster::Unknown(_)) => Err(DescriptorError::NoList),
        }
    }
}

/// Builds a [`PipeDescriptor`].
#[derive(Clone, Debug)]
#[must_use = "a descriptor is made by `build`"]
pub struct PipeDescriptorBuilder {
    owner: Sid,
    refused: Vec<Sid>,
    admitted: Vec<Sid>,
}

impl PipeDescriptorBuilder {
    /// Lets an account or the members of a group connect, and do nothing else.
    pub fn admit(mut self, account: Sid) -> Self {
        self.admitted.push(account);
        self
    }

    /// Refuses an account or the members of a group, whoever else they are. The anonymous and guests
    /// are refused already.
    pub fn refuse(mut self, account: Sid) -> Self {
        self.refused.push(account);
        self
    }

    /// The descriptor, with [`Label::MEDIUM`](super::Label::MEDIUM).
    pub fn build(self) -> PipeDescriptor {
        let mut masters = vec![Sid::system(), Sid::administrators()];
        if !masters.contains(&self.owner) {
            masters.push(self.owner.clone());
        }
        // The order is canonical: what denies comes first.
        let denies = self
            .refused
            .into_iter()
            .map(|sid| Ace::Deny(FULL_RIGHTS, sid));
        let masters = masters.into_iter().map(|sid| Ace::Allow(FULL_RIGHTS, sid));
        let admits = self
            .admitted
            .into_iter()
            .map(|sid| Ace::Allow(CLIENT_RIGHTS, sid));
        PipeDescriptor(PipeSecurity {
            owner: self.owner,
            dacl: Some(denies.chain(masters).chain(admits).collect()),
            label: Some(Label::MEDIUM),
        })
    }
}

/// A text that is no descriptor for a service's pipe. The caller's mistake.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorError {
    /// It is not in the string format, or uses what means nothing for a pipe.
    #[error("the descriptor is not understood at {at:?}: {expected}")]
    Syntax {
        /// The rest of the text from there.
        at: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Nobody owns it.
    #[error("the descriptor names no owner; begin it with one, for example O:SY for SYSTEM")]
    NoOwner,
    /// It has no access control list, which would let everybody do everything.
    #[error("the descriptor has no access control list; add one, for example D:P(A;;FA;;;SY)")]
    NoList,
    /// Entries could be inherited.
    #[error("the descriptor's list is not protected from inheritance; write D:P and not D:")]
    NotProtected,
    /// Somebody could make themselves a second master of the pipe.
    #[error(
        "the descriptor gives {account} the rights {rights:#x}: to add instances to the pipe \
         (0x4, also a part of GW, FW and FA), to change who may do so (0x40000) or to take \
         ownership (0x80000). Only its owner, SYSTEM and Administrators may have these; to let \
         clients read and write give them 0x12019b"
    )]
    OtherMaster {
        /// Who.
        account: Sid,
        /// Which of these rights.
        rights: u32,
    },
}
