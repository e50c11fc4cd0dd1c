//! The operating system's error codes that this crate gives a meaning to
//! ([system error codes](https://learn.microsoft.com/windows/win32/debug/system-error-codes)).
//!
//! They are written out because the rules that depend on them are tested on every system, also
//! where the bindings do not exist.

/// Nothing of this name: no pipe, or not one instance of it.
pub(super) const ERROR_FILE_NOT_FOUND: u32 = 2;
/// Refused. When a first instance is created: somebody holds the name.
pub(super) const ERROR_ACCESS_DENIED: u32 = 5;
/// The peer has closed its end.
pub(super) const ERROR_BROKEN_PIPE: u32 = 109;
/// No instance is free: for a client, none listens; for a server, there are as many as allowed.
pub(super) const ERROR_PIPE_BUSY: u32 = 231;
/// This end was disconnected by the server.
pub(super) const ERROR_PIPE_NOT_CONNECTED: u32 = 233;
