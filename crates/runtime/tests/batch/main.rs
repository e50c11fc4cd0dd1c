//! Many messages in one frame, between the runtime and a peer that speaks bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod credit;
mod durable;
mod hostile;
mod receiving;
mod sending;
mod stage;
