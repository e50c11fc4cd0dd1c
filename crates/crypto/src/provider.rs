//! Whose code computes: a build that may use validated modules alone brings its own.

use std::fmt;
use std::sync::Arc;

use snow::Builder;

/// What a provider of one's own implements, and what it is made of.
pub mod primitives {
    pub use snow::Error;
    pub use snow::params::{CipherChoice, DHChoice, HashChoice};
    pub use snow::resolvers::{CryptoResolver, DefaultResolver};
    pub use snow::types::{Cipher, Dh, Hash, Random};
}

use primitives::{CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, HashChoice, Random};

use crate::handshake::HandshakeError;
use crate::protocol::{Protocol, Suite};

/// The implementations of everything that this crate computes with: randomness, X25519, SHA-256 and
/// the ciphers. By default those in pure Rust that `snow` chooses.
///
/// Another one implements [`CryptoResolver`], and hands on to
/// [`DefaultResolver`] what it does not replace. What it returns `None`
/// for cannot be used: a [`Suite`] without its cipher is refused as a protocol that this end does
/// not speak.
#[derive(Clone)]
pub struct Provider(Arc<dyn CryptoResolver + Send + Sync>);

impl Provider {
    /// The provider that computes with what `resolver` has.
    #[must_use]
    pub fn new(resolver: impl CryptoResolver + Send + Sync + 'static) -> Self {
        Self(Arc::new(resolver))
    }

    /// Whether it can encrypt with this suite.
    #[must_use]
    pub fn has(&self, suite: Suite) -> bool {
        self.0.resolve_cipher(&suite.cipher()).is_some()
    }

    /// The SHA-256 digest of some parts, one after the other.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Unsupported`] when the provider has no SHA-256.
    pub fn sha256(&self, parts: &[&[u8]]) -> Result<[u8; 32], HandshakeError> {
        let hash = self.0.resolve_hash(&HashChoice::SHA256);
        let mut hash = hash.ok_or(HandshakeError::Unsupported)?;
        hash.reset();
        for part in parts {
            hash.input(part);
        }
        let mut digest = [0; 32];
        hash.result(&mut digest);
        Ok(digest)
    }

    pub(crate) fn fill(&self, bytes: &mut [u8]) -> Result<(), HandshakeError> {
        let mut random = self.0.resolve_rng().ok_or(HandshakeError::Unsupported)?;
        Ok(random.try_fill_bytes(bytes)?)
    }

    pub(crate) fn dh(&self) -> Result<Box<dyn Dh>, HandshakeError> {
        let dh = self.0.resolve_dh(&DHChoice::Curve25519);
        dh.ok_or(HandshakeError::Unsupported)
    }

    pub(crate) fn builder(&self, protocol: Protocol) -> Builder<'_> {
        Builder::with_resolver(protocol.params(), Box::new(Shared(Arc::clone(&self.0))))
    }
}

impl Default for Provider {
    fn default() -> Self {
        Self::new(DefaultResolver)
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Provider")
    }
}

/// `snow` wants a box of its own.
struct Shared(Arc<dyn CryptoResolver + Send + Sync>);

impl CryptoResolver for Shared {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        self.0.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        self.0.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn primitives::Hash>> {
        self.0.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn primitives::Cipher>> {
        self.0.resolve_cipher(choice)
    }
}
