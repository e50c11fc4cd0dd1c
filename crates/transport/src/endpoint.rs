//! Where a service listens and a client connects.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::EndpointError;
use crate::platform;

/// The address of a service on this machine: a socket path on Unix, a pipe name on Windows.
///
/// An endpoint is valid by construction: whatever of it can be checked without touching the file
/// system has been checked. Cheap to clone.
///
/// | text | on Unix | on Windows |
/// |---|---|---|
/// | `/run/app/service.sock` | that socket; a relative path with a slash is made absolute | refused |
/// | `Name` | where .NET puts the pipe `Name`: `$TMPDIR` or `/tmp`, then `CoreFxPipe_Name` | `\\.\pipe\Name` |
/// | `\\.\pipe\Name` | refused | that pipe |
///
/// A bare name on Unix is there so that .NET peers can connect, and it promises less than a path in
/// a folder of its own: every local user can create files in the temporary directory, so another
/// user who is there first can keep the name from a service (which then reports who holds it).
/// What it cannot get there is the trust of clients: see [`connect`](crate::connect).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Arc<Path>);

impl Endpoint {
    /// Reads an endpoint as a user writes it; see the table above.
    ///
    /// # Errors
    ///
    /// [`EndpointError`] says what is wrong with the text and what would be right.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        platform::endpoint::parse(text).map(Self::from_address)
    }

    /// What a service binds when it is told nothing else.
    ///
    /// * Unix: `/run/migration-ipc/service.sock` (macOS: below `/var/run`) for root, and for
    ///   everybody where that folder exists; else the per-user endpoint, which is
    ///   `$XDG_RUNTIME_DIR/migration-ipc/service.sock`, or `service.sock` in the folder
    ///   `migration-ipc-<uid>` of the temporary directory.
    /// * Windows: the pipe `MigrationService_<COMPUTERNAME>`.
    ///
    /// # Errors
    ///
    /// When the environment leads to an address that the operating system cannot take, for example
    /// a temporary directory with a very long path.
    pub fn service_default() -> Result<Self, EndpointError> {
        platform::endpoint::service_default().map(Self::from_address)
    }

    /// What a client connects to when it is told nothing else: the system's endpoint where there is
    /// one, else the per-user endpoint (the same rule as [`Endpoint::service_default`], so that
    /// both ends of one user meet). Windows has no per-user endpoint.
    ///
    /// # Errors
    ///
    /// As [`Endpoint::service_default`].
    pub fn client_default() -> Result<Self, EndpointError> {
        platform::endpoint::client_default().map(Self::from_address)
    }

    /// Where this service's operators connect: on Windows a second pipe, named after this one with
    /// `_admin`, that only administrators can open; on Unix this same endpoint, because there the
    /// peer's user id tells operators apart.
    #[must_use]
    pub fn for_operators(&self) -> Self {
        platform::endpoint::for_operators(&self.0).map_or_else(|| self.clone(), Self::from_address)
    }

    /// The address in the operating system's terms: an absolute socket path, or `\\.\pipe\Name`.
    pub fn address(&self) -> &Path {
        &self.0
    }

    /// Wraps an address that was checked, or (for [`memory`](crate::memory)) is only a name.
    pub(crate) fn from_address(address: PathBuf) -> Self {
        Self(address.into())
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.0.display())
    }
}
