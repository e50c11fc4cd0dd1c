//! Socket paths: what a user may write, and where the defaults are.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::error::EndpointError;

/// What would be right, for error texts.
pub(crate) const EXPECTED: &str =
    "a socket path such as /run/migration-ipc/service.sock, or the bare name of a .NET pipe";

/// What [`EndpointError::TooLong`] counts.
pub(crate) const LENGTH_UNIT: &str = "bytes";

/// The longest socket path: `sun_path` without its terminating NUL (unix(7): 108 bytes on Linux,
/// unix(4): 104 on macOS).
const MAX_PATH: usize = if cfg!(target_vendor = "apple") {
    103
} else {
    107
};

/// Only root can create this folder, so only root decides who serves there.
const SYSTEM_FOLDER: &str = if cfg!(target_vendor = "apple") {
    "/var/run/migration-ipc"
} else {
    "/run/migration-ipc"
};

const SOCKET_NAME: &str = "service.sock";

/// Where .NET on Unix puts the pipe of a name (`PipeStream.Unix.cs` of the .NET runtime).
const DOTNET_PREFIX: &str = "CoreFxPipe_";

pub(crate) fn parse(text: &str) -> Result<PathBuf, EndpointError> {
    let invalid = |problem| EndpointError::Invalid {
        endpoint: text.to_owned(),
        problem,
    };
    if text.is_empty() {
        return Err(EndpointError::Empty);
    }
    if text.contains('\0') {
        return Err(EndpointError::NulByte {
            endpoint: text.to_owned(),
        });
    }
    if text.starts_with(r"\\") {
        return Err(invalid("is a pipe name of Windows"));
    }
    if !text.contains('/') {
        return match text {
            "." | ".." => Err(invalid("is a folder")),
            _ => checked(dotnet_path(text)),
        };
    }
    let path = Path::new(text);
    if text.ends_with('/') || path.file_name().is_none() || text.ends_with("/.") {
        return Err(invalid("is a folder"));
    }
    // Against the working directory of now, so that a later change of it moves nothing.
    let absolute = std::path::absolute(path)
        .map_err(|_no_working_directory| invalid("is relative to a folder that is gone"))?;
    checked(absolute)
}

pub(crate) fn service_default() -> Result<PathBuf, EndpointError> {
    if geteuid().is_root() || Path::new(SYSTEM_FOLDER).exists() {
        return Ok(system());
    }
    checked(per_user())
}

pub(crate) fn client_default() -> Result<PathBuf, EndpointError> {
    service_default()
}

/// The same socket: its peers' user ids tell operators apart.
pub(crate) fn for_operators(_address: &Path) -> Option<PathBuf> {
    None
}

/// The endpoint of the system's service.
pub(super) fn system() -> PathBuf {
    Path::new(SYSTEM_FOLDER).join(SOCKET_NAME)
}

/// The endpoint of a user's own service, on a machine without the system's one.
pub(super) fn per_user() -> PathBuf {
    let uid = geteuid().as_raw();
    per_user_in(env::var_os("XDG_RUNTIME_DIR"), &env::temp_dir(), uid)
}

fn per_user_in(runtime_dir: Option<OsString>, temp_dir: &Path, uid: u32) -> PathBuf {
    // "All paths set in these environment variables must be absolute. If an implementation
    // encounters a relative path [...] it should consider the path invalid and ignore it."
    // (XDG Base Directory Specification)
    let runtime_dir = runtime_dir
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    match runtime_dir {
        Some(folder) => folder.join("migration-ipc"),
        None => temp_dir.join(format!("migration-ipc-{uid}")),
    }
    .join(SOCKET_NAME)
}

fn dotnet_path(name: &str) -> PathBuf {
    let folder = env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    // The same socket by its real path: on macOS /tmp is a symbolic link, which a service refuses
    // to serve in.
    let folder = folder.canonicalize().unwrap_or(folder);
    folder.join(format!("{DOTNET_PREFIX}{name}"))
}

fn checked(path: PathBuf) -> Result<PathBuf, EndpointError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_PATH {
        let endpoint = path.display().to_string();
        return Err(EndpointError::TooLong {
            endpoint,
            length,
            limit: MAX_PATH,
        });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse(text).expect_err("refused").to_string()
    }

    #[test]
    fn an_absolute_path_is_taken_as_it_is() {
        assert_eq!(
            parse("/run/app/x.sock").unwrap(),
            Path::new("/run/app/x.sock")
        );
    }

    #[test]
    fn a_relative_path_is_made_absolute() {
        let expected = env::current_dir().unwrap().join("app/x.sock");
        match parse("./app/x.sock") {
            Ok(path) => assert_eq!(path, expected),
            // A checkout can be too deep for any socket path.
            Err(error) => assert!(matches!(error, EndpointError::TooLong { .. }), "{error}"),
        }
    }

    #[test]
    fn a_bare_name_is_where_dotnet_puts_it() {
        let path = parse("MigrationService_HOST").unwrap();
        assert_eq!(
            path.file_name().unwrap(),
            "CoreFxPipe_MigrationService_HOST"
        );
        assert!(path.is_absolute());
    }

    #[test]
    fn what_can_be_no_socket_is_refused_with_advice() {
        assert_eq!(parse(""), Err(EndpointError::Empty));
        assert_eq!(
            parse("/run/a\0b"),
            Err(EndpointError::NulByte {
                endpoint: "/run/a\0b".into()
            })
        );
        for folder in ["/", "/run/", "/run/..", "/run/.", ".", ".."] {
            assert!(
                problem(folder).contains("is a folder"),
                "{folder}: {}",
                problem(folder)
            );
        }
        assert!(problem(r"\\.\pipe\x").contains("is a pipe name of Windows"));
        assert!(problem("").contains("/run/migration-ipc/service.sock"));
    }

    #[test]
    fn the_length_limit_is_the_kernels() {
        let longest = format!("/{}", "x".repeat(MAX_PATH - 1));
        assert!(parse(&longest).is_ok());
        assert!(std::os::unix::net::SocketAddr::from_pathname(&longest).is_ok());
        let too_long = format!("{longest}x");
        assert!(std::os::unix::net::SocketAddr::from_pathname(&too_long).is_err());
        let text = problem(&too_long);
        assert!(
            text.contains(&format!("is {} bytes long", MAX_PATH + 1)),
            "{text}"
        );
        assert!(text.contains(&format!("takes {MAX_PATH}")), "{text}");
    }

    #[test]
    fn the_per_user_default_prefers_an_absolute_runtime_directory() {
        let temp = Path::new("/tmp");
        let path = |runtime_dir: Option<&str>| per_user_in(runtime_dir.map(Into::into), temp, 7);
        assert_eq!(
            path(Some("/run/user/7")),
            Path::new("/run/user/7/migration-ipc/service.sock")
        );
        let fallback = Path::new("/tmp/migration-ipc-7/service.sock");
        assert_eq!(path(None), fallback);
        assert_eq!(path(Some("")), fallback);
        assert_eq!(path(Some("run/user")), fallback);
    }
}
