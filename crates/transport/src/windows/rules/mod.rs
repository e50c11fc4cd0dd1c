//! What the Windows side decides by itself: delays, who takes a name, who may do what.
//!
//! The rules see the operating system only as codes and security identifiers. So they are compiled
//! for the tests of every system, and those run them on the testkit's model of the pipe file
//! system, which does what Wine does not: refuse.

pub(super) mod backoff;
pub(super) mod instances;
pub(super) mod security;
pub(super) mod sid;
