//! Named pipes.
//!
//! ```text
//! bind -> instances: create, read back -> listener: some armed, accept ─┐
//!             descriptor: who may                                      ├-> stream -> identity
//! connect: open, retry while busy, check the owner ────────────────────┘
//! ```
//!
//! All of it rests on `sys`, which calls the operating system and decides nothing. What each part
//! relies on, and where that was shown, is listed in `docs/windows.md`.

use std::io;

pub(crate) mod accounts;
mod backoff;
mod codes;
mod connect;
mod descriptor;
pub(crate) mod endpoint;
mod identity;
mod instances;
mod listener;
mod sid;
mod stream;
pub mod sys;

pub(crate) use connect::connect;
pub(crate) use listener::bind;

/// The error that a code of the operating system is.
fn os_error(code: sys::Code) -> io::Error {
    io::Error::from_raw_os_error(code.cast_signed())
}

/// The code in an error, if it came from the operating system.
fn os_code(error: &io::Error) -> Option<sys::Code> {
    error.raw_os_error().map(i32::cast_unsigned)
}
