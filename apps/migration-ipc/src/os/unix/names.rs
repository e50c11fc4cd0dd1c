//! Names are bytes.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Splits `NAME=VALUE` at the first `=`.
pub(crate) fn split_at_equals(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    Some((part(&bytes[..at]), part(&bytes[at + 1..])))
}

/// The bytes of a name, two digits each.
pub(crate) fn to_hex(name: &OsStr) -> String {
    name.as_bytes().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The name that [`to_hex`] wrote.
pub(crate) fn from_hex(hex: &str) -> Option<OsString> {
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
    bytes.map(OsString::from_vec)
}
