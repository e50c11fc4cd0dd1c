//! What Linux alone has: options of a socket that tell more of the peer, and descriptors that the
//! service manager passed.
#![expect(
    unsafe_code,
    reason = "system calls that no crate wraps, and descriptors that came by number"
)]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::libc::{self, c_int, socklen_t};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::identity::Process;

/// How many groups are asked for at first; the few who are in more cost a second call.
const USUAL_GROUPS: usize = 64;

/// The most groups of a process (`NGROUPS_MAX` of Linux, see credentials(7)).
const MOST_GROUPS: usize = 65_536;

/// Whether the process that connected still lives, as a handle of it tells (`SO_PEERPIDFD`, since
/// Linux 6.5). The handle is closed before this returns: thousands of clients must not cost
/// thousands of descriptors for what is only logged.
///
/// # Errors
///
/// When the kernel does not say, which before Linux 6.16 includes `EINVAL`: the process is gone and
/// was waited for.
pub(super) fn peer_process(socket: BorrowedFd<'_>) -> io::Result<Process> {
    let mut handle = [0_u32];
    match option(socket, libc::SO_PEERPIDFD, &mut handle) {
        Ok(_) => {}
        Err(Errno::NOPROTOOPT) => return Ok(Process::Unknown),
        // Short of something: the account is known, and that counts.
        Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => return Ok(Process::Gone),
        Err(error) => return Err(error.into()),
    }
    // SAFETY: the call above succeeded, so that the number is a descriptor that the kernel made for
    // this process just now and that nothing else here knows of.
    let handle = unsafe { OwnedFd::from_raw_fd(handle[0].cast_signed()) };
    // It becomes readable when the process ends (pidfd_open(2)).
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    match poll(&mut ended, Some(&Timespec::default())) {
        Ok(0) => Ok(Process::Lives),
        Ok(_) | Err(Errno::INTR) => Ok(Process::Gone),
        Err(error) => Err(error.into()),
    }
}

/// The supplementary groups that the peer had when it connected (`SO_PEERGROUPS`, since Linux 4.13).
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; USUAL_GROUPS];
    let count = match option(socket, libc::SO_PEERGROUPS, &mut groups) {
        Err(Errno::RANGE) => {
            groups.resize(MOST_GROUPS, 0);
            option(socket, libc::SO_PEERGROUPS, &mut groups)?
        }
        counted => counted?,
    };
    groups.truncate(count);
    Ok(groups)
}

/// getsockopt(2) for an option of the socket itself, whose value is a list of numbers of 32 bits.
/// Returns how many the kernel wrote.
fn option(socket: BorrowedFd<'_>, name: c_int, value: &mut [u32]) -> Result<usize, Errno> {
    let size = size_of_val(value);
    let mut length = socklen_t::try_from(size).map_err(|_| Errno::INVAL)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most
    // `length` bytes to `value`, which has that many and takes any bits, and the written size to
    // `length`. Both outlive the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(usize::try_from(length).unwrap_or(0) / size_of::<u32>())
}

/// A look at a descriptor of which only the number is known, while `look` runs.
pub(super) fn look_at<T>(number: RawFd, look: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
    // SAFETY: the number is not -1. Whoever calls this looks at a descriptor that was open when the
    // program began and that nobody but `take` may close; if the service manager's word was wrong,
    // each call on the number fails or looks at something else, and nothing is written to memory.
    look(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Takes possession of a descriptor that the service manager passed.
pub(super) fn take(number: RawFd) -> OwnedFd {
    // SAFETY: the caller has looked at it: it is a listening socket at the path that the service
    // manager was told. It was passed to this process for this use (sd_listen_fds(3)), and the list
    // of such numbers gives each out once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
