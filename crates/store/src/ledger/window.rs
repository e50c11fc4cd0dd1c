//! What is known of the last numbers of one outbox.

use migration_ipc_protocol::limits::DELIVERY_WINDOW;

use crate::planted::{PlantedBug, is_planted};

/// 64-bit words of one set.
const WORDS: usize = 16;

/// Bytes of a stored window.
const ENCODED: usize = 8 + 2 * 8 * WORDS;

const _: () = assert!(DELIVERY_WINDOW == 64 * WORDS as u64);

/// The highest number that is done, and a bit for each of the [`DELIVERY_WINDOW`] numbers up to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    highest: u64,
    /// The numbers that are done.
    done: Bits,
    /// Those of them whose outcome is kept beside the ledger because it is more than "handled".
    /// Invariant: a part of `done`.
    kept: Bits,
}

/// What a window knows of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is not done.
    Open,
    /// It is done, or older than the window.
    Handled,
    /// It is done, and its outcome is kept.
    Kept,
}

impl Window {
    /// The highest number that is done; 0 when none is.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// The numbers up to this one are settled with their sender.
    pub(crate) fn floor(&self) -> u64 {
        self.highest.saturating_sub(DELIVERY_WINDOW)
    }

    pub(crate) fn look_up(&self, seq: u64) -> Known {
        if seq > self.highest || is_planted(PlantedBug::NoLedger) {
            Known::Open
        } else if seq <= self.floor() {
            Known::Handled
        } else if self.kept.contains(seq) {
            Known::Kept
        } else if self.done.contains(seq) {
            Known::Handled
        } else {
            Known::Open
        }
    }

    /// Notes that a number is done, and whether its outcome is kept.
    pub(crate) fn insert(&mut self, seq: u64, kept: bool) {
        if seq > self.highest {
            self.done.clear(self.highest, seq);
            self.kept.clear(self.highest, seq);
            self.highest = seq;
        }
        if seq > self.floor() {
            self.done.insert(seq);
            if kept {
                self.kept.insert(seq);
            }
        }
    }

    pub(crate) fn encode(&self) -> [u8; ENCODED] {
        let mut bytes = [0; ENCODED];
        let words = [self.highest]
            .into_iter()
            .chain(self.done.0)
            .chain(self.kept.0);
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` when it is something else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ENCODED] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut window = Self {
            highest: words.next()?,
            ..Self::default()
        };
        for word in window.done.0.iter_mut().chain(&mut window.kept.0) {
            *word = words.next()?;
        }
        Some(window)
    }
}

/// A set of numbers, each at its place modulo the size of the window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bits([u64; WORDS]);

impl Bits {
    fn place(seq: u64) -> (usize, u64) {
        let bit = seq % DELIVERY_WINDOW;
        let word = usize::try_from(bit / 64).unwrap_or_default();
        (word, 1 << (bit % 64))
    }

    fn contains(&self, seq: u64) -> bool {
        let (word, mask) = Self::place(seq);
        self.0[word] & mask != 0
    }

    fn insert(&mut self, seq: u64) {
        let (word, mask) = Self::place(seq);
        self.0[word] |= mask;
    }

    /// Frees the places of the numbers above the first and up to the second.
    fn clear(&mut self, above: u64, to: u64) {
        if to - above >= DELIVERY_WINDOW {
            *self = Self::default();
            return;
        }
        for seq in above + 1..=to {
            let (word, mask) = Self::place(seq);
            self.0[word] &= !mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_open_until_it_is_done_and_done_for_good_below_the_window() {
        let mut window = Window::default();
        assert_eq!(window.look_up(1), Known::Open);
        window.insert(1, true);
        window.insert(3, false);
        assert_eq!(
            [1, 2, 3, 4].map(|seq| window.look_up(seq)),
            [Known::Kept, Known::Open, Known::Handled, Known::Open]
        );
        window.insert(DELIVERY_WINDOW + 1, false);
        assert_eq!(window.look_up(1), Known::Handled);
        assert_eq!(window.look_up(2), Known::Open);
        window.insert(DELIVERY_WINDOW + 2, false);
        assert_eq!(window.look_up(2), Known::Handled);
    }

    #[test]
    fn a_place_that_is_used_again_starts_empty() {
        let mut window = Window::default();
        for seq in 1..=DELIVERY_WINDOW {
            window.insert(seq, true);
        }
        window.insert(DELIVERY_WINDOW + 5, false);
        assert_eq!(window.look_up(DELIVERY_WINDOW + 1), Known::Open);
        assert_eq!(window.look_up(DELIVERY_WINDOW + 5), Known::Handled);
        assert_eq!(window.look_up(6), Known::Kept);
    }

    #[test]
    fn a_leap_leaves_an_empty_window() {
        let mut window = Window::default();
        window.insert(7, true);
        window.insert(u64::MAX, false);
        assert_eq!(window.look_up(u64::MAX - 1), Known::Open);
        assert_eq!(window.look_up(7), Known::Handled);
        window.insert(7, true);
        assert_eq!(window.look_up(7), Known::Handled);
    }

    #[test]
    fn a_window_is_read_back_as_it_was_written() {
        let mut window = Window::default();
        for seq in [1, 64, 65, 900, 1030] {
            window.insert(seq, seq % 2 == 0);
        }
        assert_eq!(Window::decode(&window.encode()), Some(window.clone()));
        assert_eq!(Window::decode(&window.encode()[1..]), None);
    }
}
