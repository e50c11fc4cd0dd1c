//! Where a socket may be, and where not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use migration_ipc_transport::{BindError, FolderProblem};
use rustix::process::geteuid;

use crate::support::{
    ALICE, Player, Scratch, endpoint, give_to, is_root, leave_stale_socket, mode, serve, set_mode,
};

async fn problem_of(folder: &Path) -> FolderProblem {
    match serve(&endpoint(&folder.join("s.sock"))).await {
        Err(BindError::UnsuitableFolder { path, problem }) => {
            assert_eq!(path, folder);
            problem
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_missing_folder_is_made() {
    let scratch = Scratch::new();
    let folder = scratch.join("made");
    let _listener = serve(&endpoint(&folder.join("s.sock"))).await.unwrap();
    assert_eq!(
        mode(&folder),
        if geteuid().is_root() { 0o755 } else { 0o700 }
    );
}

#[tokio::test]
async fn a_missing_parent_of_the_folder_is_an_error() {
    let scratch = Scratch::new();
    let path = scratch.join("missing/folder/s.sock");
    let error = serve(&endpoint(&path)).await.unwrap_err();
    let expected = format!("cannot serve {}: making its folder: ", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn a_link_to_a_folder_is_refused() {
    let scratch = Scratch::new();
    let (real, link) = (scratch.join("real"), scratch.join("link"));
    symlink(&real, &link).unwrap();
    assert_eq!(
        problem_of(&link).await,
        FolderProblem::SymbolicLink,
        "dangling"
    );
    fs::create_dir(&real).unwrap();
    assert_eq!(problem_of(&link).await, FolderProblem::SymbolicLink);
}

#[tokio::test]
async fn a_file_is_no_folder() {
    let scratch = Scratch::new();
    let file = scratch.join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(problem_of(&file).await, FolderProblem::NotAFolder);
}

#[tokio::test]
async fn a_folder_that_others_can_write_to_is_refused() {
    let scratch = Scratch::new();
    for mode in [0o775, 0o757, 0o777] {
        set_mode(scratch.path(), mode);
        assert_eq!(
            problem_of(scratch.path()).await,
            FolderProblem::WritableByOthers { mode }
        );
    }
    // Everybody may make files in a folder like /tmp, and nobody may remove another's.
    set_mode(scratch.path(), 0o1777);
    serve(&scratch.endpoint()).await.unwrap();
}

#[tokio::test]
async fn a_folder_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    give_to(scratch.path(), ALICE);
    let problem = FolderProblem::ForeignOwner {
        owner: ALICE,
        expected: 0,
    };
    assert_eq!(problem_of(scratch.path()).await, problem);
    assert_eq!(scratch.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_folder_that_is_closed_to_this_account_is_refused() {
    if !is_root() {
        return;
    }
    // As when an ordinary user starts a service where the system's one would be.
    let scratch = Scratch::new();
    let said = Player::start_as(ALICE, "serve", &scratch.endpoint()).line();
    let expected = format!(
        "the folder {} cannot be written to",
        scratch.path().display()
    );
    assert!(said.starts_with(&expected), "{said}");
}

/// In a shared folder a name can be taken before the service starts. It must not be served, and not
/// be taken for the service's own.
#[tokio::test]
async fn in_a_shared_folder_what_another_user_put_there_is_an_error() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    set_mode(scratch.path(), 0o1777);
    let endpoint = scratch.endpoint();

    let lock = scratch.join("s.sock.lock");
    fs::write(&lock, "").unwrap();
    give_to(&lock, ALICE);
    let error = serve(&endpoint).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is the lock file of another account"),
        "{error}"
    );
    fs::remove_file(&lock).unwrap();

    let mut squatter = Player::start_as(ALICE, "serve", &endpoint);
    assert_eq!(squatter.line(), "serving");
    let error = serve(&endpoint).await.unwrap_err();
    assert!(!matches!(error, BindError::Io { .. }), "{error:?}");
    drop(squatter);
    fs::remove_file(&lock).unwrap();

    // A dead socket of another user stands in an ordinary user's way, but not in root's.
    fs::remove_file(endpoint.address()).unwrap();
    leave_stale_socket(&endpoint);
    let mut alice = Player::start_as(ALICE, "serve", &endpoint);
    let said = alice.line();
    assert!(
        said.contains("another process") || said.contains("of another account"),
        "{said}"
    );
    serve(&endpoint).await.unwrap();
}
