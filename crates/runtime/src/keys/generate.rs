//! New keys, from the operating system's randomness.

use migration_ipc_crypto::{HandshakeError, KeyPair, Provider};
use thiserror::Error;
use zeroize::Zeroizing;

use super::text::{KEY_BYTES, KeyBytes, KeyKind, ParsedKey};

/// The operating system gave no random bytes. Nothing else is used in their place.
#[derive(Clone, Copy, Debug, Error)]
#[error("the operating system gives no random bytes: {0}")]
pub struct NoRandomness(#[from] getrandom::Error);

/// Makes a key that nobody can guess: for a connection, or for the outbox.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn generate_shared_key() -> Result<KeyBytes, NoRandomness> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(bytes.as_mut_slice())?;
    Ok(KeyBytes::new(*bytes))
}

/// Makes static keys for the two ends of a connection: what is in the file of the one, and what in
/// that of the other. Each has a private key of its own and the other's public one, under a name that
/// both use.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn generate_static_keys(name: &str) -> Result<[Vec<ParsedKey>; 2], HandshakeError> {
    let provider = Provider::default();
    let (a, b) = (KeyPair::generate(&provider)?, KeyPair::generate(&provider)?);
    let end = |own: &KeyPair, peer: &KeyPair| {
        let key = |kind, bytes: &[u8; KEY_BYTES]| ParsedKey {
            name: name.to_owned(),
            kind,
            bytes: KeyBytes::new(*bytes),
        };
        vec![
            key(KeyKind::StaticPrivate, own.private.expose()),
            key(KeyKind::StaticPublic, peer.public.as_bytes()),
        ]
    };
    Ok([end(&a, &b), end(&b, &a)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_one() {
        let (a, b) = (
            generate_shared_key().unwrap(),
            generate_shared_key().unwrap(),
        );
        assert_ne!(a, b);
        assert_ne!(a.expose(), &[0; KEY_BYTES]);
    }
}
