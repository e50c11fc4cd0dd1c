//! Calls for whoever looks at the operating system itself: overlapped operations that get a moment and
//! are withdrawn then, threads that act as somebody else, and the question whether this is Wine.
//!
//! The transport needs none of them. They are here because no other crate has code that is not safe.

use std::ffi::{CStr, c_char};
use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr::{null, null_mut};

use windows_sys::Win32::Foundation::{ERROR_IO_PENDING, ERROR_MORE_DATA, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::Security::{
    DuplicateTokenEx, ImpersonateLoggedOnUser, SID_AND_ATTRIBUTES, SecurityImpersonation,
    SetTokenInformation, TOKEN_ADJUST_DEFAULT, TOKEN_DUPLICATE, TOKEN_IMPERSONATE,
    TOKEN_MANDATORY_LABEL, TOKEN_QUERY, TokenImpersonation, TokenIntegrityLevel,
};
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
use windows_sys::Win32::System::Pipes::{
    ConnectNamedPipe, DisconnectNamedPipe, PIPE_READMODE_MESSAGE, SetNamedPipeHandleState,
    WaitNamedPipeW,
};
use windows_sys::Win32::System::SystemServices::SE_GROUP_INTEGRITY;
use windows_sys::Win32::System::Threading::{CreateEventW, WaitForSingleObject};
use windows_sys::core::BOOL;

use super::{Code, Sid, assert_terminated, check, last_error, length, raw};

/// `ConnectNamedPipe`.
///
/// # Errors
///
/// 995 (`ERROR_OPERATION_ABORTED`) when it had to wait for longer than `limit` milliseconds.
pub fn listen_within(pipe: BorrowedHandle<'_>, limit: u32) -> Result<(), Code> {
    attempt(pipe, limit, |handle, overlapped| {
        // SAFETY: `attempt` keeps handle and memory valid until the operation has ended.
        unsafe { ConnectNamedPipe(handle, overlapped) }
    })
    .map(|_count| ())
    .map_err(|(code, _count)| code)
}

/// `ReadFile`: the bytes, and whether the message goes on (234).
///
/// # Errors
///
/// As [`listen_within`].
pub fn read_within(
    pipe: BorrowedHandle<'_>,
    room: usize,
    limit: u32,
) -> Result<(Vec<u8>, bool), Code> {
    let mut bytes = vec![0; room];
    let outcome = attempt(pipe, limit, |handle, overlapped| {
        // SAFETY: `attempt` keeps handle and memory valid until the operation has ended, and the
        // buffer, as long as the argument says, outlives `attempt`.
        unsafe {
            ReadFile(
                handle,
                bytes.as_mut_ptr(),
                size(room),
                null_mut(),
                overlapped,
            )
        }
    });
    let (count, goes_on) = match outcome {
        Ok(count) => (count, false),
        Err((ERROR_MORE_DATA, count)) => (count, true),
        Err((code, _count)) => return Err(code),
    };
    bytes.truncate(count);
    Ok((bytes, goes_on))
}

/// `WriteFile`.
///
/// # Errors
///
/// As [`listen_within`].
pub fn write_within(pipe: BorrowedHandle<'_>, bytes: &[u8], limit: u32) -> Result<(), Code> {
    attempt(pipe, limit, |handle, overlapped| {
        // SAFETY: as for reading.
        unsafe {
            WriteFile(
                handle,
                bytes.as_ptr(),
                size(bytes.len()),
                null_mut(),
                overlapped,
            )
        }
    })
    .map(|_count| ())
    .map_err(|(code, _count)| code)
}

/// `DisconnectNamedPipe`.
///
/// # Errors
///
/// The code of the call.
pub fn disconnect(pipe: BorrowedHandle<'_>) -> Result<(), Code> {
    // SAFETY: an open handle.
    check(unsafe { DisconnectNamedPipe(raw(pipe)) })
}

/// `WaitNamedPipeW`: waits for a free instance, for at most so many milliseconds.
///
/// # Errors
///
/// 2 when there is no such pipe, 121 when no instance became free in time.
pub fn wait_for_instance(name: &[u16], limit: u32) -> Result<(), Code> {
    assert_terminated(name);
    // SAFETY: the name ends with a zero.
    check(unsafe { WaitNamedPipeW(name.as_ptr(), limit) })
}

/// `SetNamedPipeHandleState`: makes this end read messages.
///
/// # Errors
///
/// 87 on a pipe of byte type.
pub fn read_messages(pipe: BorrowedHandle<'_>) -> Result<(), Code> {
    let mode = PIPE_READMODE_MESSAGE;
    // SAFETY: an open handle; `mode` outlives the call.
    check(unsafe { SetNamedPipeHandleState(raw(pipe), &raw const mode, null(), null()) })
}

/// `DuplicateTokenEx`: a copy of a token that a thread can act
/// with.
///
/// # Errors
///
/// The code of the call.
pub fn duplicate_token(token: BorrowedHandle<'_>) -> Result<OwnedHandle, Code> {
    let access = TOKEN_QUERY | TOKEN_DUPLICATE | TOKEN_IMPERSONATE | TOKEN_ADJUST_DEFAULT;
    let mut copy = null_mut();
    // SAFETY: an open handle, no attributes; `copy` outlives the call.
    check(unsafe {
        DuplicateTokenEx(
            raw(token),
            access,
            null_mut(),
            SecurityImpersonation,
            TokenImpersonation,
            &raw mut copy,
        )
    })?;
    // SAFETY: the call gave this open handle to us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(copy) })
}

/// `SetTokenInformation(TokenIntegrityLevel)`.
///
/// # Errors
///
/// The code of the call.
pub fn set_token_integrity(token: BorrowedHandle<'_>, level: &Sid) -> Result<(), Code> {
    let bytes = level.to_bytes();
    let mut sid = vec![0_u32; bytes.len().div_ceil(size_of::<u32>())];
    for (word, chunk) in sid.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*chunk);
    }
    let label = TOKEN_MANDATORY_LABEL {
        Label: SID_AND_ATTRIBUTES {
            Sid: sid.as_mut_ptr().cast(),
            Attributes: SE_GROUP_INTEGRITY.cast_unsigned(),
        },
    };
    // SAFETY: an open handle; label and SID, whose lengths are added as the call wants it, outlive
    // the call.
    check(unsafe {
        SetTokenInformation(
            raw(token),
            TokenIntegrityLevel,
            (&raw const label).cast(),
            size(size_of_val(&label) + bytes.len()),
        )
    })
}

/// `ImpersonateLoggedOnUser`: from here on this thread acts with the token, until
/// [`revert_to_self`](super::revert_to_self).
///
/// # Errors
///
/// The code of the call.
pub fn act_with(token: BorrowedHandle<'_>) -> Result<(), Code> {
    // SAFETY: an open handle.
    check(unsafe { ImpersonateLoggedOnUser(raw(token)) })
}

/// `wine_get_version` of Wine's `ntdll.dll`; `None` on Windows, whose library has no such function.
pub fn wine_version() -> Option<String> {
    // SAFETY: both names end with a zero, and every process has the library, for as long as it
    // lives.
    let function = unsafe {
        let library = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        if library.is_null() {
            return None;
        }
        GetProcAddress(library, c"wine_get_version".as_ptr().cast())?
    };
    // SAFETY: Wine's function of this name has this type (include/winternl.h), takes nothing, and
    // gives a text that lives as long as the library.
    let version = unsafe {
        let function: unsafe extern "C" fn() -> *const c_char = std::mem::transmute(function);
        CStr::from_ptr(function())
    };
    Some(version.to_string_lossy().into_owned())
}

/// Starts an overlapped operation, gives it a moment, and withdraws it if it has to wait. In any
/// case it has ended on return. Gives the number of bytes, beside the code if it failed.
fn attempt(
    pipe: BorrowedHandle<'_>,
    limit: u32,
    start: impl FnOnce(HANDLE, *mut OVERLAPPED) -> BOOL,
) -> Result<usize, (Code, usize)> {
    // SAFETY: no name, no attributes.
    let event = unsafe { CreateEventW(null(), 1, 0, null()) };
    assert!(!event.is_null(), "no event: {}", io::Error::last_os_error());
    // SAFETY: the call gave this open handle to us alone.
    let event = unsafe { OwnedHandle::from_raw_handle(event) };
    let mut overlapped = OVERLAPPED {
        hEvent: event.as_raw_handle(),
        ..OVERLAPPED::default()
    };
    let overlapped = &raw mut overlapped;
    let handle = raw(pipe);
    if start(handle, overlapped) == 0 {
        match last_error() {
            ERROR_IO_PENDING | ERROR_MORE_DATA => {}
            code => return Err((code, 0)),
        }
    }
    // SAFETY: the event is open. The operation that is cancelled is the one of `overlapped`, which
    // lives until its result was waited for below.
    unsafe {
        if WaitForSingleObject(event.as_raw_handle(), limit) != WAIT_OBJECT_0 {
            CancelIoEx(handle, overlapped);
        }
    }
    let mut count = 0;
    // SAFETY: as above; `count` outlives the call.
    let done = unsafe { GetOverlappedResult(handle, overlapped, &raw mut count, 1) };
    let count = length(count);
    if done == 0 {
        Err((last_error(), count))
    } else {
        Ok(count)
    }
}

fn size(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
