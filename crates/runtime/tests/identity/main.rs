//! Who a peer is, whom its messages may name, and what it may send.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod claims;
mod pending;
mod permissions;
