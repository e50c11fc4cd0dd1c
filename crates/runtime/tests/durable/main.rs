//! Durable messages at the receiver: handled once, answered as often as they come. A service with a
//! store on a simulated disk, and peers that speak bytes, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod client;
mod committing;
mod effects;
mod hostile;
mod mailbox;
mod negotiating;
mod on_the_way;
mod once;
mod ranges;
mod service;
