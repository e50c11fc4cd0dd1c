//! Encrypted connections: between two ends of this crate, and between one of them and a peer that
//! speaks bytes, or somebody in between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod agreeing;
mod downgrade;
mod hostile;
mod noise;
mod queued;
mod sensitive;
mod stage;
mod talking;
