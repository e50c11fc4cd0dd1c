//! Sockets that the service manager made and passed (sd_listen_fds(3)).
//!
//! `LISTEN_PID` says to which process, `LISTEN_FDS` how many descriptors from the third on, and
//! `LISTEN_FDNAMES` what they are called, which is used in errors only. The environment is read
//! once and left as it is: to change it under other threads is not safe, and children see that the
//! sockets are not for them by the process id. Two crates do nearly this; one takes sockets without
//! `LISTEN_PID`, and so what a parent was given, and both change the environment.

use std::env;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, getsockname};

use super::linux::{look_at, take};
use crate::endpoint::Endpoint;
use crate::error::BindError;

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// More than any unit passes: a number that is wrong must not make this process look at
/// descriptors without end.
const MOST: RawFd = 64;

/// A descriptor and what the service manager calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Passed {
    number: RawFd,
    name: String,
}

/// The socket that was passed for an endpoint; `None` if none was passed at all.
pub(super) fn socket_for(endpoint: &Endpoint) -> Result<Option<UnixListener>, BindError> {
    static PASSED: OnceLock<Result<Mutex<Vec<Passed>>, String>> = OnceLock::new();
    let unsupported = |problem| BindError::Unsupported {
        endpoint: endpoint.clone(),
        problem,
    };
    let passed = PASSED
        .get_or_init(|| read_environment().map(Mutex::new))
        .as_ref()
        .map_err(|problem| unsupported(problem.clone()))?;
    let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.is_empty() {
        return Ok(None);
    }
    let mut problems = Vec::new();
    for (index, candidate) in passed.iter().enumerate() {
        match look_at(candidate.number, |socket| check(socket, endpoint)) {
            Ok(()) => {
                let taken = passed.remove(index);
                return Ok(Some(UnixListener::from(take(taken.number))));
            }
            Err(problem) => problems.push(format!(
                "descriptor {} ({}) {problem}",
                candidate.number, candidate.name
            )),
        }
    }
    Err(unsupported(format!(
        "the service manager passed no listening stream socket at this path: {}; make its \
         ListenStream and the service's endpoint the same",
        problems.join(", ")
    )))
}

fn read_environment() -> Result<Vec<Passed>, String> {
    let variable = |name| env::var(name).ok();
    let passed = listed(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    )?;
    for Passed { number, name } in &passed {
        // None of them is for this process's children.
        look_at(*number, |socket| fcntl_setfd(socket, FdFlags::CLOEXEC)).map_err(|error| {
            format!("LISTEN_FDS says that descriptor {number} ({name}) was passed: {error}")
        })?;
    }
    Ok(passed)
}

/// What the variables say was passed to the process `own`.
fn listed(
    process: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
    own: u32,
) -> Result<Vec<Passed>, String> {
    let (Some(process), Some(count)) = (process, count) else {
        return Ok(Vec::new());
    };
    if process.parse() != Ok(own) {
        return Ok(Vec::new());
    }
    let count = count.parse::<RawFd>().ok();
    let Some(count) = count.filter(|count| (0..=MOST).contains(count)) else {
        return Err(format!("LISTEN_FDS must be a number from 0 to {MOST}"));
    };
    let mut names = names.unwrap_or_default().split(':');
    let passed = (FIRST..FIRST + count).map(|number| {
        let name = names.next().filter(|name| !name.is_empty());
        let name = name.unwrap_or("unknown").to_owned();
        Passed { number, name }
    });
    Ok(passed.collect())
}

/// Whether a descriptor is what a service of this endpoint listens on, or what it is instead.
fn check(socket: BorrowedFd<'_>, endpoint: &Endpoint) -> Result<(), String> {
    if socket_domain(socket) != Ok(AddressFamily::UNIX) {
        return Err("is not a Unix socket".to_owned());
    }
    if socket_type(socket) != Ok(SocketType::STREAM) {
        return Err("is not a stream socket".to_owned());
    }
    if socket_acceptconn(socket) != Ok(true) {
        return Err("does not listen".to_owned());
    }
    let address = getsockname(socket).map_err(|error| format!("has no address: {error}"))?;
    let address = SocketAddrUnix::try_from(address).map_err(|error| error.to_string())?;
    match address.path_bytes() {
        Some(path) if path == endpoint.address().as_os_str().as_bytes() => Ok(()),
        Some(path) => Err(format!("is at {}", String::from_utf8_lossy(path))),
        None => Err("has no path".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_passed_to_this_process_counts() {
        assert_eq!(listed(Some("7"), Some("1"), None, 8), Ok(vec![]));
        assert_eq!(listed(None, Some("1"), None, 7), Ok(vec![]));
        assert_eq!(listed(Some("7"), None, None, 7), Ok(vec![]));
        assert_eq!(listed(Some("x"), Some("1"), None, 7), Ok(vec![]));
        assert_eq!(listed(Some("7"), Some("0"), None, 7), Ok(vec![]));
    }

    #[test]
    fn descriptors_are_numbered_from_three_and_named_in_order() {
        let passed = listed(Some("7"), Some("3"), Some("a::c"), 7).unwrap();
        let passed: Vec<_> = passed.iter().map(|p| (p.number, &*p.name)).collect();
        assert_eq!(passed, [(3, "a"), (4, "unknown"), (5, "c")]);
    }

    #[test]
    fn a_count_that_cannot_be_is_an_error() {
        for count in ["-1", "65", "99999999999", "x", ""] {
            assert!(listed(Some("7"), Some(count), None, 7).is_err(), "{count}");
        }
    }
}
