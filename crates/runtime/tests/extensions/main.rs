//! Every pair of capabilities, and all together: a client and a service that offer them hold the
//! same conversation, and a transcript shows what was really used of it. With plain peers it is the
//! plain wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod asked;
mod keys;
mod matrix;
mod probes;
mod record;
mod talk;
mod transcript;
