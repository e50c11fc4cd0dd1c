//! The reference programs of migration-ipc.
#![allow(dead_code, unused_imports, reason = "wip")]
mod backup;
mod os;
mod service;
mod telemetry;
fn main() {}
