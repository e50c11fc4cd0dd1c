//! What happened in a run, as one number.

use super::seed::mix;

/// A digest of everything that was noted, in its order: two runs that did the same have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Trace(u64);

impl Trace {
    /// Notes numbers.
    pub fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0 = mix(self.0 ^ number);
        }
    }

    /// Notes bytes.
    pub fn note_bytes(&mut self, bytes: &[u8]) {
        self.note(&[bytes.len() as u64]);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.note(&[u64::from_le_bytes(word)]);
        }
    }

    /// The digest.
    pub fn digest(self) -> u64 {
        self.0
    }
}
