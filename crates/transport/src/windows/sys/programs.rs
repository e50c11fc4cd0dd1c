//! What programs on top need of the system, beside pipes: folders and files with an access list of
//! their own, and the process that started them.

use std::ffi::OsStr;
use std::fs::File;
use std::mem;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::Path;
use std::ptr::null_mut;

use windows_sys::Win32::Foundation::{ERROR_NOT_FOUND, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Security::SECURITY_ATTRIBUTES;
use windows_sys::Win32::Storage::FileSystem::{
    CREATE_NEW, CreateDirectoryW, CreateFileW, FILE_FLAG_OPEN_REPARSE_POINT, FILE_GENERIC_WRITE,
    MOVEFILE_WRITE_THROUGH, MoveFileExW,
};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, PROCESSENTRY32W, Process32FirstW, Process32NextW, TH32CS_SNAPPROCESS,
};
use windows_sys::Win32::System::Threading::{
    INFINITE, OpenProcess, PROCESS_SYNCHRONIZE, WaitForSingleObject,
};

use super::{Code, Descriptor, check, last_error, size_of_u32};

/// `CreateDirectoryW` with a security descriptor.
///
/// # Errors
///
/// 183 when something has the name; otherwise the code of the call.
pub fn create_folder(path: &Path, descriptor: &Descriptor) -> Result<(), Code> {
    let path = wide_path(path);
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of_u32::<SECURITY_ATTRIBUTES>(),
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: 0,
    };
    // SAFETY: the path ends with a zero, and the attributes with their descriptor outlive the call.
    check(unsafe { CreateDirectoryW(path.as_ptr(), &raw const attributes) })
}

/// `CreateFileW` of a new file with a security descriptor, for writing and shared with nobody. The
/// handle is not inherited by child processes.
///
/// # Errors
///
/// 80 when something has the name; otherwise the code of the call.
pub fn create_file(path: &Path, descriptor: &Descriptor) -> Result<File, Code> {
    let path = wide_path(path);
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of_u32::<SECURITY_ATTRIBUTES>(),
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: 0,
    };
    // SAFETY: the path ends with a zero, the attributes with their descriptor outlive the call, and
    // there is no template.
    let handle = unsafe {
        CreateFileW(
            path.as_ptr(),
            FILE_GENERIC_WRITE,
            0,
            &raw const attributes,
            CREATE_NEW,
            FILE_FLAG_OPEN_REPARSE_POINT,
            null_mut(),
        )
    };
    if handle == INVALID_HANDLE_VALUE {
        return Err(last_error());
    }
    // SAFETY: the call gave this open handle to us alone.
    Ok(File::from(unsafe { OwnedHandle::from_raw_handle(handle) }))
}

/// `MoveFileExW` within a volume, which returns when the new name is on the disk, and never replaces
/// anything.
///
/// # Errors
///
/// 183 when something has the new name; otherwise the code of the call.
pub fn move_file(from: &Path, to: &Path) -> Result<(), Code> {
    let (from, to) = (wide_path(from), wide_path(to));
    // SAFETY: both paths end with a zero.
    check(unsafe { MoveFileExW(from.as_ptr(), to.as_ptr(), MOVEFILE_WRITE_THROUGH) })
}

fn wide_path(path: &Path) -> Vec<u16> {
    OsStr::encode_wide(path.as_os_str()).chain([0]).collect()
}

/// A process whose end can be waited for.
#[derive(Debug)]
pub struct Process(OwnedHandle);

impl Process {
    /// A second handle to it (`DuplicateHandle`).
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// `WaitForSingleObject`: blocks until the process has ended.
    pub fn wait(&self) {
        // SAFETY: the handle is open as long as `self` is.
        unsafe { WaitForSingleObject(self.0.as_raw_handle(), INFINITE) };
    }
}

/// `OpenProcess` of the process that started this one, to wait for its end.
///
/// # Errors
///
/// The code of the call; `ERROR_NOT_FOUND` when there is no such process.
pub fn parent_process() -> Result<Process, Code> {
    let id = parent_id()?;
    // SAFETY: no pointer is passed.
    let handle = unsafe { OpenProcess(PROCESS_SYNCHRONIZE, 0, id) };
    if handle.is_null() {
        return Err(last_error());
    }
    // SAFETY: the call gave this open handle to us alone.
    Ok(Process(unsafe { OwnedHandle::from_raw_handle(handle) }))
}

/// The id of the process that started this one, from a snapshot of all processes.
fn parent_id() -> Result<u32, Code> {
    // SAFETY: no pointer is passed.
    let snapshot = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0) };
    if snapshot == INVALID_HANDLE_VALUE {
        return Err(last_error());
    }
    // SAFETY: the call gave this open handle to us alone.
    let snapshot = unsafe { OwnedHandle::from_raw_handle(snapshot) };
    // SAFETY: all-zero bytes are a valid value of this struct of integers.
    let mut entry: PROCESSENTRY32W = unsafe { mem::zeroed() };
    entry.dwSize = size_of_u32::<PROCESSENTRY32W>();
    // SAFETY: the handle is a snapshot's, and the entry says its size.
    let mut more = unsafe { Process32FirstW(snapshot.as_raw_handle(), &raw mut entry) };
    while more != 0 {
        if entry.th32ProcessID == std::process::id() {
            return Ok(entry.th32ParentProcessID);
        }
        // SAFETY: as above.
        more = unsafe { Process32NextW(snapshot.as_raw_handle(), &raw mut entry) };
    }
    Err(ERROR_NOT_FOUND)
}
