//! Secrets at rest: files that nobody else can read or change, and the data protection of Windows.
//!
//! What is checked is the open file and not its path, so that a file that is exchanged in the
//! meantime gains nothing. All of it blocks: it is made for the start of a program.

mod error;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

pub use self::error::{ProtectError, SecretFileError, SecretFileProblem};
use crate::platform;

/// The largest secret file unless told otherwise, in bytes. A file of keys is a few lines; whatever
/// is larger than this is another file.
pub const MAX_SECRET_FILE: u64 = 65_536;

/// Bytes that nobody is to see: they are shown by no `Debug`, and overwritten when they are dropped.
///
/// What was copied out of it, and what the operating system wrote to its swap space, is not.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who can open what [`protect`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectScope {
    /// Every process of this machine: for services that run as SYSTEM. What keeps others away is the
    /// access list of the file; the protection is against copies of it elsewhere.
    Machine,
    /// The account that protects it, on this machine or wherever its profile is.
    User,
}

impl ProtectScope {
    /// What suits this process: [`Machine`](Self::Machine) if it runs as SYSTEM, else
    /// [`User`](Self::User); `None` on a system without such a protection.
    #[must_use]
    pub fn usual() -> Option<Self> {
        platform::secrets::usual_scope()
    }
}

/// Reads a file with a secret, of at most `limit` bytes.
///
/// The file is opened without following a link. It must be a regular file that belongs to root
/// (Windows: SYSTEM or Administrators) or to the own account, and must give nobody else a right to
/// read or change it. In its folder, nobody else may replace it.
///
/// # Errors
/// Which of these is not so, and what to do.
pub fn read_secret_file(path: &Path, limit: u64) -> Result<Secret, SecretFileError> {
    let failed = |problem| SecretFileError {
        path: path.to_owned(),
        problem,
    };
    let file = platform::secrets::open(path).map_err(failed)?;
    read(&file, limit).map_err(failed)
}

/// Writes a new file with a secret, for the own account alone (Windows: and for SYSTEM and
/// Administrators) from its first moment on. It has its name only once all of it is on the disk.
///
/// # Errors
/// When something has that name already, others can change the folder, or the disk fails. Then there
/// is no file of this name that was not there before.
pub fn write_secret_file(path: &Path, secret: &Secret) -> Result<(), SecretFileError> {
    platform::secrets::write(path, secret.expose()).map_err(|problem| SecretFileError {
        path: path.to_owned(),
        problem,
    })
}

/// Protects a secret with a key of the operating system's (DPAPI, `CryptProtectData`). What comes
/// out says nothing of the secret and may be kept in any file.
///
/// # Errors
/// [`ProtectError::NotSupported`] on every system but Windows; otherwise what the operating system
/// says.
pub fn protect(secret: &Secret, scope: ProtectScope) -> Result<Vec<u8>, ProtectError> {
    platform::secrets::protect(secret.expose(), scope)
}

/// Opens what [`protect`] made, whatever its scope was.
///
/// # Errors
/// [`ProtectError::NotSupported`] on every system but Windows; otherwise what the operating system
/// says, above all when another machine or account protected it, or it was changed.
pub fn unprotect(protected: &[u8]) -> Result<Secret, ProtectError> {
    platform::secrets::unprotect(protected).map(Secret::new)
}

/// The folder of a file, and the file's name in it.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, PathBuf), SecretFileProblem> {
    let name = path.file_name().ok_or(SecretFileProblem::NotAFile)?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    Ok((folder, name.into()))
}

fn read(mut file: &File, limit: u64) -> Result<Secret, SecretFileProblem> {
    let io = |source| SecretFileProblem::Io {
        action: "reading it",
        source,
    };
    let length = file.metadata().map_err(io)?.len();
    if length > limit {
        return Err(SecretFileProblem::TooLong { length, limit });
    }
    if length == 0 {
        return Err(SecretFileProblem::Empty);
    }
    // One byte more, to see its end; and all at once, since a buffer that grows leaves copies behind.
    let room = usize::try_from(length).unwrap_or(usize::MAX);
    let mut bytes = Zeroizing::new(vec![0; room.saturating_add(1)]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io(error)),
        }
    }
    if filled != room {
        return Err(SecretFileProblem::Changed);
    }
    bytes.truncate(filled);
    Ok(Secret(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!(format!("{:#?}", Some(secret)), "Some(\n    Secret(..),\n)");
    }

    #[test]
    fn a_path_has_a_folder_and_a_name() {
        let parts = |path: &str| split(Path::new(path)).ok();
        assert_eq!(parts("keys"), Some((".".into(), "keys".into())));
        assert_eq!(parts("a/keys"), Some(("a".into(), "keys".into())));
        assert_eq!(parts("a/.."), None);
        assert_eq!(parts("/"), None);
    }
}
