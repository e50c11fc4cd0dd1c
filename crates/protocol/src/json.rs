//! What is checked about a body before any of it is interpreted.

use crate::limits::{MAX_JSON_DEPTH, MAX_JSON_VALUES};

/// How a JSON text is more than anybody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    #[error("nested deeper than {MAX_JSON_DEPTH} levels")]
    Depth,
    #[error("more than {MAX_JSON_VALUES} values")]
    Values,
}

/// Checks that a JSON text stays within [`MAX_JSON_DEPTH`] and [`MAX_JSON_VALUES`], members that
/// nobody reads included: serde_json skips such members without counting.
///
/// For a text that is not JSON the answer says nothing about what follows the first mistake; no
/// reader gets there.
pub(crate) fn check_shape(text: &[u8]) -> Result<(), Excess> {
    // Strings may hold brackets and commas, so these counts are upper bounds, and almost every
    // message ends here.
    let openings = count(text, |byte| byte | 0x20 == b'{');
    let few_values = text.len() <= MAX_JSON_VALUES
        || openings + count(text, |byte| byte == b',') <= MAX_JSON_VALUES;
    if openings <= MAX_JSON_DEPTH && few_values {
        return Ok(());
    }
    scan_shape(text)
}

/// Counts bytes, in a form that the compiler vectorises.
fn count(text: &[u8], counts: impl Fn(u8) -> bool) -> usize {
    text.chunks(usize::from(u8::MAX))
        .map(|chunk| chunk.iter().map(|byte| u8::from(counts(*byte))).sum::<u8>())
        .map(usize::from)
        .sum()
}

fn scan_shape(text: &[u8]) -> Result<(), Excess> {
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
        if depth > MAX_JSON_DEPTH {
            return Err(Excess::Depth);
        }
        if values > MAX_JSON_VALUES {
            return Err(Excess::Values);
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
        assert_eq!(check_shape(text.as_bytes()), Err(Excess::Depth));
    }

    #[test]
    fn only_brackets_that_open_count_towards_the_cheap_bound() {
        // What differs from `{` and `[` in few bits.
        let text = "}]\x1b;|".repeat(100);
        assert_eq!(check_shape(text.as_bytes()), Ok(()));
        let openings = |byte: u8| byte | 0x20 == b'{';
        assert_eq!(
            (0..=u8::MAX)
                .filter(|byte| openings(*byte))
                .collect::<Vec<_>>(),
            b"[{"
        );
    }
}
