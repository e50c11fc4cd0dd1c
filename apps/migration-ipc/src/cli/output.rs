//! Results, on standard output.

use std::fmt;
use std::io::{self, Write as _};

/// Prints one line. A reader that has gone away (`| head`) is not a failure.
pub(crate) fn print(line: impl fmt::Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
