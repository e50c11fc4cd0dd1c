//! Pipe names.

use std::path::{Path, PathBuf};

use super::sys;
use crate::error::EndpointError;

/// What an endpoint looks like, for error messages.
pub(crate) const EXPECTED: &str =
    r"the name of a pipe, such as MigrationService_PC1 or \\.\pipe\MigrationService_PC1";

/// The unit of [`LIMIT`], for error messages.
pub(crate) const LENGTH_UNIT: &str = "UTF-16 units";

/// Where the pipes of this machine are.
const PREFIX: &str = r"\\.\pipe\";

/// What the operators' pipe has behind its service's name.
const OPERATORS: &str = "_admin";

/// The longest address: a name with its prefix may have 256 characters
/// ([pipe names](https://learn.microsoft.com/windows/win32/ipc/pipe-names)), and the operators' pipe
/// must be possible as well.
const LIMIT: usize = 256 - OPERATORS.len();

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
    let length = address.encode_utf16().count();
    if length > LIMIT {
        let (endpoint, limit) = (address, LIMIT);
        return Err(EndpointError::TooLong {
            endpoint,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_with_and_without_its_prefix() {
        for text in ["Service", r"\\.\pipe\Service", r"\\.\PIPE\Service"] {
            assert_eq!(
                parse(text),
                Ok(PathBuf::from(r"\\.\pipe\Service")),
                "{text}"
            );
        }
    }

    #[test]
    fn what_can_be_no_pipe_is_refused_with_advice() {
        for text in [
            "",
            r"\\.\pipe\",
            r"\\server\pipe\x",
            "/run/x.sock",
            "a\0b",
            "dot.",
            "space ",
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.to_string().contains("MigrationService_PC1"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_name_leaves_room_for_that_of_the_operators_pipe() {
        let longest = "x".repeat(LIMIT - PREFIX.len());
        let operators = for_operators(&parse(&longest).unwrap()).unwrap();
        assert_eq!(operators.as_os_str().len(), 256);
        let error = parse(&format!("{longest}x")).unwrap_err();
        assert!(
            matches!(
                error,
                EndpointError::TooLong {
                    length: 251,
                    limit: 250,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn the_default_is_what_dotnet_peers_use() {
        let name = service_default().unwrap();
        assert!(
            name.to_string_lossy()
                .starts_with(r"\\.\pipe\MigrationService_"),
            "{name:?}"
        );
        assert_eq!(client_default(), Ok(name));
    }
}
