//! One number, and all the randomness of a run out of it.

use std::fmt;

use fastrand::Rng;

/// Where the randomness of a run comes from.
///
/// It is split by purpose and number before it is used, so that what one part of a run draws does
/// not depend on how much another one has drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seed(u64);

impl Seed {
    /// The seed of a run.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The number.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The seed for the `number`th thing of this purpose.
    #[must_use]
    pub fn split(self, purpose: &str, number: u64) -> Self {
        let named = purpose
            .bytes()
            .fold(self.0, |hash, byte| mix(hash ^ u64::from(byte)));
        Self(mix(named ^ mix(number)))
    }

    /// A generator of its own for this purpose.
    pub fn rng(self, purpose: &str) -> Rng {
        Rng::with_seed(self.split(purpose, 0).0)
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input changes
/// about half of the output's.
pub(super) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
