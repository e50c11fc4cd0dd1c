//! Who may connect to a socket.
//!
//! The kernel enforces what a file's mode can say: everybody, the owner, or one group. What a mode
//! cannot say is decided at accept, from credentials that the kernel kept when the client connected:
//! several groups, and any rule for a socket whose mode somebody else has set.

use std::io;
use std::os::fd::AsFd as _;

use nix::unistd::Group;
use rustix::fs::{Gid, Mode};
use tokio::net::UnixStream;

use super::kernel;
use crate::endpoint::Endpoint;
use crate::error::BindError;
use crate::identity::PeerIdentity;
use crate::seam::{Access, Audience, BindOptions};

/// What the kernel and this process each do about it.
#[derive(Debug)]
pub(super) struct Admission {
    /// The socket's mode: to connect, a client needs the right to write (unix(7)).
    pub(super) mode: Mode,
    /// The socket's group.
    pub(super) group: Option<Gid>,
    /// What is asked of each client.
    pub(super) check: Check,
}

/// What a client must be beside root or the service's own account.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Whoever the kernel let through.
    None,
    /// Nothing else.
    Operators,
    /// A member of one of these.
    Groups(Vec<u32>),
}

impl Admission {
    /// For a socket that this process makes, and gives a mode.
    pub(super) fn of_own_socket(
        endpoint: &Endpoint,
        options: &BindOptions,
    ) -> Result<Self, BindError> {
        let (mode, group, check) = match Check::of(endpoint, options)? {
            Check::None => (0o666, None, Check::None),
            Check::Operators => (0o600, None, Check::None),
            Check::Groups(groups) => match *groups {
                [group] => (0o660, Some(Gid::from_raw(group)), Check::None),
                _ => (0o666, None, Check::Groups(groups)),
            },
        };
        let mode = Mode::from_raw_mode(mode);
        Ok(Self { mode, group, check })
    }
}

impl Check {
    /// For a socket whose mode is not this process's affair.
    pub(super) fn of(endpoint: &Endpoint, options: &BindOptions) -> Result<Self, BindError> {
        let unsupported = |problem| BindError::Unsupported {
            endpoint: endpoint.clone(),
            problem,
        };
        let names = match (&options.audience, &options.access) {
            (Audience::Operators, _) => return Ok(Self::Operators),
            (Audience::Agents, Access::AnyLocalUser) => return Ok(Self::None),
            (Audience::Agents, Access::Groups(names)) => names,
            (
                Audience::Agents,
                Access::InteractiveUsers | Access::User(_) | Access::Descriptor(_),
            ) => {
                let problem = "a socket is for any local user or for groups, and has no security \
                               descriptor; let groups in that have the right members";
                return Err(unsupported(problem.to_owned()));
            }
        };
        if names.is_empty() {
            let problem = "no group is named; name at least one, or admit any local user";
            return Err(unsupported(problem.to_owned()));
        }
        if names.len() > 1 && cfg!(not(target_os = "linux")) {
            let problem = "this system tells no groups of a peer; name one group";
            return Err(unsupported(problem.to_owned()));
        }
        let groups = names.iter().map(|name| {
            find_group(name).map_err(|problem| unsupported(format!("the group {name:?} {problem}")))
        });
        groups.collect::<Result<_, _>>().map(Self::Groups)
    }

    /// Whether a client may stay.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell its groups: such a client may not.
    pub(super) fn admits(&self, socket: &UnixStream, peer: &PeerIdentity) -> io::Result<bool> {
        let allowed = match self {
            Self::None => return Ok(true),
            Self::Operators => &[],
            Self::Groups(allowed) => &**allowed,
        };
        if peer.is_operator() {
            return Ok(true);
        }
        if allowed.is_empty() {
            return Ok(false);
        }
        if allowed.contains(&socket.peer_cred()?.gid()) {
            return Ok(true);
        }
        let groups = kernel::peer_groups(socket.as_fd())?;
        Ok(groups.iter().any(|group| allowed.contains(group)))
    }
}

fn find_group(name: &str) -> Result<u32, String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = name.parse().ok().filter(|&id| id != u32::MAX);
        return id.ok_or_else(|| "is no group id".to_owned());
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("does not exist".to_owned()),
        Err(error) => Err(format!("cannot be looked up: {error}")),
    }
}
