//! Identity from the kernel's credentials of a socket.
//!
//! `SO_PEERCRED` (Linux) and `LOCAL_PEERCRED` (macOS) give what the peer's process was when it
//! called `connect`, or `listen`: the kernel kept a copy then. A peer that changes its user id
//! later, passes the socket on, or is gone already, is still known as what connected (unix(7)).
//!
//! A handle of the client's process (`SO_PEERPIDFD`, Linux 6.5) makes one thing certain: that the
//! process id which is logged was that process's at accept, and not a recycled one. It is asked and
//! closed at once, since nothing but a log needs it. A client that wrote its message and exited
//! before it was accepted is served all the same, as the account that it was, without a process id.

use std::os::fd::AsFd as _;

use rustix::process::geteuid;
use tokio::net::UnixStream;

use super::kernel;
use crate::error::IdentifyError;
use crate::identity::{AccountId, PeerIdentity, Privilege};

/// What is known of a client's process at accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "only Linux has handles of processes")
)]
pub(super) enum Process {
    Lives,
    /// It has ended, so that its id may be another's by now; or that could not be looked at.
    Gone,
    /// The system cannot tell.
    Unknown,
}

/// Who connected to a socket of this process.
pub(super) fn of_client(stream: &UnixStream) -> Result<PeerIdentity, IdentifyError> {
    let peer = of_peer(stream)?;
    let process = kernel::peer_process(stream.as_fd()).map_err(|source| IdentifyError::Io {
        action: "asking for the client's process",
        source,
    })?;
    Ok(match process {
        Process::Lives | Process::Unknown => peer,
        Process::Gone => peer.with_process_id(None),
    })
}

/// Who is at the other end of a connected socket: of a server, who called `listen`.
pub(super) fn of_peer(stream: &UnixStream) -> Result<PeerIdentity, IdentifyError> {
    let credentials = stream.peer_cred().map_err(|source| IdentifyError::Io {
        action: "reading the socket's credentials",
        source,
    })?;
    let process_id = credentials.pid().and_then(|id| u32::try_from(id).ok());
    let uid = credentials.uid();
    Ok(PeerIdentity::new(account(uid), privilege(uid, own_uid())).with_process_id(process_id))
}

pub(super) fn own_uid() -> u32 {
    geteuid().as_raw()
}

pub(super) fn account(uid: u32) -> AccountId {
    AccountId::new(uid.to_string())
}

/// The user id of a canonical account id.
pub(super) fn uid(account: &AccountId) -> Option<u32> {
    account.as_str().parse().ok()
}

fn privilege(uid: u32, own: u32) -> Privilege {
    match uid {
        0 => Privilege::Administrator,
        uid if uid == own => Privilege::ServiceAccount,
        _ => Privilege::Ordinary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privilege_follows_the_user_id() {
        assert_eq!(privilege(0, 1000), Privilege::Administrator);
        assert_eq!(privilege(0, 0), Privilege::Administrator);
        assert_eq!(privilege(1000, 1000), Privilege::ServiceAccount);
        assert_eq!(privilege(1001, 1000), Privilege::Ordinary);
    }

    /// A large user id once became negative, and the daemon's checks with it (CVE-2018-19788).
    #[test]
    fn user_ids_over_the_signed_limit_are_ordinary() {
        let large = 4_294_967_294;
        assert_eq!(account(large).as_str(), "4294967294");
        assert_eq!(uid(&account(large)), Some(large));
        assert_eq!(privilege(large, 1000), Privilege::Ordinary);
    }
}
