//! Owner, access control list and mandatory label of a pipe, as the operating system has them.

use std::fmt;

use super::sid::Sid;

/// `FILE_ALL_ACCESS`.
pub const FULL_RIGHTS: u32 = 0x001F_01FF;

/// What a client needs to open a pipe for reading and writing: `FILE_GENERIC_READ` and
/// `FILE_GENERIC_WRITE` without [`CREATE_PIPE_INSTANCE`], so that no client can add an instance of
/// its own to the service's pipe.
pub const CLIENT_RIGHTS: u32 = 0x0012_019B;

/// `FILE_CREATE_PIPE_INSTANCE`. It is `FILE_APPEND_DATA` of a file, and so a part of
/// `FILE_GENERIC_WRITE`
/// ([named pipe security](https://learn.microsoft.com/windows/win32/ipc/named-pipe-security-and-access-rights)).
pub const CREATE_PIPE_INSTANCE: u32 = 0x4;

/// The right to change the access control list.
pub const WRITE_DAC: u32 = 0x0004_0000;

/// The right to become the owner.
pub const WRITE_OWNER: u32 = 0x0008_0000;

/// `READ_CONTROL`.
pub(super) const READ_CONTROL: u32 = 0x0002_0000;

/// Generic rights in an entry that was never mapped to those of a file: `GENERIC_ALL` and
/// `GENERIC_WRITE`.
const GENERIC_CONTROL: u32 = 0x1000_0000 | 0x4000_0000;

/// What makes its holder a second master of a pipe: to add instances, to change the access control
/// list, to become the owner. `DELETE` is not among them; the pipe file system deletes a pipe with
/// its last handle and never at somebody's wish.
pub const CONTROL_RIGHTS: u32 = CREATE_PIPE_INSTANCE | WRITE_DAC | WRITE_OWNER | GENERIC_CONTROL;

/// One entry of an access control list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ace {
    /// Grants the rights of the mask to the account or group.
    Allow(u32, Sid),
    /// Denies them.
    Deny(u32, Sid),
    /// An entry of another type (`ACE_HEADER.AceType`).
    Other(u8),
}

/// How far a process is trusted, whoever runs it
/// ([mandatory integrity control](https://learn.microsoft.com/windows/win32/secauthz/mandatory-integrity-control)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntegrityLevel(u32);

impl IntegrityLevel {
    /// What has no level of its own, or runs as the anonymous.
    pub const UNTRUSTED: Self = Self(0);
    /// Sandboxes.
    pub const LOW: Self = Self(0x1000);
    /// What users start.
    pub const MEDIUM: Self = Self(0x2000);
    /// What administrators start elevated.
    pub const HIGH: Self = Self(0x3000);
    /// Services.
    pub const SYSTEM: Self = Self(0x4000);

    /// Any level: the last part of its SID `S-1-16-<level>`.
    pub const fn new(level: u32) -> Self {
        Self(level)
    }

    /// The number.
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for IntegrityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IntegrityLevel({:#x})", self.0)
    }
}

impl fmt::Display for IntegrityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::UNTRUSTED => "untrusted",
            Self::LOW => "low",
            Self::MEDIUM => "medium",
            Self::HIGH => "high",
            Self::SYSTEM => "system",
            Self(other) => return write!(f, "{other:#x}"),
        };
        f.pad(name)
    }
}

/// A mandatory label: what those below its level may not do, whatever the access control list says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// The level.
    pub level: IntegrityLevel,
    /// `SYSTEM_MANDATORY_LABEL_NO_*`: 1 no write up, 2 no read up, 4 no execute up.
    pub policy: u32,
}

impl Label {
    /// Nobody below medium reads or writes. Without a label of its own a pipe counts as medium with
    /// "no write up" alone, and a sandbox could open it for reading and occupy its instances.
    pub const MEDIUM: Self = Self {
        level: IntegrityLevel::MEDIUM,
        policy: NO_WRITE_UP | NO_READ_UP,
    };
}

/// `SYSTEM_MANDATORY_LABEL_NO_WRITE_UP`.
pub(super) const NO_WRITE_UP: u32 = 1;
/// `SYSTEM_MANDATORY_LABEL_NO_READ_UP`.
pub(super) const NO_READ_UP: u32 = 2;
/// `SYSTEM_MANDATORY_LABEL_NO_EXECUTE_UP`.
pub(super) const NO_EXECUTE_UP: u32 = 4;

/// What a pipe's security descriptor says of its owner and of who may do what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PipeSecurity {
    /// The owner.
    pub owner: Sid,
    /// The discretionary access control list in its order; `None` lets everybody do everything.
    pub dacl: Option<Vec<Ace>>,
    /// The mandatory label; `None` counts as medium with "no write up".
    pub label: Option<Label>,
}

impl PipeSecurity {
    /// Who beside `masters` could make themselves a second master of the pipe
    /// ([`CONTROL_RIGHTS`]): the first entry that lets them. `None` means nobody can.
    ///
    /// Every entry that grants counts, whatever denies before it. An entry of a type that is not
    /// known here counts as one that grants.
    pub fn other_master(&self, masters: &[&Sid]) -> Option<OtherMaster> {
        let Some(dacl) = &self.dacl else {
            return Some(OtherMaster::Everybody);
        };
        dacl.iter().find_map(|entry| match entry {
            Ace::Allow(mask, sid) if mask & CONTROL_RIGHTS != 0 && !masters.contains(&sid) => {
                Some(OtherMaster::Account {
                    account: sid.clone(),
                    rights: mask & CONTROL_RIGHTS,
                })
            }
            Ace::Allow(..) | Ace::Deny(..) => None,
            Ace::Other(kind) => Some(OtherMaster::Unknown(*kind)),
        })
    }
}

/// Who could make themselves a second master of a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtherMaster {
    /// There is no list.
    Everybody,
    /// This account or group, by these rights.
    Account {
        /// Its SID.
        account: Sid,
        /// Which of [`CONTROL_RIGHTS`] it is given.
        rights: u32,
    },
    /// An entry of this type, which is not evaluated here.
    Unknown(u8),
}

impl fmt::Display for OtherMaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("it has no access control list, so everybody"),
            Self::Account { account, rights } => {
                write!(f, "{account}, which is given the rights {rights:#x},")
            }
            Self::Unknown(kind) => write!(f, "whom its entry of type {kind} names, perhaps,"),
        }?;
        f.write_str(" may add instances to the pipe, change who may do so, or take its ownership")
    }
}
