//! The outbox on a disk that crashes, fills up, fails and rots.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bench;
mod crash;
mod damage;
mod faults;
mod groups;
mod model;
mod versions;
