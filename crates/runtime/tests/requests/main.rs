//! Requests, their deadlines and cancellation, and streaming replies, in virtual time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod cancelling;
mod deadlines;
mod deadlock;
mod hostile;
mod plain;
mod replies;
mod stage;
mod streaming;
