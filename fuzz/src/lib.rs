//! What is fuzzed, as plain functions: each takes bytes and panics when something does not hold. The
//! programs in `fuzz_targets/` hand them to libFuzzer, and `replay` runs them on files.
//!
//! What is under test is called through the module `subject` of each, which with the feature
//! `planted` has a bug that the target must find.

pub mod compression;
pub mod encrypted;
pub mod envelope;
pub mod extensions;
pub mod frame;
pub mod handshake;
pub mod input;
pub mod outbox;
pub mod payloads;
pub mod records;
pub mod rig;
pub mod router;
pub mod seeds;
pub mod variants;

/// A function that is fuzzed.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 7] = [
    ("frame", frame::run),
    ("envelope", envelope::run),
    ("payloads", payloads::run),
    ("extensions", extensions::run),
    ("handshake", handshake::run),
    ("outbox", outbox::run),
    ("router", router::run),
];
