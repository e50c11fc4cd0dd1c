//! Messages that are longer than a frame, in virtual time: between two ends of our own, and between
//! one of them and a peer that speaks bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod hostile;
mod receiving;
mod reconnecting;
mod replies;
mod sending;
mod stage;
