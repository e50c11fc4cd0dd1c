//! Names are UTF-16 units, in which surrogates need not come in pairs.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::windows::ffi::{OsStrExt, OsStringExt};

/// Splits `NAME=VALUE` at the first `=`.
pub(crate) fn split_at_equals(text: &OsStr) -> Option<(OsString, OsString)> {
    let units: Vec<u16> = text.encode_wide().collect();
    let at = units.iter().position(|unit| *unit == u16::from(b'='))?;
    Some((
        OsString::from_wide(&units[..at]),
        OsString::from_wide(&units[at + 1..]),
    ))
}

/// The units of a name, four digits each.
pub(crate) fn to_hex(name: &OsStr) -> String {
    name.encode_wide().fold(String::new(), |mut hex, unit| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{unit:04x}");
        hex
    })
}

/// The name that [`to_hex`] wrote.
pub(crate) fn from_hex(hex: &str) -> Option<OsString> {
    if !hex.len().is_multiple_of(4) {
        return None;
    }
    let unit = |digits| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let units: Option<Vec<u16>> = hex.as_bytes().chunks(4).map(unit).collect();
    units.map(|units| OsString::from_wide(&units))
}
