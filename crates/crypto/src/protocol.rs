//! The Noise protocols in use, by the names that the wire has for them.

use std::fmt;
use std::str::FromStr;

use snow::params::{
    BaseChoice, CipherChoice, DHChoice, HandshakeChoice, HandshakeModifier, HandshakeModifierList,
    HandshakePattern, HashChoice, NoiseParams,
};

/// What both ends mix into the handshake, so that no other use of a key can be taken for this one.
pub(crate) const PROLOGUE: &[u8] = b"migration-ipc encryption 1";

/// How the ends prove that they know their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `NNpsk0`: both share a key.
    NnPsk0,
    /// `KK`: each knows the other's static key.
    Kk,
}

/// The cipher of the records, and of the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439): fast everywhere.
    #[default]
    ChaChaPoly,
    /// AES-256-GCM (NIST SP 800-38D): for those who may use nothing else.
    AesGcm,
}

/// A pattern and a suite: with them a Noise protocol is settled, since the group is always X25519
/// and the hash SHA-256. As text it is Noise's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    /// How the ends prove that they know their keys.
    pub pattern: Pattern,
    /// What they encrypt with.
    pub suite: Suite,
}

/// A text is the name of no [`Protocol`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the protocols in use are Noise_NNpsk0_25519 and Noise_KK_25519 with ChaChaPoly or AESGCM, and SHA256"
)]
pub struct UnknownProtocol;

impl Protocol {
    /// Everything that can be agreed on.
    pub const ALL: [Self; 4] = [
        Self::new(Pattern::NnPsk0, Suite::ChaChaPoly),
        Self::new(Pattern::NnPsk0, Suite::AesGcm),
        Self::new(Pattern::Kk, Suite::ChaChaPoly),
        Self::new(Pattern::Kk, Suite::AesGcm),
    ];

    /// The protocol with this pattern and suite.
    #[must_use]
    pub const fn new(pattern: Pattern, suite: Suite) -> Self {
        Self { pattern, suite }
    }

    /// Noise's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match (self.pattern, self.suite) {
            (Pattern::NnPsk0, Suite::ChaChaPoly) => "Noise_NNpsk0_25519_ChaChaPoly_SHA256",
            (Pattern::NnPsk0, Suite::AesGcm) => "Noise_NNpsk0_25519_AESGCM_SHA256",
            (Pattern::Kk, Suite::ChaChaPoly) => "Noise_KK_25519_ChaChaPoly_SHA256",
            (Pattern::Kk, Suite::AesGcm) => "Noise_KK_25519_AESGCM_SHA256",
        }
    }

    pub(crate) fn params(self) -> NoiseParams {
        let (pattern, modifiers) = match self.pattern {
            Pattern::NnPsk0 => (HandshakePattern::NN, vec![HandshakeModifier::Psk(0)]),
            Pattern::Kk => (HandshakePattern::KK, Vec::new()),
        };
        NoiseParams::new(
            self.as_str().to_owned(),
            BaseChoice::Noise,
            HandshakeChoice {
                pattern,
                modifiers: HandshakeModifierList { list: modifiers },
            },
            DHChoice::Curve25519,
            self.suite.cipher(),
            HashChoice::SHA256,
        )
    }
}

impl Suite {
    pub(crate) const fn cipher(self) -> CipherChoice {
        match self {
            Self::ChaChaPoly => CipherChoice::ChaChaPoly,
            Self::AesGcm => CipherChoice::AESGCM,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or(UnknownProtocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_what_noise_reads_in_its_name() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.as_str().parse(), Ok(protocol.params()));
            assert_eq!(protocol.as_str().parse(), Ok(protocol));
        }
        for text in [
            "",
            "Noise_NN_25519_ChaChaPoly_SHA256",
            "Noise_KK_25519_AESGCM_SHA512",
        ] {
            assert_eq!(text.parse::<Protocol>(), Err(UnknownProtocol));
        }
    }
}
