//! Encrypted sessions: the [Noise protocol](https://noiseprotocol.org/noise.html) (revision 34) over
//! keys that both ends know by name. Pure code: no I/O and no runtime; bytes are arguments, and what
//! is random comes from the [`Provider`].
//!
//! The modules follow a session from its keys to its records:
//!
//! 1. [`KeyName`], [`SharedKey`], [`StaticKeys`], [`Key`]: what both ends know;
//! 2. [`Keyring`]: the keys of one end by their names, so that they can be replaced one by one;
//! 3. [`Protocol`]: what the two agree on, as the wire names it;
//! 4. [`Initiator`] and [`Responder`]: one message there, one back;
//! 5. [`Sealer`] and [`Opener`]: the sequence of bytes, cut into records;
//! 6. [`Provider`]: whose code computes all that.
//!
//! `docs/protocol.md` has the bytes on the wire, `docs/encryption.md` the reasons.
//!
//! ```
//! use migration_ipc_crypto::{Key, Keyring, SharedKey, Suite};
//!
//! let key = || Key::Shared(SharedKey::new([7; 32]));
//! let client = Keyring::new("2026-11".parse()?, key());
//! let service = Keyring::new("2026-11".parse()?, key());
//!
//! let (opening, initiator) = client.initiate(Suite::ChaChaPoly)?;
//! let (answer, mut theirs) =
//!     service.respond(opening.protocol, opening.key.as_str(), &opening.message)?;
//! let mut ours = initiator.finish(&answer)?;
//!
//! let (mut wire, mut plain) = (Vec::new(), Vec::new());
//! ours.sealer.seal(b"hunter2", &mut wire)?;
//! theirs.opener.open(&wire, &mut plain)?;
//! assert_eq!(plain, b"hunter2");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod handshake;
mod hex;
mod keyring;
mod keys;
mod name;
mod protocol;
pub mod provider;
mod records;

pub use handshake::{HandshakeError, HandshakeMessage, Initiator, ParseMessageError, Responder};
pub use keyring::{Keyring, NameInUse, NoSuchKey, Opening, RespondError};
pub use keys::{InvalidKey, Key, KeyPair, PrivateKey, PublicKey, SharedKey, StaticKeys};
pub use name::{InvalidKeyName, KeyName};
pub use protocol::{Pattern, Protocol, Suite, UnknownProtocol};
pub use provider::Provider;
pub use records::{
    Channel, MAX_RECORD, MIN_RECORD, OpenError, Opener, RECORD_OVERHEAD, REKEY_AFTER, SealError,
    Sealer,
};
