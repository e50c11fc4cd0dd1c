//! What is special to Unix sockets: files, modes, owners, user ids.

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod children;
mod connecting;
mod folders;
#[cfg(target_os = "linux")]
mod groups;
#[cfg(target_os = "linux")]
mod linux;
mod listening;
#[cfg(target_os = "linux")]
mod passed;
mod support;
mod users;
