//! Named pipes.
//!
//! ```text
//! bind: take the name, read back who may do what -> listener: some instances armed ─┐
//!                                                                                   ├-> stream
//! connect: open, again while busy; check who serves ─────────────────────────────────┘      |
//!                                                                                     identity
//! ```
//!
//! All of it rests on `sys`, which calls the operating system and decides nothing, and on `rules`,
//! which decides and calls nothing. What each part relies on, and where that was shown, is listed
//! in `docs/windows.md`.

use std::io;

pub(crate) mod accounts;
mod calls;
mod connect;
pub(crate) mod endpoint;
mod identity;
mod listener;
mod rules;
pub(crate) mod secrets;
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
