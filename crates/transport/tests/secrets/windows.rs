//! Access lists, and the data protection. What Wine cannot show of both is in `docs/keys.md`.

use std::fs;
use std::io::Write as _;
use std::os::windows::fs::{OpenOptionsExt as _, symlink_file};
use std::os::windows::io::AsHandle as _;
use std::path::Path;

use migration_ipc_testkit::pipe_model::under_wine;
use migration_ipc_transport::secrets::{
    MAX_SECRET_FILE, ProtectError, ProtectScope, Secret, SecretFileProblem, protect,
    read_secret_file, unprotect,
};
use migration_ipc_transport::security::{Ace, PipeSecurity, REPLACING_RIGHTS, Sid};
use migration_ipc_transport::win32;

use super::{SECRET, problem_of, write};

fn own() -> Sid {
    let token = win32::open_process_token().unwrap();
    win32::token_user(token.as_handle()).unwrap()
}

fn make(path: &Path, sddl: &str) {
    let descriptor = win32::descriptor_from_sddl(sddl).unwrap();
    let mut file = win32::create_file(path, &descriptor).unwrap();
    file.write_all(SECRET).unwrap();
}

fn security_of_folder(path: &Path) -> PipeSecurity {
    // `READ_CONTROL`, and `FILE_FLAG_BACKUP_SEMANTICS` for a folder.
    let folder = fs::OpenOptions::new()
        .access_mode(0x0002_0000)
        .custom_flags(0x0200_0000)
        .open(path)
        .unwrap();
    win32::pipe_security(folder.as_handle()).unwrap()
}

fn security_of(path: &Path) -> PipeSecurity {
    win32::pipe_security(fs::File::open(path).unwrap().as_handle()).unwrap()
}

#[test]
fn a_new_file_is_for_its_account_and_the_systems() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    write(&path);
    let security = security_of(&path);
    assert_eq!(security.owner, own());
    let allowed = [Sid::system(), Sid::administrators(), own()];
    let list = security.dacl.unwrap();
    assert!(!list.is_empty());
    for entry in &list {
        match entry {
            Ace::Allow(_, sid) => assert!(allowed.contains(sid), "{list:?}"),
            Ace::Deny(..) | Ace::Other(_) => panic!("{list:?}"),
        }
    }
}

#[test]
fn whoever_else_may_read_or_write_is_found_in_the_access_list() {
    let folder = tempfile::tempdir().unwrap();
    let own = own();
    for (number, rights) in ["FR", "FA"].into_iter().enumerate() {
        let path = folder.path().join(format!("keys-{number}"));
        make(
            &path,
            &format!("O:{own}D:P(A;;FA;;;SY)(A;;FA;;;{own})(A;;{rights};;;WD)"),
        );
        match problem_of(&path) {
            SecretFileProblem::OpenToOthers { how } => {
                assert!(how.contains("S-1-1-0"), "{how}");
            }
            other => panic!("{other:?}"),
        }
        let text = read_secret_file(&path, MAX_SECRET_FILE)
            .unwrap_err()
            .to_string();
        assert!(text.contains("icacls"), "{text}");
    }
    let closed = folder.path().join("closed");
    make(&closed, &format!("O:{own}D:P(A;;FA;;;SY)(A;;FA;;;{own})"));
    let read = read_secret_file(&closed, MAX_SECRET_FILE).unwrap();
    assert_eq!(read.expose(), SECRET);
}

#[test]
fn a_folder_where_others_can_replace_the_file_is_refused() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("folder");
    let own = own();
    let open = format!("O:{own}D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;{own})(A;;FA;;;WD)");
    let descriptor = win32::descriptor_from_sddl(&open).unwrap();
    win32::create_folder(&folder, &descriptor).unwrap();
    let path = folder.join("keys");
    let (system, administrators) = (Sid::system(), Sid::administrators());
    let made = security_of_folder(&folder);
    let found = made.other_reader(&[&system, &administrators], REPLACING_RIGHTS);
    if under_wine() && found.is_none() {
        eprintln!("SKIPPED: Wine makes no folder with this access list");
        return;
    }
    make(&path, &format!("O:{own}D:P(A;;FA;;;SY)(A;;FA;;;{own})"));
    match problem_of(&path) {
        SecretFileProblem::UnsafeFolder { problem, .. } => {
            assert!(problem.contains("S-1-1-0"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_link_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("keys"), folder.path().join("link"));
    write(&path);
    if let Err(error) = symlink_file(&path, &link) {
        eprintln!("SKIPPED: no link can be made here: {error}");
        return;
    }
    if under_wine() && !fs::symlink_metadata(&link).is_ok_and(|about| about.is_symlink()) {
        eprintln!("SKIPPED: Wine makes no link that shows");
        return;
    }
    assert!(matches!(problem_of(&link), SecretFileProblem::Link));
}

#[test]
fn what_is_protected_is_opened_and_shows_nothing() {
    for scope in [ProtectScope::Machine, ProtectScope::User] {
        let protected = protect(&Secret::new(SECRET.to_vec()), scope).unwrap();
        let shows = protected.windows(8).any(|part| part == &SECRET[..8]);
        assert!(!shows, "{scope:?}");
        assert_eq!(unprotect(&protected).unwrap().expose(), SECRET, "{scope:?}");
    }
    let usual = ProtectScope::usual().unwrap();
    assert_eq!(usual == ProtectScope::Machine, own() == Sid::system());
}

#[test]
fn what_was_changed_or_cut_is_not_opened() {
    let protected = protect(&Secret::new(SECRET.to_vec()), ProtectScope::User).unwrap();
    let mut changed = protected.clone();
    *changed.last_mut().unwrap() ^= 1;
    for bad in [&changed[..], &protected[..protected.len() / 2], b"", b"x"] {
        let error = unprotect(bad).unwrap_err();
        assert!(matches!(error, ProtectError::Unopened { .. }), "{error}");
    }
}

#[test]
fn another_programs_protection_is_not_taken_for_ours() {
    let foreign = win32::protect_data(SECRET, b"another program", ProtectScope::User).unwrap();
    let opened = unprotect(&foreign);
    assert!(opened.is_err());
    let own = win32::unprotect_data(&foreign, b"another program").unwrap();
    assert_eq!(own, SECRET);
}
