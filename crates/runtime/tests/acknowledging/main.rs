//! Acknowledgments of many messages in one, and messages whose acknowledgment is declined, between a
//! server (or client) and a peer that speaks bytes, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod declining;
mod receiving;
mod sending;
mod stage;
