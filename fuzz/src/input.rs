//! Bytes of the fuzzer as choices. What is missing at the end counts as zero, so every input means
//! something, and a small change of it a small change of what happens.

/// Reads choices from the front.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub fn number(&mut self) -> usize {
        usize::from(self.byte()) | usize::from(self.byte()) << 8
    }

    /// At most this many bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// One of these.
    pub fn choose<'b, T>(&mut self, from: &'b [T]) -> &'b T {
        &from[usize::from(self.byte()) % from.len()]
    }
}

/// The first byte of what is written out to [`WIDE`] bytes at most, instead of [`NARROW`]: enough for
/// more values than a body may have, and slow.
pub const IS_WIDE: u8 = b'W';

const WIDE: usize = 192 * 1024;
const NARROW: usize = 4096;

/// Writes repetitions out, so that few bytes say what is deep or wide: NUL, how often (2 bytes), how
/// many bytes (1), and these.
#[must_use]
pub fn unfolded(folded: &[u8]) -> Vec<u8> {
    let (mut rest, limit) = match folded {
        [IS_WIDE, rest @ ..] => (rest, WIDE),
        rest => (rest, NARROW),
    };
    let mut out = Vec::with_capacity(rest.len());
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if let (0, [low, high, length, behind @ ..]) = (*first, behind)
            && let Some((pattern, behind)) = behind.split_at_checked(usize::from(*length))
        {
            rest = behind;
            let times = usize::from(u16::from_le_bytes([*low, *high]));
            let room = (limit.saturating_sub(out.len())) / pattern.len().max(1);
            for _ in 0..times.min(room) {
                out.extend_from_slice(pattern);
            }
        } else if out.len() < limit {
            out.push(*first);
        }
    }
    out
}

/// The same for [`unfolded`] to write out again.
#[must_use]
pub fn folded(pattern: &[u8], times: u16) -> Vec<u8> {
    let length = u8::try_from(pattern.len()).expect("a short pattern");
    let [low, high] = times.to_le_bytes();
    [&[0, low, high, length], pattern].concat()
}
