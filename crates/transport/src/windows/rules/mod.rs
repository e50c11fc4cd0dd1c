//! What the Windows side decides by itself: delays, who takes a name, whom to serve and whom to
//! obey; and in which order the calls are made that this rests on.
//!
//! The rules see the operating system only as codes, security descriptors and the few calls of
//! `calls`. So they are compiled for the tests of every system, and those run them on the testkit's
//! model of the pipe file system, which does what Wine does not: refuse.

pub(super) mod backoff;
pub(super) mod calls;
pub(super) mod client;
pub(super) mod instances;
pub(super) mod protection;
pub(super) mod server;
#[cfg(test)]
mod trace;
