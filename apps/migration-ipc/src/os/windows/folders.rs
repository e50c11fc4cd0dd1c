//! Where things are kept, and that nobody else can get at them.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::windows::fs::{MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsHandle;
use std::path::{Path, PathBuf};

use migration_ipc::transport::win32::{self, Sid};

use super::files::is_reparse_point;
use super::os_error;
use crate::os::{NoDefaultFolder, PrivateFolderError, folder_from};

/// Full access for SYSTEM, Administrators and the owner, inherited by everything inside, and for
/// nobody else (`P`: nothing is inherited from the folder around it).
/// <https://learn.microsoft.com/windows/win32/secauthz/ace-strings>
const PRIVATE: &str = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;OW)";

/// `FILE_FLAG_BACKUP_SEMANTICS`, without which a folder cannot be opened, and
/// `FILE_FLAG_OPEN_REPARSE_POINT`.
const OPEN_FOLDER_ITSELF: u32 = 0x0200_0000 | 0x0020_0000;

/// `FILE_ATTRIBUTE_DIRECTORY`.
const DIRECTORY: u32 = 0x10;

/// `READ_CONTROL`: to see the owner.
const READ_CONTROL: u32 = 0x0002_0000;

/// Where the service keeps its state: for SYSTEM in `%ProgramData%`, where users have no profile;
/// the development service's lies in its user's profile.
pub(crate) fn service_data_folder() -> Result<PathBuf, NoDefaultFolder> {
    let system = win32::open_process_token()
        .and_then(|token| win32::token_user(token.as_handle()))
        .is_ok_and(|user| user == Sid::system());
    let base = folder_from(if system {
        "ProgramData"
    } else {
        "LOCALAPPDATA"
    })?;
    Ok(base.join("migration-ipc").join("service"))
}

/// Where an agent keeps what is its user's.
pub(crate) fn agent_data_folder() -> Result<PathBuf, NoDefaultFolder> {
    Ok(folder_from("LOCALAPPDATA")?.join("migration-ipc"))
}

pub(crate) fn documents_folder() -> Result<PathBuf, NoDefaultFolder> {
    Ok(folder_from("USERPROFILE")?.join("Documents"))
}

/// Makes a folder that only this account and administrators can use, or checks that an existing
/// one is a real folder of theirs.
pub(crate) fn prepare_private_folder(path: &Path, _ours: &str) -> Result<(), PrivateFolderError> {
    let failed = |error| PrivateFolderError::Io {
        path: path.to_owned(),
        error,
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let created = win32::descriptor_from_sddl(PRIVATE)
        .and_then(|descriptor| win32::create_folder(path, &descriptor));
    match created.map_err(os_error) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        Ok(()) | Err(_) => check(path),
    }
}

fn check(path: &Path) -> Result<(), PrivateFolderError> {
    let failed = |error| PrivateFolderError::Io {
        path: path.to_owned(),
        error,
    };
    let mut options = OpenOptions::new();
    options
        .access_mode(READ_CONTROL)
        .custom_flags(OPEN_FOLDER_ITSELF);
    let folder = options.open(path).map_err(failed)?;
    let metadata = path.symlink_metadata().map_err(failed)?;
    if is_reparse_point(&metadata) {
        return Err(PrivateFolderError::Redirected(path.to_owned()));
    }
    if metadata.file_attributes() & DIRECTORY == 0 {
        return Err(PrivateFolderError::NotAFolder(path.to_owned()));
    }
    let code = |code| failed(os_error(code));
    let owner = win32::pipe_security(folder.as_handle())
        .map_err(code)?
        .owner;
    let own = win32::open_process_token()
        .and_then(|token| win32::token_user(token.as_handle()))
        .map_err(code)?;
    if [Sid::system(), Sid::administrators(), own].contains(&owner) {
        Ok(())
    } else {
        Err(PrivateFolderError::ForeignOwner {
            path: path.to_owned(),
            owner: owner.to_string(),
        })
    }
}

/// Where the demonstration's service listens: a pipe with a name of its own.
pub(crate) fn scratch_endpoint(_scratch: &Path, id: &str) -> String {
    format!("migration-ipc-demo-{id}")
}
