//! New keys, from the operating system's randomness.

use thiserror::Error;
use zeroize::Zeroizing;

use super::text::{KEY_BYTES, KeyBytes};

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
