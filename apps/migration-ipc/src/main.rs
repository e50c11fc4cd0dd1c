//! The reference programs of migration-ipc.
#![allow(dead_code, unused_imports, reason = "wip")]
mod backup;
mod os;
fn main() {}
