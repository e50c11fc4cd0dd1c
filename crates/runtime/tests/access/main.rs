//! What the policy lets peers do, what reaches whom, and what is recorded of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod audit;
mod injection;
mod isolation;
mod notes;
mod policy;
mod roles;
