//! The programs as their users meet them: real processes, real files, real sockets and pipes.
//!
//! Every test has a sandbox of its own. Waiting is always for a condition, and bounded.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod audit;
mod chaos;
mod demo;
mod encryption;
mod harness;
#[cfg(target_os = "linux")]
mod hostile;
#[cfg(target_os = "linux")]
mod identity;
mod journal;
mod key;
mod mail;
#[cfg(target_os = "linux")]
mod passed;
mod publish;
mod resuming;
mod service;
#[cfg(target_os = "linux")]
mod terminal;
mod usage;
