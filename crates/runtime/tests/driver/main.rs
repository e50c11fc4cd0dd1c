//! The rules of a connection's driver, each shown between a server (or client) and a peer that
//! speaks bytes, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod cancel_safety;
mod choppy;
mod credit;
mod handlers;
mod hello;
mod liveness;
mod reading;
mod stage;
mod stopping;
mod writing;
