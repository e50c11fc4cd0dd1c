//! Who may do what with a service's pipe.
//!
//! The descriptor is always explicit and protected: without one, a pipe would be readable for
//! everybody, the anonymous included
//! ([named pipe security](https://learn.microsoft.com/windows/win32/ipc/named-pipe-security-and-access-rights)).

use std::fmt;

use super::sid::Sid;
use crate::seam::ServiceMode;

/// One entry of an access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ace {
    /// Grants the rights of the mask to the account or group.
    Allow(u32, Sid),
    /// Denies them.
    Deny(u32, Sid),
    /// An entry of another type (`ACE_HEADER.AceType`).
    Other(u8),
}

/// What a pipe's security descriptor says of its owner and of who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeSecurity {
    /// The owner.
    pub owner: Sid,
    /// The discretionary access control list in its order; `None` lets everybody do everything.
    pub dacl: Option<Vec<Ace>>,
}

/// `FILE_ALL_ACCESS`.
const FULL: u32 = 0x001F_01FF;

/// What a client needs to open a pipe for reading and writing: `FILE_GENERIC_READ` and
/// `FILE_GENERIC_WRITE` without `FILE_CREATE_PIPE_INSTANCE` (0x4), so that no client can add an
/// instance of its own to the service's pipe.
const CLIENT: u32 = 0x0012_019B;

/// Who may connect, beside those who own the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    /// The members of any of these groups; `S-1-5-11` (Authenticated Users) for any local user.
    Groups(Vec<Sid>),
    /// Nobody else.
    None,
}

/// The owner and the access control list of a pipe. Written as SDDL to create it, and compared with
/// what the operating system says afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PipeDescriptor(PipeSecurity);

impl PipeDescriptor {
    /// The descriptor of a service that runs as `account`, or `None` if that account may not own
    /// one in this mode: a production service's pipe belongs to SYSTEM, which is what its clients
    /// check.
    ///
    /// The anonymous and guests are refused in any case, agents' log-ons over the network in
    /// production. (Operators may come through WinRM and SSH, which are such log-ons; a developer
    /// too.) Pipe clients on other machines are refused by the pipe's mode already.
    pub(crate) fn new(account: &Sid, mode: ServiceMode, clients: Clients) -> Option<Self> {
        let production = *account == Sid::system();
        if !production && mode == ServiceMode::Production {
            return None;
        }
        // The order is canonical: what denies comes first.
        let mut dacl = vec![
            Ace::Deny(FULL, Sid::anonymous()),
            Ace::Deny(FULL, Sid::guests()),
        ];
        if production && clients != Clients::None {
            dacl.push(Ace::Deny(FULL, Sid::network()));
        }
        dacl.push(Ace::Allow(FULL, Sid::system()));
        dacl.push(Ace::Allow(FULL, Sid::administrators()));
        if !production {
            dacl.push(Ace::Allow(FULL, account.clone()));
        }
        if let Clients::Groups(groups) = clients {
            dacl.extend(groups.into_iter().map(|group| Ace::Allow(CLIENT, group)));
        }
        Some(Self(PipeSecurity {
            owner: account.clone(),
            dacl: Some(dacl),
        }))
    }

    /// Whether a pipe is protected by exactly this.
    pub(crate) fn equals(&self, actual: &PipeSecurity) -> bool {
        self.0 == *actual
    }
}

/// The descriptor in the
/// [string format](https://learn.microsoft.com/windows/win32/secauthz/security-descriptor-string-format),
/// protected from inheritance (`D:P`).
impl fmt::Display for PipeDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "O:{}D:P", self.0.owner)?;
        self.0
            .dacl
            .iter()
            .flatten()
            .try_for_each(|entry| match entry {
                Ace::Allow(mask, sid) => write!(f, "(A;;{mask:#x};;;{sid})"),
                Ace::Deny(mask, sid) => write!(f, "(D;;{mask:#x};;;{sid})"),
                Ace::Other(_) => Err(fmt::Error),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents() -> Clients {
        Clients::Groups(vec![Sid::authenticated_users()])
    }

    fn developer() -> Sid {
        "S-1-5-21-1-2-3-1001".parse().unwrap()
    }

    #[test]
    fn a_service_lets_authenticated_users_in_but_not_add_instances() {
        let descriptor =
            PipeDescriptor::new(&Sid::system(), ServiceMode::Production, agents()).unwrap();
        assert_eq!(
            descriptor.to_string(),
            "O:S-1-5-18D:P(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)\
             (D;;0x1f01ff;;;S-1-5-2)(A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)\
             (A;;0x12019b;;;S-1-5-11)"
        );
        assert_eq!(CLIENT & 0x4, 0, "FILE_CREATE_PIPE_INSTANCE");
    }

    #[test]
    fn the_operators_endpoint_lets_only_administrators_in_also_over_the_network() {
        let descriptor =
            PipeDescriptor::new(&Sid::system(), ServiceMode::Production, Clients::None).unwrap();
        assert_eq!(
            descriptor.to_string(),
            "O:S-1-5-18D:P(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)\
             (A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)"
        );
    }

    #[test]
    fn another_owner_than_system_needs_development_mode() {
        assert_eq!(
            PipeDescriptor::new(&developer(), ServiceMode::Production, agents()),
            None
        );
        let descriptor =
            PipeDescriptor::new(&developer(), ServiceMode::Development, agents()).unwrap();
        assert_eq!(
            descriptor.to_string(),
            "O:S-1-5-21-1-2-3-1001D:P(D;;0x1f01ff;;;S-1-5-7)(D;;0x1f01ff;;;S-1-5-32-546)\
             (A;;0x1f01ff;;;S-1-5-18)(A;;0x1f01ff;;;S-1-5-32-544)\
             (A;;0x1f01ff;;;S-1-5-21-1-2-3-1001)(A;;0x12019b;;;S-1-5-11)"
        );
    }
    /// Whether somebody with these accounts and groups is granted all of the rights, as
    /// `AccessCheck` decides: entry by entry, until all is granted or something is denied.
    fn grants(descriptor: &PipeDescriptor, token: &[Sid], mut wanted: u32) -> bool {
        for entry in descriptor.0.dacl.as_ref().unwrap() {
            match entry {
                Ace::Deny(mask, sid) if token.contains(sid) && mask & wanted != 0 => return false,
                Ace::Allow(mask, sid) if token.contains(sid) => wanted &= !mask,
                Ace::Allow(..) | Ace::Deny(..) | Ace::Other(_) => {}
            }
        }
        wanted == 0
    }

    #[test]
    fn the_descriptors_let_in_whom_they_should() {
        const ADD_INSTANCE: u32 = CLIENT | 0x4;
        let production = |clients| {
            PipeDescriptor::new(&Sid::system(), ServiceMode::Production, clients).unwrap()
        };
        let (service, operators) = (production(agents()), production(Clients::None));
        let development =
            PipeDescriptor::new(&developer(), ServiceMode::Development, agents()).unwrap();
        let other: Sid = "S-1-5-21-1-2-3-1002".parse().unwrap();
        let user = vec![other, Sid::authenticated_users()];
        let with = |group: Sid| [user.clone(), vec![group]].concat();
        let guest = vec![Sid::guests(), Sid::authenticated_users()];
        let nobody = vec![Sid::anonymous()];

        for everybodys in [&service, &development] {
            assert!(grants(everybodys, &user, CLIENT));
            assert!(
                !grants(everybodys, &user, ADD_INSTANCE),
                "nor squat beside the service"
            );
            assert!(!grants(everybodys, &guest, CLIENT));
            assert!(!grants(everybodys, &nobody, CLIENT));
        }
        assert!(!grants(&service, &with(Sid::network()), CLIENT));
        assert!(grants(&development, &with(Sid::network()), CLIENT));
        assert!(grants(&development, &[developer()], FULL));

        assert!(
            !grants(&operators, &user, CLIENT),
            "an everyday token of an administrator too"
        );
        let remote_administrator = [with(Sid::administrators()), vec![Sid::network()]].concat();
        assert!(grants(&operators, &remote_administrator, CLIENT));
        for any in [&service, &operators, &development] {
            assert!(grants(any, &with(Sid::administrators()), FULL));
            assert!(grants(any, &[Sid::system()], FULL));
        }
    }

    #[test]
    fn only_exactly_what_was_asked_for_is_equal() {
        let descriptor =
            PipeDescriptor::new(&developer(), ServiceMode::Development, agents()).unwrap();
        let asked = descriptor.0.clone();
        assert!(descriptor.equals(&asked));
        let mut other = asked.clone();
        other.owner = Sid::system();
        assert!(!descriptor.equals(&other), "another owner");
        let mut other = asked.clone();
        other.dacl.as_mut().unwrap().push(Ace::Other(9));
        assert!(!descriptor.equals(&other), "one entry more");
        assert!(
            !descriptor.equals(&PipeSecurity {
                dacl: None,
                ..asked
            }),
            "no list: everybody"
        );
    }
}
