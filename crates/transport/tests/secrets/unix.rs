//! Modes, owners, links and folders.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use migration_ipc_transport::secrets::{
    MAX_SECRET_FILE, Secret, SecretFileProblem, read_secret_file, write_secret_file,
};
use rustix::process::geteuid;

use super::{SECRET, problem_of, write};

/// An account that owns nothing here.
const STRANGER: u32 = 60_001;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_new_file_is_for_its_account_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn any_right_of_anybody_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    for bit in 0..12 {
        let open = 0o600 | 1 << bit;
        set_mode(&path, open);
        let others = open & 0o7077 != 0;
        match read_secret_file(&path, MAX_SECRET_FILE) {
            Ok(secret) => {
                assert!(!others, "{open:04o}");
                assert_eq!(secret.expose(), SECRET);
            }
            Err(error) => {
                assert!(others, "{open:04o}: {error}");
                let text = error.to_string();
                assert!(text.contains(&format!("its mode is {open:04o}")), "{text}");
                assert!(text.contains("chmod 600"), "{text}");
            }
        }
    }
    set_mode(&path, 0o400);
    assert!(read_secret_file(&path, MAX_SECRET_FILE).is_ok());
}

#[test]
fn a_file_of_somebody_else_is_refused() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root can give a file to somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    chown(&path, Some(STRANGER), None).unwrap();
    match problem_of(&path) {
        SecretFileProblem::ForeignOwner { owner } => assert_eq!(owner, "uid 60001"),
        other => panic!("{other:?}"),
    }
    // The group has no rights by the mode, so it may be anyone's.
    chown(&path, Some(0), Some(STRANGER)).unwrap();
    assert!(read_secret_file(&path, MAX_SECRET_FILE).is_ok());
}

#[test]
fn a_link_is_refused_whatever_it_leads_to() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("keys"), folder.path().join("link"));
    symlink(&path, &link).unwrap();
    assert!(
        matches!(problem_of(&link), SecretFileProblem::Link),
        "dangling"
    );
    write(&path);
    assert!(matches!(problem_of(&link), SecretFileProblem::Link));
    let written = write_secret_file(&link, &Secret::new(SECRET.to_vec())).unwrap_err();
    assert!(matches!(written.problem, SecretFileProblem::Exists));
}

/// A pipe without a writer would be waited for.
#[test]
fn what_is_no_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, socket) = (folder.path().join("pipe"), folder.path().join("socket"));
    // Not every system has a call of one name for it.
    let made = Command::new("mkfifo")
        .args(["-m", "600"])
        .arg(&pipe)
        .status();
    assert!(made.unwrap().success());
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [&pipe, &socket] {
        assert!(matches!(problem_of(path), SecretFileProblem::NotAFile));
    }
}

#[test]
fn a_folder_where_others_can_replace_the_file_is_refused() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("keys");
    write(&path);
    for open in [0o777, 0o775, 0o722] {
        set_mode(&folder, open);
        let error = read_secret_file(&path, MAX_SECRET_FILE).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("chmod go-w"), "{open:o}: {text}");
        let other = folder.join("other");
        let error = write_secret_file(&other, &Secret::new(SECRET.to_vec())).unwrap_err();
        assert!(error.to_string().contains("chmod go-w"), "{error}");
        assert!(!other.exists());
    }
    // There nobody can replace what is another's.
    for closed in [0o755, 0o700, 0o1777] {
        set_mode(&folder, closed);
        assert!(
            read_secret_file(&path, MAX_SECRET_FILE).is_ok(),
            "{closed:o}"
        );
    }
    let link = outer.path().join("link");
    symlink(&folder, &link).unwrap();
    assert!(matches!(
        problem_of(&link.join("keys")),
        SecretFileProblem::UnsafeFolder { .. }
    ));
    if geteuid().is_root() {
        chown(&folder, Some(STRANGER), None).unwrap();
        assert!(matches!(
            problem_of(&path),
            SecretFileProblem::UnsafeFolder { .. }
        ));
    }
}

/// A power cut between the two names of a new file leaves the first one behind, and the second name
/// is not taken.
#[test]
fn what_a_crash_left_behind_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    for call in 0..20 {
        let left = format!(".keys.{}-{call}.new", std::process::id());
        fs::write(folder.path().join(left), b"half").unwrap();
    }
    let path = folder.path().join("keys");
    write(&path);
    assert_eq!(
        read_secret_file(&path, MAX_SECRET_FILE).unwrap().expose(),
        SECRET
    );
}
