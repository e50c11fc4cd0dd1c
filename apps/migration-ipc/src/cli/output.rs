//! What people see.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write as _};

/// A text that came from elsewhere, safe for a terminal and for a line of a log: control
/// characters show as U+FFFD.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        text.chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    } else {
        Cow::Borrowed(text)
    }
}

/// Says on standard error why a command failed, if anybody still reads that.
pub(crate) fn complain(error: impl fmt::Display) {
    let _unread = writeln!(io::stderr().lock(), "migration-ipc: {error}");
}

/// Prints one line. A reader that has gone away (`| head`) is not a failure.
pub(crate) fn print(line: impl fmt::Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(visible("it's grüße 🎒"), "it's grüße 🎒");
        assert_eq!(
            visible("a\x1b[2Jb\n\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}"
        );
    }
}
