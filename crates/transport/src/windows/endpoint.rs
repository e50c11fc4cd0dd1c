//! Pipe names.

use std::path::{Path, PathBuf};

use super::sys;
use crate::error::EndpointError;

/// What an endpoint looks like, for error messages.
pub(crate) const EXPECTED: &str =
    r"the name of a pipe, such as MigrationService_PC1 or \\.\pipe\MigrationService_PC1";

/// The unit of [`MAX_LENGTH`], for error messages.
pub(crate) const LENGTH_UNIT: &str = "UTF-16 units";

/// Where the pipes of this machine are.
const PREFIX: &str = r"\\.\pipe\";

/// The longest name with its prefix
/// ([pipe names](https://learn.microsoft.com/windows/win32/ipc/pipe-names)).
const MAX_LENGTH: usize = 256;

/// What the operators' pipe has behind its service's name.
const OPERATORS: &str = "_admin";

pub(crate) fn parse(text: &str) -> Result<PathBuf, EndpointError> {
    let invalid = |problem| EndpointError::Invalid {
        endpoint: text.to_owned(),
        problem,
    };
    let name = match text.get(..PREFIX.len()) {
        Some(start) if start.eq_ignore_ascii_case(PREFIX) => &text[PREFIX.len()..],
        _ => text,
    };
    if name.is_empty() {
        return Err(EndpointError::Empty);
    }
    if name.contains('\0') {
        return Err(EndpointError::NulByte {
            endpoint: text.to_owned(),
        });
    }
    if name.contains(['\\', '/']) {
        return Err(invalid(
            "contains a slash or backslash, which the name of a pipe cannot",
        ));
    }
    if name.ends_with(['.', ' ']) {
        return Err(invalid(
            "ends with a dot or a space, which Windows would cut off",
        ));
    }
    let address = format!("{PREFIX}{name}");
    // The operators' pipe must be possible as well.
    let length = address.encode_utf16().count();
    if length > MAX_LENGTH - OPERATORS.len() && !name.ends_with(OPERATORS) || length > MAX_LENGTH {
        let limit = MAX_LENGTH - OPERATORS.len();
        return Err(EndpointError::TooLong {
            endpoint: address,
            length,
            limit,
        });
    }
    Ok(address.into())
}

/// The name that .NET services and agents use as well.
pub(crate) fn service_default() -> Result<PathBuf, EndpointError> {
    let computer = sys::computer_name().map_err(|_code| EndpointError::Invalid {
        endpoint: "MigrationService_<COMPUTERNAME>".to_owned(),
        problem: "cannot be completed, because Windows does not tell this computer's name",
    })?;
    parse(&format!("MigrationService_{computer}"))
}

pub(crate) fn client_default() -> Result<PathBuf, EndpointError> {
    service_default()
}

pub(crate) fn for_operators(address: &Path) -> Option<PathBuf> {
    let mut name = address.as_os_str().to_owned();
    name.push(OPERATORS);
    Some(name.into())
}
