//! Where things are kept, and that nobody else can get at them.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::os::{NoDefaultFolder, PrivateFolderError, folder_from};

/// In a folder with this bit, only the owner of an entry can rename or remove it.
const STICKY: u32 = 0o1000;

/// Where the service keeps its state: the system's place for root, else the user's.
pub(crate) fn service_data_folder() -> Result<PathBuf, NoDefaultFolder> {
    if geteuid().is_root() {
        let mac = cfg!(target_os = "macos");
        let base = if mac {
            "/Library/Application Support"
        } else {
            "/var/lib"
        };
        return Ok(Path::new(base).join("migration-ipc"));
    }
    let base = match folder_from("XDG_STATE_HOME") {
        Ok(state) => state,
        Err(_) => folder_from("HOME")?.join(".local/state"),
    };
    Ok(base.join("migration-ipc/service"))
}

/// Where an agent keeps what is its user's.
pub(crate) fn agent_data_folder() -> Result<PathBuf, NoDefaultFolder> {
    let base = match folder_from("XDG_DATA_HOME") {
        Ok(data) => data,
        Err(_) if cfg!(target_os = "macos") => {
            folder_from("HOME")?.join("Library/Application Support")
        }
        Err(_) => folder_from("HOME")?.join(".local/share"),
    };
    Ok(base.join("migration-ipc"))
}

pub(crate) fn documents_folder() -> Result<PathBuf, NoDefaultFolder> {
    Ok(folder_from("HOME")?.join("Documents"))
}

/// Makes a folder that only this account can use, or checks that an existing one is such.
///
/// One that is ours and open to others is closed if it is empty or has the file `ours` in it;
/// otherwise it may be somebody's home, and is refused. So is one in a folder whose entries others
/// can rename: they could put another in its place after it was checked.
pub(crate) fn prepare_private_folder(path: &Path, ours: &str) -> Result<(), PrivateFolderError> {
    // With a slash at its end, a link would be looked through and not at (path_resolution(7)).
    let path: &Path = &path.components().collect::<PathBuf>();
    let failed = |error| PrivateFolderError::Io {
        path: path.to_owned(),
        error,
    };
    if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
        fs::create_dir_all(parent).map_err(failed)?;
        check_parent(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        Ok(()) | Err(_) => check(path, ours),
    }
}

/// Looks at the folder that a link leads to: links above are their folders' owners' affair.
fn check_parent(parent: &Path) -> Result<(), PrivateFolderError> {
    let about = parent.metadata().map_err(|error| PrivateFolderError::Io {
        path: parent.to_owned(),
        error,
    })?;
    let own = geteuid();
    let mode = about.mode() & 0o7777;
    // Where each user has a group of their own, folders that are theirs are often open to it. What
    // is root's is open to nobody.
    let others = if own.is_root() { 0o022 } else { 0o002 };
    let problem = if about.uid() != own.as_raw() && about.uid() != 0 {
        format!("it belongs to uid {}", about.uid())
    } else if mode & others != 0 && mode & STICKY == 0 {
        format!("it has mode {mode:04o}")
    } else {
        return Ok(());
    };
    let path = parent.to_owned();
    Err(PrivateFolderError::UnsafeParent { path, problem })
}

fn check(path: &Path, ours: &str) -> Result<(), PrivateFolderError> {
    let failed = |error| PrivateFolderError::Io {
        path: path.to_owned(),
        error,
    };
    let metadata = path.symlink_metadata().map_err(failed)?;
    if metadata.is_symlink() {
        return Err(PrivateFolderError::Redirected(path.to_owned()));
    }
    if !metadata.is_dir() {
        return Err(PrivateFolderError::NotAFolder(path.to_owned()));
    }
    let own = geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        let owner = format!("uid {}", metadata.uid());
        return Err(PrivateFolderError::ForeignOwner {
            path: path.to_owned(),
            owner,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let vacant = fs::read_dir(path).map_err(failed)?.next().is_none();
    if metadata.uid() == own && (vacant || path.join(ours).exists()) {
        return fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed);
    }
    Err(PrivateFolderError::OpenToOthers {
        path: path.to_owned(),
        mode,
    })
}

/// Where the demonstration's service listens: a socket in the scratch folder.
pub(crate) fn scratch_endpoint(scratch: &Path, _id: &str) -> String {
    scratch.join("service.sock").to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_folder_is_private() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("a/b");
        prepare_private_folder(&folder, "state").unwrap();
        assert_eq!(mode(&folder), 0o700);
        prepare_private_folder(&folder, "state").unwrap();
    }

    #[test]
    fn an_open_folder_is_closed_only_if_it_is_ours() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path();
        set_mode(folder, 0o755);
        prepare_private_folder(folder, "state").unwrap();
        assert_eq!(mode(folder), 0o700, "it was empty");

        fs::write(folder.join("thesis.txt"), "").unwrap();
        set_mode(folder, 0o755);
        let error = prepare_private_folder(folder, "state").unwrap_err();
        assert!(
            matches!(error, PrivateFolderError::OpenToOthers { mode: 0o755, .. }),
            "{error}"
        );

        fs::write(folder.join("state"), "").unwrap();
        prepare_private_folder(folder, "state").unwrap();
        assert_eq!(mode(folder), 0o700, "it has our state");
    }

    #[test]
    fn a_link_and_a_file_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(outer.path(), &link).unwrap();
        for end in ["", "/", "/."] {
            let named = PathBuf::from(format!("{}{end}", link.display()));
            let error = prepare_private_folder(&named, "state").unwrap_err();
            assert!(
                matches!(error, PrivateFolderError::Redirected(_)),
                "{error}"
            );
        }
        let file = outer.path().join("file");
        fs::write(&file, "").unwrap();
        let error = prepare_private_folder(&file, "state").unwrap_err();
        assert!(
            matches!(error, PrivateFolderError::NotAFolder(_)),
            "{error}"
        );
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can give a folder to somebody else");
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(outer.path(), Some(12345), None).unwrap();
        let error = prepare_private_folder(outer.path(), "state").unwrap_err();
        assert!(
            matches!(error, PrivateFolderError::ForeignOwner { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_others_can_exchange_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("data");
        for mode in [0o777, 0o757] {
            set_mode(outer.path(), mode);
            let error = prepare_private_folder(&folder, "state").unwrap_err();
            assert!(
                error.to_string().contains(&format!("{mode:04o}")),
                "{error}"
            );
            assert!(!folder.exists());
        }
        set_mode(outer.path(), 0o1777);
        prepare_private_folder(&folder, "state").unwrap();
        if !geteuid().is_root() {
            eprintln!("skipped: only root can give a folder to somebody else");
            return;
        }
        set_mode(outer.path(), 0o775);
        assert!(prepare_private_folder(&folder, "state").is_err());
        set_mode(outer.path(), 0o755);
        std::os::unix::fs::chown(outer.path(), Some(12345), None).unwrap();
        let error = prepare_private_folder(&folder, "state").unwrap_err();
        assert!(error.to_string().contains("uid 12345"), "{error}");
    }
}
