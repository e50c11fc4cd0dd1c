//! Compressed bodies between peers that negotiated them, on the raw wire in both directions; that
//! nobody else ever sees one; and what becomes of those who send what they should not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod amounts;
mod peer;
mod receiving;
mod sending;
mod stage;
mod violations;
