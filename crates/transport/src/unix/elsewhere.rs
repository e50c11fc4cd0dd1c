//! In place of what Linux alone has, on the other Unixes.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;

use super::identity::Process;
use crate::endpoint::Endpoint;
use crate::error::BindError;

/// There are no handles of processes.
#[expect(clippy::unnecessary_wraps, reason = "Linux can fail")]
pub(super) fn peer_process(_: BorrowedFd<'_>) -> io::Result<Process> {
    Ok(Process::Unknown)
}

/// The credentials that tokio reads have no list of groups.
pub(super) fn peer_groups(_: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There is no systemd.
#[expect(clippy::unnecessary_wraps, reason = "Linux can fail")]
pub(super) fn socket_for(_: &Endpoint) -> Result<Option<UnixListener>, BindError> {
    Ok(None)
}
