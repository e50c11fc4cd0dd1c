//! Files with keys: for the encryption of connections, and of the outbox on disk.
//!
//! `text` is what a file says, and reads and writes nothing; `file` reads and writes it, with what
//! the operating system knows of its owner and its access list; `keyring` makes what encrypts
//! connections of it; `generate` makes keys. What is in a file is described in `docs/keys.md`.

mod file;
mod generate;
mod keyring;
mod text;

pub use file::{KeyFileError, KeyProtection, read_key_file, read_keyring, write_key_file};
pub use generate::{NoRandomness, generate_shared_key, generate_static_keys};
pub use text::{
    KEY_BYTES, KeyBytes, KeyFileText, KeyKind, KeyTextError, KeyTextProblem, MAX_KEY_NAME,
    MAX_KEYS, ParsedKey,
};
