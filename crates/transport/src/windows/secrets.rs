//! Files with secrets, and the data protection of Windows.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::windows::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::windows::io::AsHandle as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{os_error, sys};
use crate::secrets::{ProtectError, ProtectScope, SecretFileProblem, split};
use crate::security::{OtherReader, READING_RIGHTS, REPLACING_RIGHTS, Sid};

/// What to do about a file of another account.
pub(crate) const TAKE_OVER: &str = "it must belong to SYSTEM, to Administrators or to the account \
                                    that uses it (takeown /F FILE), or copy it";

/// What to do about a file that others may read or change.
pub(crate) const CLOSE: &str = "take their rights away (icacls FILE /inheritance:r /grant:r \
                                *S-1-5-18:F *S-1-5-32-544:F \"%USERNAME%\":F), and replace the \
                                secret if somebody may have read it";

/// Another program that uses DPAPI in the same account does not open what is protected with this,
/// unless it is made to. It is no secret.
const ENTROPY: &[u8] = b"migration-ipc secret 1";

/// `GENERIC_READ`, which includes what it takes to see the owner and the list.
const GENERIC_READ: u32 = 0x8000_0000;

/// `READ_CONTROL`.
const READ_CONTROL: u32 = 0x0002_0000;

/// `FILE_SHARE_READ`, and for a folder also that others write and delete in it.
const SHARE_READ: u32 = 0x1;
const SHARE_ALL: u32 = 0x1 | 0x2 | 0x4;

/// `FILE_FLAG_OPEN_REPARSE_POINT`: the link itself and not what it leads to.
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// `FILE_FLAG_BACKUP_SEMANTICS`, without which a folder cannot be opened.
const BACKUP_SEMANTICS: u32 = 0x0200_0000;

/// `SECURITY_IDENTIFICATION`: a path may be that of a pipe, whose server is not to act as this
/// process.
const IDENTIFICATION: u32 = 0x0001_0000;

const REPARSE_POINT: u32 = 0x400;
const DIRECTORY: u32 = 0x10;

/// `ERROR_PATH_NOT_FOUND`, `ERROR_FILE_EXISTS` and `ERROR_ALREADY_EXISTS`.
const PATH_NOT_FOUND: sys::Code = 3;
const FILE_EXISTS: sys::Code = 80;
const ALREADY_EXISTS: sys::Code = 183;

/// `NT SERVICE\TrustedInstaller`, to whom folders of the system belong.
const TRUSTED_INSTALLER: &str = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464";

/// Opens a file that passes all checks.
pub(crate) fn open(path: &Path) -> Result<File, SecretFileProblem> {
    let (folder, _) = split(path)?;
    let own = own_account()?;
    check_folder(&folder, &own)?;
    let opened = OpenOptions::new()
        .access_mode(GENERIC_READ)
        .share_mode(SHARE_READ)
        .custom_flags(OPEN_REPARSE_POINT)
        .security_qos_flags(IDENTIFICATION)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SecretFileProblem::Missing);
        }
        // A folder does not open without a flag of its own.
        Err(_) if path.is_dir() => return Err(SecretFileProblem::NotAFile),
        Err(source) => return Err(problem("opening it")(source)),
    };
    // Fails for what is not on a disk.
    let about = file.metadata().map_err(problem("looking at it"))?;
    if about.file_attributes() & REPARSE_POINT != 0 {
        return Err(SecretFileProblem::Link);
    }
    if !about.is_file() {
        return Err(SecretFileProblem::NotAFile);
    }
    let security = sys::pipe_security(file.as_handle()).map_err(code("reading its access list"))?;
    if !is_trusted(&security.owner, &own) {
        return Err(SecretFileProblem::ForeignOwner {
            owner: security.owner.to_string(),
        });
    }
    let (system, administrators) = (Sid::system(), Sid::administrators());
    match security.other_reader(&[&system, &administrators, &own], READING_RIGHTS) {
        Some(other) => Err(SecretFileProblem::OpenToOthers {
            how: other.to_string(),
        }),
        None => Ok(file),
    }
}

/// Makes a file under a name of the moment, and gives it its own when all of it is on the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), SecretFileProblem> {
    let (folder, name) = split(path)?;
    let own = own_account()?;
    match check_folder(&folder, &own) {
        Err(SecretFileProblem::Missing) => {
            return Err(SecretFileProblem::UnsafeFolder {
                folder,
                problem: "does not exist; make it first".to_owned(),
            });
        }
        checked => checked?,
    }
    let moment = folder.join(momentary(&name));
    let result = write_and_move(&moment, path, bytes, &own);
    if result.is_err() {
        // What is told is why it failed.
        drop(fs::remove_file(&moment));
    }
    result
}

fn write_and_move(
    moment: &Path,
    path: &Path,
    bytes: &[u8],
    own: &Sid,
) -> Result<(), SecretFileProblem> {
    let sddl = format!("O:{own}D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;{own})");
    let descriptor = sys::descriptor_from_sddl(&sddl).map_err(code("making its access list"))?;
    let made = match sys::create_file(moment, &descriptor) {
        // No process that lives has this one's id: a crash left it behind.
        Err(FILE_EXISTS | ALREADY_EXISTS) => {
            fs::remove_file(moment).map_err(problem("making it"))?;
            sys::create_file(moment, &descriptor)
        }
        made => made,
    };
    let mut file = made.map_err(code("making it"))?;
    file.write_all(bytes).map_err(problem("writing it"))?;
    file.sync_all().map_err(problem("writing it to the disk"))?;
    drop(file);
    match sys::move_file(moment, path) {
        Ok(()) => Ok(()),
        Err(FILE_EXISTS | ALREADY_EXISTS) => Err(SecretFileProblem::Exists),
        Err(error) => Err(code("giving it its name")(error)),
    }
}

/// A name in the same folder that no other process and no other call uses.
fn momentary(name: &Path) -> PathBuf {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut moment = OsString::from(".");
    moment.push(name);
    moment.push(format!(".{}-{call}.new", process::id()));
    moment.into()
}

fn check_folder(path: &Path, own: &Sid) -> Result<(), SecretFileProblem> {
    let opened = OpenOptions::new()
        .access_mode(READ_CONTROL)
        .share_mode(SHARE_ALL)
        .custom_flags(OPEN_REPARSE_POINT | BACKUP_SEMANTICS)
        .security_qos_flags(IDENTIFICATION)
        .open(path);
    let folder = match opened {
        Ok(folder) => folder,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || super::os_code(&error) == Some(PATH_NOT_FOUND) =>
        {
            return Err(SecretFileProblem::Missing);
        }
        Err(source) => return Err(problem("opening its folder")(source)),
    };
    let unsafe_folder = |problem: String| SecretFileProblem::UnsafeFolder {
        folder: path.to_owned(),
        problem,
    };
    // Of the path, since the handle has no right to read attributes; it is checked for what it is
    // and not for whose.
    let about = path
        .symlink_metadata()
        .map_err(problem("looking at its folder"))?;
    if about.file_attributes() & REPARSE_POINT != 0 {
        return Err(unsafe_folder(
            "is a link; name the folder that it leads to".to_owned(),
        ));
    }
    if about.file_attributes() & DIRECTORY == 0 {
        return Err(unsafe_folder("is not a folder".to_owned()));
    }
    let security = sys::pipe_security(folder.as_handle())
        .map_err(code("reading the access list of its folder"))?;
    let installer: Option<Sid> = TRUSTED_INSTALLER.parse().ok();
    let is_installer = |sid: &Sid| installer.as_ref() == Some(sid);
    if !is_trusted(&security.owner, own) && !is_installer(&security.owner) {
        return Err(unsafe_folder(format!(
            "belongs to {}; it must belong to SYSTEM, Administrators or this account",
            security.owner
        )));
    }
    let (system, administrators) = (Sid::system(), Sid::administrators());
    let mut masters = vec![&system, &administrators, own];
    masters.extend(installer.as_ref());
    match security.other_reader(&masters, REPLACING_RIGHTS) {
        Some(other) => Err(unsafe_folder(replaceable(&other))),
        None => Ok(()),
    }
}

fn replaceable(other: &OtherReader) -> String {
    format!(
        "others can change: {other}; take these rights away (icacls FOLDER /remove:g ...), or \
         choose a folder of your own"
    )
}

fn is_trusted(owner: &Sid, own: &Sid) -> bool {
    owner == own || *owner == Sid::system() || *owner == Sid::administrators()
}

fn own_account() -> Result<Sid, SecretFileProblem> {
    sys::open_process_token()
        .and_then(|token| sys::token_user(token.as_handle()))
        .map_err(code("asking who runs this process"))
}

fn problem(action: &'static str) -> impl Fn(io::Error) -> SecretFileProblem {
    move |source| SecretFileProblem::Io { action, source }
}

fn code(action: &'static str) -> impl Fn(sys::Code) -> SecretFileProblem {
    move |code| SecretFileProblem::Io {
        action,
        source: os_error(code),
    }
}

pub(crate) fn usual_scope() -> Option<ProtectScope> {
    // Who cannot be told is not taken for the system.
    let system = own_account().is_ok_and(|own| own == Sid::system());
    Some(if system {
        ProtectScope::Machine
    } else {
        ProtectScope::User
    })
}

pub(crate) fn protect(secret: &[u8], scope: ProtectScope) -> Result<Vec<u8>, ProtectError> {
    sys::protect_data(secret, ENTROPY, scope).map_err(|code| ProtectError::Io {
        source: os_error(code),
    })
}

pub(crate) fn unprotect(protected: &[u8]) -> Result<Vec<u8>, ProtectError> {
    sys::unprotect_data(protected, ENTROPY).map_err(|code| ProtectError::Unopened {
        source: os_error(code),
    })
}
