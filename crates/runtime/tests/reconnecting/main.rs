//! A client that outlives its connections, in memory and in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod at_rest;
mod bad_disk;
mod connecting;
mod durable;
mod overflow;
mod plain;
mod pool;
mod restarting;
mod stage;
