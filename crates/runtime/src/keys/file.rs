//! Key files on the disk. All of it blocks.

use std::path::{Path, PathBuf};

use migration_ipc_crypto::Keyring;
use migration_ipc_transport::secrets::{
    self, MAX_SECRET_FILE, ProtectError, ProtectScope, SecretFileError,
};
use thiserror::Error;

use super::keyring::keyring_of;
use super::text::{KeyFileText, KeyTextError, KeyTextProblem, ParsedKey, is_name};

/// How a key file keeps its keys from those who get hold of a copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyProtection {
    /// It does not: whoever reads the file has the keys. That nobody else can is checked.
    Clear,
    /// By Windows' data protection (DPAPI), beside that.
    Dpapi(ProtectScope),
}

impl KeyProtection {
    /// The strongest that this system has for this process: on Windows its data protection, for the
    /// machine if the process runs as SYSTEM.
    #[must_use]
    pub fn strongest() -> Self {
        ProtectScope::usual().map_or(Self::Clear, Self::Dpapi)
    }
}

/// A key file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file: it is not there, or others could read or change it.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// What is in it.
    #[error("the key file {}, {error}", .path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The line that is wrong.
        error: KeyTextError,
    },
    /// The operating system's protection.
    #[error("the key file {}: {error}", .path.display())]
    Protection {
        /// The file.
        path: PathBuf,
        /// Why it is not opened, or not made.
        error: ProtectError,
    },
    /// The keys to be written are no keys of one file.
    #[error("these keys cannot be in one file: {0}")]
    Keys(KeyTextProblem),
}

impl KeyFileError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::File(error) => error.is_missing(),
            Self::Text { .. } | Self::Protection { .. } | Self::Keys(_) => false,
        }
    }
}

/// Reads the keys of a file that nobody else can read or change, opening it with the operating
/// system's protection if it was made with that. Blocks.
///
/// # Errors
/// What is wrong with the file, its owner, its access list or its text, and what to do.
pub fn read_key_file(path: impl AsRef<Path>) -> Result<Vec<ParsedKey>, KeyFileError> {
    Ok(read_numbered(path.as_ref())?.0)
}

/// Reads a key file as [`read_key_file`] does, and makes a keyring of its keys for connections: a
/// `shared` one, or a `static-private` and a `static-public` one of the same name, is a key of this
/// name. The one whose line is first is what a client uses; a service has them all. What is for the
/// outbox is left out. Blocks.
///
/// # Errors
/// As of [`read_key_file`]; and when no key is for connections, or a static one has no other half.
pub fn read_keyring(path: impl AsRef<Path>) -> Result<Keyring, KeyFileError> {
    let path = path.as_ref();
    let (keys, lines) = read_numbered(path)?;
    keyring_of(&keys, &lines).map_err(|error| KeyFileError::Text {
        path: path.to_owned(),
        error,
    })
}

/// The keys of a file, and the number of each one's line. With the operating system's protection it
/// is that within what is protected.
fn read_numbered(path: &Path) -> Result<(Vec<ParsedKey>, Vec<usize>), KeyFileError> {
    let text = secrets::read_secret_file(path, MAX_SECRET_FILE)?;
    let wrong = |error| KeyFileError::Text {
        path: path.to_owned(),
        error,
    };
    let protected = match KeyFileText::parse_numbered(text.expose()).map_err(wrong)? {
        (KeyFileText::Clear(keys), lines) => return Ok((keys, lines)),
        (KeyFileText::Protected(protected), _) => protected,
    };
    let inner = secrets::unprotect(&protected).map_err(|error| KeyFileError::Protection {
        path: path.to_owned(),
        error,
    })?;
    match KeyFileText::parse_numbered(inner.expose()).map_err(wrong)? {
        (KeyFileText::Clear(keys), lines) => Ok((keys, lines)),
        (KeyFileText::Protected(_), _) => Err(wrong(KeyTextError {
            line: 1,
            problem: KeyTextProblem::NotAKeyFile,
        })),
    }
}

/// Writes a new file with these keys, for the own account alone; it has its name only once all of it
/// is on the disk. Blocks.
///
/// # Errors
/// When something has that name, others could change the folder, the disk fails, or the protection is
/// not to be had.
pub fn write_key_file(
    path: impl AsRef<Path>,
    keys: &[ParsedKey],
    protection: KeyProtection,
) -> Result<(), KeyFileError> {
    let path = path.as_ref();
    if let Some(bad) = keys.iter().find(|key| !is_name(&key.name)) {
        tracing::debug!(name = bad.name, "a key's name that no file can have");
        return Err(KeyFileError::Keys(KeyTextProblem::Name));
    }
    let text = KeyFileText::Clear(keys.to_vec()).to_text();
    // What is not read again is not written.
    KeyFileText::parse(text.expose()).map_err(|error| KeyFileError::Keys(error.problem))?;
    let text = match protection {
        KeyProtection::Clear => text,
        KeyProtection::Dpapi(scope) => {
            let protected =
                secrets::protect(&text, scope).map_err(|error| KeyFileError::Protection {
                    path: path.to_owned(),
                    error,
                })?;
            KeyFileText::Protected(protected).to_text()
        }
    };
    Ok(secrets::write_secret_file(path, &text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyKind, generate_shared_key};

    fn key(name: &str) -> ParsedKey {
        ParsedKey {
            name: name.to_owned(),
            kind: KeyKind::Shared,
            bytes: generate_shared_key().unwrap(),
        }
    }

    #[test]
    fn keys_come_back_from_the_disk_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [key("a"), key("b")];
        for (number, protection) in [KeyProtection::Clear, KeyProtection::strongest()]
            .into_iter()
            .enumerate()
        {
            let path = folder.path().join(number.to_string());
            write_key_file(&path, &keys, protection).unwrap();
            assert_eq!(read_key_file(&path).unwrap(), keys);
        }
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        for keys in [&[key("a"), key("a")][..], &[key("two words")], &[]] {
            let error = write_key_file(&path, keys, KeyProtection::Clear).unwrap_err();
            assert!(matches!(error, KeyFileError::Keys(_)), "{error}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_mistake_names_the_file_and_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let text = secrets::Secret::new(b"migration-ipc-keys 1\n\na b\n".to_vec());
        secrets::write_secret_file(&path, &text).unwrap();
        let said = read_key_file(&path).unwrap_err().to_string();
        assert!(said.contains(&path.display().to_string()), "{said}");
        assert!(said.contains("line 3: a line is NAME KIND KEY"), "{said}");
    }

    /// A file that was made on Windows and copied here, or made by nobody at all.
    #[test]
    fn what_the_system_does_not_open_is_an_error_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let text = KeyFileText::Protected(vec![1; 100]).to_text();
        secrets::write_secret_file(&path, &text).unwrap();
        let error = read_key_file(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Protection { .. }), "{error}");
        assert!(!error.is_missing());
    }
}
