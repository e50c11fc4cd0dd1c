//! Files with secrets: who may have been at them, and what is done about it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use migration_ipc_transport::secrets::{
    MAX_SECRET_FILE, ProtectError, ProtectScope, Secret, SecretFileProblem, protect,
    read_secret_file, unprotect, write_secret_file,
};
use tempfile::TempDir;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

const SECRET: &[u8] = b"correct horse battery staple\n";

fn write(path: &Path) {
    write_secret_file(path, &Secret::new(SECRET.to_vec())).unwrap();
}

fn problem_of(path: &Path) -> SecretFileProblem {
    let error = read_secret_file(path, MAX_SECRET_FILE).unwrap_err();
    assert_eq!(error.path, path);
    let named = error.to_string();
    assert!(named.contains(&path.display().to_string()), "{named}");
    error.problem
}

fn names(folder: &TempDir) -> Vec<String> {
    fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn what_is_written_is_read_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    let read = read_secret_file(&path, MAX_SECRET_FILE).unwrap();
    assert_eq!(read.expose(), SECRET);
    assert_eq!(names(&folder), ["keys"]);
}

#[test]
fn a_file_that_is_there_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    let again = write_secret_file(&path, &Secret::new(b"another".to_vec())).unwrap_err();
    assert!(
        matches!(again.problem, SecretFileProblem::Exists),
        "{again}"
    );
    assert_eq!(fs::read(&path).unwrap(), SECRET);
    assert_eq!(names(&folder), ["keys"]);
}

#[test]
fn a_missing_file_and_a_missing_folder_are_told_apart_from_others() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["keys", "missing/keys"] {
        let path = folder.path().join(path);
        assert!(matches!(problem_of(&path), SecretFileProblem::Missing));
        assert!(read_secret_file(&path, 1).unwrap_err().is_missing());
    }
    let path = folder.path().join("missing").join("keys");
    let error = write_secret_file(&path, &Secret::new(SECRET.to_vec())).unwrap_err();
    assert!(error.to_string().contains("make it first"), "{error}");
}

#[test]
fn a_folder_is_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    fs::create_dir(&path).unwrap();
    assert!(matches!(problem_of(&path), SecretFileProblem::NotAFile));
    assert!(matches!(
        problem_of(Path::new("..")),
        SecretFileProblem::NotAFile
    ));
}

#[test]
fn a_file_that_is_too_long_or_empty_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    let exactly = u64::try_from(SECRET.len()).unwrap();
    assert!(read_secret_file(&path, exactly).is_ok());
    let error = read_secret_file(&path, exactly - 1).unwrap_err();
    assert!(
        matches!(error.problem, SecretFileProblem::TooLong { .. }),
        "{error}"
    );
    let empty = folder.path().join("empty");
    write_secret_file(&empty, &Secret::new(Vec::new())).unwrap();
    assert!(matches!(problem_of(&empty), SecretFileProblem::Empty));
}

#[test]
fn a_system_without_data_protection_says_so() {
    assert_eq!(ProtectScope::usual().is_some(), cfg!(windows));
    if cfg!(windows) {
        // Its own tests show what it does.
        return;
    }
    let secret = Secret::new(SECRET.to_vec());
    for error in [
        unprotect(b"anything").unwrap_err(),
        protect(&secret, ProtectScope::User).unwrap_err(),
    ] {
        assert!(matches!(error, ProtectError::NotSupported));
        assert!(error.to_string().contains("0600"), "{error}");
    }
}
