//! What is checked about a body before any of it is interpreted.

use crate::limits::MAX_JSON_DEPTH;

/// Whether a JSON text stays within [`MAX_JSON_DEPTH`] levels of objects and arrays, those in
/// members that nobody reads included: serde_json skips such members without counting.
///
/// For a text that is not JSON the answer says nothing about what follows the first mistake; no
/// reader gets there.
pub(crate) fn depth_is_bounded(text: &[u8]) -> bool {
    // No text is deeper than it has opening brackets; almost every message ends here.
    count_openings(text) <= MAX_JSON_DEPTH || exact_depth_is_bounded(text)
}

/// Counts `{` and `[`, in strings too. Written so that the compiler vectorises it.
fn count_openings(text: &[u8]) -> usize {
    text.chunks(usize::from(u8::MAX))
        // `[` and `{` differ in one bit.
        .map(|chunk| {
            chunk
                .iter()
                .map(|byte| u8::from(byte | 0x20 == b'{'))
                .sum::<u8>()
        })
        .map(usize::from)
        .sum()
}

fn exact_depth_is_bounded(text: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return false;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    true
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
    fn openings_are_counted_in_texts_of_any_length() {
        for length in [0, 1, 254, 255, 256, 1000] {
            let text = "[".repeat(length);
            assert_eq!(count_openings(text.as_bytes()), length);
            let text = "]}x\x1b;".repeat(length);
            assert_eq!(count_openings(text.as_bytes()), 0);
        }
        assert_eq!(count_openings(b"{[}]"), 2);
    }

    #[test]
    fn closing_more_than_was_opened_hides_nothing() {
        let text = format!("{}{}", "]".repeat(100), "[".repeat(65));
        assert!(!depth_is_bounded(text.as_bytes()));
    }
}
