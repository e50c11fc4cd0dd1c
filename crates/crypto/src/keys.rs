//! Keys. None of them can be printed, and what is secret in them is overwritten when it is dropped.
//! While a handshake runs, `snow` holds copies, which it does not overwrite.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, Zeroizing};

use crate::handshake::HandshakeError;
use crate::hex;
use crate::protocol::Pattern;
use crate::provider::Provider;

/// Bytes of every key.
const KEY_BYTES: usize = 32;

/// A text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key has {} hexadecimal digits", 2 * KEY_BYTES)]
pub struct InvalidKey;

/// A key that both ends share: 32 bytes, as random as they can be. A password is none.
pub struct SharedKey([u8; KEY_BYTES]);

impl SharedKey {
    /// The key with these bytes. The caller's own copy is for the caller to overwrite.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// A new one.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::NoRandomness`].
    pub fn generate(provider: &Provider) -> Result<Self, HandshakeError> {
        let mut key = Self([0; KEY_BYTES]);
        provider.fill(&mut key.0)?;
        Ok(key)
    }

    /// The bytes, for the one place that needs them.
    #[must_use]
    pub const fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl Drop for SharedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(hidden)")
    }
}

/// Reads hexadecimal digits.
impl FromStr for SharedKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut key = Self([0; KEY_BYTES]);
        hex::read_into(text, &mut key.0).ok_or(InvalidKey)?;
        Ok(key)
    }
}

/// The secret half of a pair of static keys (X25519).
pub struct PrivateKey([u8; KEY_BYTES]);

impl PrivateKey {
    /// The key with these bytes. The caller's own copy is for the caller to overwrite.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The half that is no secret.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Unsupported`] when the provider cannot compute it.
    pub fn public(&self, provider: &Provider) -> Result<PublicKey, HandshakeError> {
        let mut dh = provider.dh()?;
        dh.set(&self.0);
        public_of(&*dh)
    }

    /// The bytes, for the one place that needs them.
    #[must_use]
    pub const fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

fn public_of(dh: &dyn snow::types::Dh) -> Result<PublicKey, HandshakeError> {
    let bytes = dh.pubkey().try_into();
    bytes
        .map(PublicKey)
        .map_err(|_| HandshakeError::Unsupported)
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// Reads hexadecimal digits.
impl FromStr for PrivateKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut key = Self([0; KEY_BYTES]);
        hex::read_into(text, &mut key.0).ok_or(InvalidKey)?;
        Ok(key)
    }
}

/// The half of a pair of static keys that is no secret: hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(f, &self.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        hex::read(text).map(Self).ok_or(InvalidKey)
    }
}

/// Both halves of one end's own static keys.
#[derive(Debug)]
pub struct KeyPair {
    /// The half that never leaves its machine.
    pub private: PrivateKey,
    /// The half that the other end is given.
    pub public: PublicKey,
}

impl KeyPair {
    /// A new pair.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::NoRandomness`], and [`HandshakeError::Unsupported`] when the provider
    /// cannot compute it.
    pub fn generate(provider: &Provider) -> Result<Self, HandshakeError> {
        let mut private = Zeroizing::new([0; KEY_BYTES]);
        provider.fill(&mut *private)?;
        let private = PrivateKey::new(*private);
        let public = private.public(provider)?;
        Ok(Self { private, public })
    }
}

/// The keys of an end that knows the other by its public key, and is known by its own.
#[derive(Debug)]
pub struct StaticKeys {
    /// This end's own.
    pub private: PrivateKey,
    /// The other end's.
    pub peer: PublicKey,
}

/// What both ends know, or know of each other, before they meet.
#[derive(Debug)]
pub enum Key {
    /// A key that both share (Noise's pattern `NNpsk0`). Whoever has it can be either end.
    Shared(SharedKey),
    /// Static keys that both know of each other (`KK`). Whoever takes those of one end cannot
    /// be the other one.
    Static(StaticKeys),
}

impl Key {
    /// The pattern of the handshake that the key is for.
    #[must_use]
    pub const fn pattern(&self) -> Pattern {
        match self {
            Self::Shared(_) => Pattern::NnPsk0,
            Self::Static(_) => Pattern::Kk,
        }
    }
}

impl From<SharedKey> for Key {
    fn from(key: SharedKey) -> Self {
        Self::Shared(key)
    }
}

impl From<StaticKeys> for Key {
    fn from(keys: StaticKeys) -> Self {
        Self::Static(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_secret_is_printed() {
        let text = "0123456789abcdefABCDEF9876543210".repeat(2);
        let shared: SharedKey = text.parse().unwrap();
        let private: PrivateKey = text.parse().unwrap();
        assert_eq!(shared.expose(), private.expose());
        assert_eq!(shared.expose()[..3], [0x01, 0x23, 0x45]);
        let key = Key::from(StaticKeys {
            private,
            peer: PublicKey::new([7; 32]),
        });
        for printed in [format!("{shared:?}"), format!("{key:?}")] {
            assert!(printed.contains("hidden"), "{printed}");
            assert!(
                !printed.contains("35") && !printed.contains("23"),
                "{printed}"
            );
        }
    }

    #[test]
    fn a_text_of_another_length_or_with_other_characters_is_no_key() {
        for text in [
            "",
            "0",
            &"0".repeat(63),
            &"0".repeat(65),
            &"+0".repeat(32),
            &"ä".repeat(32),
        ] {
            assert!(text.parse::<SharedKey>().is_err(), "{text}");
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_public_key_is_the_one_of_rfc_7748() {
        // RFC 7748, section 6.1.
        let alice: PrivateKey = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
            .parse()
            .unwrap();
        assert_eq!(
            alice.public(&Provider::default()).unwrap().to_string(),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }

    #[test]
    fn a_new_pair_fits_together_and_no_two_are_the_same() {
        let provider = Provider::default();
        let [one, other] = [(), ()].map(|()| KeyPair::generate(&provider).unwrap());
        assert_eq!(one.private.public(&provider).unwrap(), one.public);
        assert_ne!(one.public, other.public);
        let shared = [(), ()].map(|()| SharedKey::generate(&provider).unwrap());
        assert_ne!(shared[0].expose(), shared[1].expose());
    }
}
