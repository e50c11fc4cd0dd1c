//! What is checked about a body before any of it is interpreted.

use crate::limits::{MAX_BODY, MAX_JSON_DEPTH, MAX_JSON_VALUES, MIN_JSON_DEPTH, MIN_JSON_VALUES};

/// How deep a body may be nested, and how many values it may hold. The default is what the wire
/// allows; a receiver may ask for less.
///
/// There is no limit of its own for the members of one object or the elements of one array: each of
/// them is one of the body's values, so none can have more of them than the whole body, and what a
/// reader keeps grows with their number wherever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonLimits {
    depth: usize,
    values: usize,
}

impl JsonLimits {
    /// What the wire allows: [`MAX_JSON_DEPTH`] and [`MAX_JSON_VALUES`].
    pub const WIRE: Self = Self {
        depth: MAX_JSON_DEPTH,
        values: MAX_JSON_VALUES,
    };

    /// Limits of a receiver that needs less than the wire allows. `None` unless the depth is from
    /// [`MIN_JSON_DEPTH`] to [`MAX_JSON_DEPTH`] and the number of values, counted as for
    /// [`MAX_JSON_VALUES`], from [`MIN_JSON_VALUES`] to that.
    #[must_use]
    pub const fn new(depth: usize, values: usize) -> Option<Self> {
        let within = MIN_JSON_DEPTH <= depth
            && depth <= MAX_JSON_DEPTH
            && MIN_JSON_VALUES <= values
            && values <= MAX_JSON_VALUES;
        if within {
            Some(Self { depth, values })
        } else {
            None
        }
    }

    /// The limits of a body of this many bytes: as many values for each mebibyte that it has begun,
    /// and the same depth. Those of a body that fits a frame are these.
    #[must_use]
    pub const fn for_body(self, bytes: usize) -> Self {
        let mebibytes = bytes.div_ceil(MAX_BODY);
        let times = if mebibytes > 1 { mebibytes } else { 1 };
        Self {
            depth: self.depth,
            values: self.values.saturating_mul(times),
        }
    }

    /// How deep objects and arrays may be nested.
    #[must_use]
    pub const fn depth(self) -> usize {
        self.depth
    }

    /// How many values a body may hold.
    #[must_use]
    pub const fn values(self) -> usize {
        self.values
    }
}

impl Default for JsonLimits {
    fn default() -> Self {
        Self::WIRE
    }
}

/// How a JSON text is more than anybody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    #[error("nested deeper than {0} levels")]
    Depth(usize),
    #[error("more than {0} values")]
    Values(usize),
}

/// Checks that a JSON text stays within the limits, members that nobody reads included: serde_json
/// skips such members without counting.
///
/// For a text that is not JSON the answer says nothing about what follows the first mistake; no
/// reader gets there.
pub(crate) fn check_shape(text: &[u8], limits: JsonLimits) -> Result<(), Excess> {
    // Strings may hold brackets and commas, so these counts are upper bounds, and almost every
    // message ends here.
    let openings = count(text, |byte| byte | 0x20 == b'{');
    let few_values =
        text.len() <= limits.values || openings + count(text, |byte| byte == b',') <= limits.values;
    if openings <= limits.depth && few_values {
        return Ok(());
    }
    scan_shape(text, limits)
}

/// Counts bytes, in a form that the compiler vectorises.
fn count(text: &[u8], counts: impl Fn(u8) -> bool) -> usize {
    text.chunks(usize::from(u8::MAX))
        .map(|chunk| chunk.iter().map(|byte| u8::from(counts(*byte))).sum::<u8>())
        .map(usize::from)
        .sum()
}

/// How deep a text is nested, and how many values it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) depth: usize,
    pub(crate) values: usize,
}

/// Measures a JSON text, to know what is left where it becomes a part of another one.
pub(crate) fn measure(text: &[u8]) -> Shape {
    let mut depth = 0_usize;
    let mut shape = Shape {
        depth: 0,
        values: 0,
    };
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                shape.depth = depth.max(shape.depth);
                shape.values += 1;
            }
            b',' => shape.values += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    shape
}

fn scan_shape(text: &[u8], limits: JsonLimits) -> Result<(), Excess> {
    let mut depth = 0_usize;
    let mut values = 0_usize;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                values += 1;
            }
            b',' => values += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
        if depth > limits.depth {
            return Err(Excess::Depth(limits.depth));
        }
        if values > limits.values {
            return Err(Excess::Values(limits.values));
        }
    }
    Ok(())
}

/// Advances past the end of a string whose opening quote has been taken.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_in_texts_of_any_length() {
        for length in [0, 1, 254, 255, 256, 1000] {
            let text = "a,".repeat(length);
            assert_eq!(count(text.as_bytes(), |byte| byte == b','), length);
        }
    }

    #[test]
    fn closing_more_than_was_opened_hides_nothing() {
        let text = format!("{}{}", "]".repeat(100), "[".repeat(MAX_JSON_DEPTH + 1));
        assert_eq!(
            check_shape(text.as_bytes(), JsonLimits::WIRE),
            Err(Excess::Depth(MAX_JSON_DEPTH))
        );
    }

    #[test]
    fn limits_can_be_lowered_and_not_raised() {
        for (depth, values) in [
            (MAX_JSON_DEPTH + 1, MAX_JSON_VALUES),
            (MAX_JSON_DEPTH, MAX_JSON_VALUES + 1),
            (MIN_JSON_DEPTH - 1, MAX_JSON_VALUES),
            (MAX_JSON_DEPTH, MIN_JSON_VALUES - 1),
        ] {
            assert_eq!(JsonLimits::new(depth, values), None, "{depth} {values}");
        }
        assert_eq!(
            JsonLimits::new(MAX_JSON_DEPTH, MAX_JSON_VALUES),
            Some(JsonLimits::default())
        );
    }

    #[test]
    fn each_mebibyte_begun_may_hold_as_many_values_as_a_frame() {
        let values = |bytes| JsonLimits::WIRE.for_body(bytes).values() / MAX_JSON_VALUES;
        assert_eq!(values(0), 1);
        assert_eq!(values(MAX_BODY), 1);
        assert_eq!(values(MAX_BODY + 1), 2);
        assert_eq!(values(5 * MAX_BODY), 5);
        assert_eq!(
            JsonLimits::WIRE.for_body(usize::MAX).depth(),
            MAX_JSON_DEPTH
        );
        // One bracket and 127 commas, in a text of more than a mebibyte.
        let lowered = JsonLimits::new(8, 64).unwrap();
        let list = format!("[0{}{}]", ",0".repeat(127), " ".repeat(MAX_BODY));
        let limits = lowered.for_body(list.len());
        assert_eq!(check_shape(list.as_bytes(), limits), Ok(()));
        let list = list.replacen("[0", "[0,0", 1);
        assert_eq!(
            check_shape(list.as_bytes(), limits),
            Err(Excess::Values(128))
        );
    }

    /// The cheap counts must not let through what the exact ones would refuse.
    #[test]
    fn lowered_limits_are_exact() {
        let limits = JsonLimits::new(8, 100).unwrap();
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check_shape(nested(8).as_bytes(), limits), Ok(()));
        assert_eq!(
            check_shape(nested(9).as_bytes(), limits),
            Err(Excess::Depth(8))
        );
        // One bracket and 99 commas are 100 values.
        let list = |commas: usize| format!("[0{}]", ",0".repeat(commas));
        assert_eq!(check_shape(list(99).as_bytes(), limits), Ok(()));
        assert_eq!(
            check_shape(list(100).as_bytes(), limits),
            Err(Excess::Values(100))
        );
        // Inside of strings they are none.
        let quoted = format!("[\"{}\"]", "[,".repeat(1000));
        assert_eq!(check_shape(quoted.as_bytes(), limits), Ok(()));
    }

    #[test]
    fn only_brackets_that_open_count_towards_the_cheap_bound() {
        // What differs from `{` and `[` in few bits.
        let text = "}]\x1b;|".repeat(100);
        assert_eq!(check_shape(text.as_bytes(), JsonLimits::WIRE), Ok(()));
        let openings = |byte: u8| byte | 0x20 == b'{';
        assert_eq!(
            (0..=u8::MAX)
                .filter(|byte| openings(*byte))
                .collect::<Vec<_>>(),
            b"[{"
        );
    }
}
