//! The thin system layer: every Win32 call that this crate makes, one function for each.
//!
//! A function here turns arguments into the call's form, calls, and turns the result back; a
//! failure is the code that `GetLastError` gave. It decides nothing and retries nothing. What a code
//! means is for the callers to say, and what the operating system answers when is the subject of
//! the conformance table in the testkit. This module and its parts are the only place of the
//! workspace with `unsafe` code for Windows.

#![expect(
    unsafe_code,
    reason = "the operating system's interface is foreign functions"
)]

mod dpapi;
mod probes;
mod programs;

use std::io;
use std::os::windows::io::{
    AsRawHandle, BorrowedHandle, FromRawHandle, IntoRawHandle, OwnedHandle,
};
use std::ptr::{null, null_mut};

use tokio::net::windows::named_pipe::{NamedPipeClient, NamedPipeServer};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_CANNOT_IMPERSONATE, ERROR_CANT_OPEN_ANONYMOUS, ERROR_FILE_NOT_FOUND,
    ERROR_INSUFFICIENT_BUFFER, ERROR_INVALID_DATA, ERROR_INVALID_SECURITY_DESCR, ERROR_INVALID_SID,
    ERROR_PIPE_BUSY, ERROR_SUCCESS, GENERIC_READ, GENERIC_WRITE, GetLastError, HANDLE,
    INVALID_HANDLE_VALUE, LocalFree,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo, SDDL_REVISION_1,
    SE_KERNEL_OBJECT,
};
use windows_sys::Win32::Security::{
    ACCESS_ALLOWED_ACE, ACE_HEADER, ACL, AccessCheck, DACL_SECURITY_INFORMATION, DuplicateToken,
    GENERIC_MAPPING, GROUP_SECURITY_INFORMATION, GetAce, GetLengthSid, GetTokenInformation,
    IsTokenRestricted, LABEL_SECURITY_INFORMATION, LookupAccountNameW, LookupAccountSidW,
    OWNER_SECURITY_INFORMATION, PRIVILEGE_SET, PSECURITY_DESCRIPTOR, PSID, RevertToSelf,
    SECURITY_ATTRIBUTES, SECURITY_IMPERSONATION_LEVEL, SID_AND_ATTRIBUTES, SID_NAME_USE,
    SecurityIdentification, TOKEN_DUPLICATE, TOKEN_GROUPS, TOKEN_INFORMATION_CLASS,
    TOKEN_MANDATORY_LABEL, TOKEN_QUERY, TOKEN_STATISTICS, TOKEN_USER, TokenElevationType,
    TokenElevationTypeFull, TokenElevationTypeLimited, TokenGroups, TokenImpersonationLevel,
    TokenIntegrityLevel, TokenIsAppContainer, TokenSessionId, TokenStatistics, TokenUser,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_ALL_ACCESS, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED,
    FILE_GENERIC_EXECUTE, FILE_GENERIC_READ, FILE_GENERIC_WRITE, OPEN_EXISTING, PIPE_ACCESS_DUPLEX,
    SECURITY_ANONYMOUS, SECURITY_IDENTIFICATION, SECURITY_SQOS_PRESENT,
};
use windows_sys::Win32::System::IO::CancelIoEx;
use windows_sys::Win32::System::Pipes::{
    CreateNamedPipeW, GetNamedPipeClientProcessId, GetNamedPipeServerProcessId,
    GetNamedPipeServerSessionId, ImpersonateNamedPipeClient, PIPE_READMODE_BYTE,
    PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES, PIPE_WAIT,
    PeekNamedPipe,
};
use windows_sys::Win32::System::SystemServices::{
    ACCESS_ALLOWED_ACE_TYPE, ACCESS_DENIED_ACE_TYPE, MAXIMUM_ALLOWED,
    SYSTEM_MANDATORY_LABEL_ACE_TYPE,
};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetCurrentThread, OpenProcessToken, OpenThreadToken,
};
use windows_sys::Win32::System::WindowsProgramming::GetComputerNameW;
use windows_sys::core::BOOL;

pub use self::dpapi::{protect_data, unprotect_data};
pub use self::probes::{
    act_with, disconnect, duplicate_token, listen_within, read_messages, read_within,
    set_token_integrity, wait_for_instance, wine_version, write_within,
};
pub use self::programs::{Process, create_file, create_folder, move_file, parent_process};
use super::rules::calls as rule;
use crate::identity::{Elevation, LogonId};
pub use crate::security::{Ace, NotASid, PipeSecurity, Sid};
use crate::security::{IntegrityLevel, Label};

// The rules see no header of the operating system, and spell these out.
const _: () = assert!(
    rule::PIPE_ACCESS_DUPLEX == PIPE_ACCESS_DUPLEX
        && rule::FILE_FLAG_OVERLAPPED == FILE_FLAG_OVERLAPPED
        && rule::FILE_FLAG_FIRST_PIPE_INSTANCE == FILE_FLAG_FIRST_PIPE_INSTANCE
        && rule::PIPE_TYPE_MESSAGE == PIPE_TYPE_MESSAGE
        && rule::PIPE_READMODE_BYTE == PIPE_READMODE_BYTE
        && rule::PIPE_WAIT == PIPE_WAIT
        && rule::PIPE_REJECT_REMOTE_CLIENTS == PIPE_REJECT_REMOTE_CLIENTS
        && rule::PIPE_UNLIMITED_INSTANCES == PIPE_UNLIMITED_INSTANCES
        && rule::GENERIC_READ_WRITE == GENERIC_READ | GENERIC_WRITE
        && rule::SECURITY_SQOS_PRESENT == SECURITY_SQOS_PRESENT
        && rule::SECURITY_IDENTIFICATION == SECURITY_IDENTIFICATION
        && rule::SECURITY_ANONYMOUS == SECURITY_ANONYMOUS
        && rule::ERROR_FILE_NOT_FOUND == ERROR_FILE_NOT_FOUND
        && rule::ERROR_ACCESS_DENIED == ERROR_ACCESS_DENIED
        && rule::ERROR_PIPE_BUSY == ERROR_PIPE_BUSY
        && rule::ERROR_INVALID_SECURITY_DESCR == ERROR_INVALID_SECURITY_DESCR
        && rule::ERROR_CANT_OPEN_ANONYMOUS == ERROR_CANT_OPEN_ANONYMOUS
        && rule::ERROR_CANNOT_IMPERSONATE == ERROR_CANNOT_IMPERSONATE
        && rule::LEVEL_IDENTIFICATION == SecurityIdentification.cast_unsigned()
);

/// A code of the operating system, as `GetLastError` gives it (`ERROR_*`).
pub type Code = u32;

/// Text as the operating system takes it: UTF-16 with a final zero.
pub fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// A security descriptor in memory of the operating system.
#[derive(Debug)]
pub struct Descriptor(PSECURITY_DESCRIPTOR);

// SAFETY: the memory belongs to this value alone, is never changed, and may be freed anywhere.
unsafe impl Send for Descriptor {}
// SAFETY: as above; sharing it only allows reading.
unsafe impl Sync for Descriptor {}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a function that asks for `LocalFree`, and is freed once.
        unsafe { LocalFree(self.0) };
    }
}

/// The fixed properties of a pipe instance: the arguments of `CreateNamedPipeW`.
#[derive(Clone, Copy, Debug)]
pub struct PipeShape {
    /// `PIPE_ACCESS_*` and `FILE_FLAG_*`.
    pub open_mode: u32,
    /// `PIPE_TYPE_*`, `PIPE_READMODE_*` and what goes with them.
    pub pipe_mode: u32,
    /// The most instances, 255 for no limit.
    pub max_instances: u32,
    /// The quota in bytes of what is written and not yet read, in each direction.
    pub buffer: u32,
}

/// `CreateNamedPipeW`. The handle is not inherited by child processes.
///
/// # Errors
///
/// The code of the call, as for every function of this module.
pub fn create_pipe(
    name: &[u16],
    shape: PipeShape,
    descriptor: &Descriptor,
) -> Result<OwnedHandle, Code> {
    assert_terminated(name);
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of_u32::<SECURITY_ATTRIBUTES>(),
        lpSecurityDescriptor: descriptor.0,
        bInheritHandle: 0,
    };
    let PipeShape {
        open_mode,
        pipe_mode,
        max_instances,
        buffer,
    } = shape;
    // SAFETY: the name ends with a zero; attributes and descriptor live until the call returns.
    let handle = unsafe {
        CreateNamedPipeW(
            name.as_ptr(),
            open_mode,
            pipe_mode,
            max_instances,
            buffer,
            buffer,
            0,
            &raw const attributes,
        )
    };
    if handle == INVALID_HANDLE_VALUE {
        return Err(last_error());
    }
    // SAFETY: the call gave this open handle to us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// `CreateFileW` of an existing pipe. The handle is not shared, and not inherited by child processes.
///
/// # Errors
///
/// See [`create_pipe`]; 231 when no instance is free.
pub fn open_pipe(name: &[u16], access: u32, flags: u32) -> Result<OwnedHandle, Code> {
    assert_terminated(name);
    // SAFETY: the name ends with a zero; no attributes, no template.
    let handle = unsafe {
        CreateFileW(
            name.as_ptr(),
            access,
            0,
            null(),
            OPEN_EXISTING,
            flags,
            null_mut(),
        )
    };
    if handle == INVALID_HANDLE_VALUE {
        return Err(last_error());
    }
    // SAFETY: the call gave this open handle to us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Hands a client's end that was opened for overlapped I/O to tokio.
///
/// # Errors
///
/// As [`adopt_server`].
pub fn adopt_client(handle: OwnedHandle) -> io::Result<NamedPipeClient> {
    // SAFETY: the handle is owned here, and its ownership passes on.
    unsafe { NamedPipeClient::from_raw_handle(handle.into_raw_handle()) }
}

/// Hands a server's end that was made for overlapped I/O to tokio.
///
/// # Errors
///
/// Outside of a runtime with I/O, or when the handle cannot be tied to its completion port.
pub fn adopt_server(handle: OwnedHandle) -> io::Result<NamedPipeServer> {
    // SAFETY: the handle is owned here, and its ownership passes on.
    unsafe { NamedPipeServer::from_raw_handle(handle.into_raw_handle()) }
}

/// `PeekNamedPipe`: how many bytes wait to be read.
///
/// # Errors
///
/// 109 when the peer has closed its end and everything was read, 233 when the instance is
/// disconnected.
pub fn peek(pipe: BorrowedHandle<'_>) -> Result<u32, Code> {
    let mut available = 0;
    // SAFETY: an open handle; `available` outlives the call; nothing else is asked for.
    check(unsafe {
        PeekNamedPipe(
            raw(pipe),
            null_mut(),
            0,
            null_mut(),
            &raw mut available,
            null_mut(),
        )
    })?;
    Ok(available)
}

/// `CancelIoEx` for all operations that this process has in flight on the handle.
///
/// # Errors
///
/// `ERROR_NOT_FOUND` when there are none.
pub fn cancel_io(pipe: BorrowedHandle<'_>) -> Result<(), Code> {
    // SAFETY: an open handle; a null pointer means all of its operations. Each of them still
    // completes through the completion port, which is when its owner frees its memory.
    check(unsafe { CancelIoEx(raw(pipe), null()) })
}

/// `GetNamedPipeClientProcessId`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn client_process_id(pipe: BorrowedHandle<'_>) -> Result<u32, Code> {
    let mut id = 0;
    // SAFETY: an open handle; `id` outlives the call.
    check(unsafe { GetNamedPipeClientProcessId(raw(pipe), &raw mut id) })?;
    Ok(id)
}

/// `GetNamedPipeServerProcessId`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn server_process_id(pipe: BorrowedHandle<'_>) -> Result<u32, Code> {
    let mut id = 0;
    // SAFETY: an open handle; `id` outlives the call.
    check(unsafe { GetNamedPipeServerProcessId(raw(pipe), &raw mut id) })?;
    Ok(id)
}

/// `GetNamedPipeServerSessionId`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn server_session_id(pipe: BorrowedHandle<'_>) -> Result<u32, Code> {
    let mut id = 0;
    // SAFETY: an open handle; `id` outlives the call.
    check(unsafe { GetNamedPipeServerSessionId(raw(pipe), &raw mut id) })?;
    Ok(id)
}

/// `ImpersonateNamedPipeClient`: from here on this thread acts as the pipe's client, until
/// [`revert_to_self`].
///
/// # Errors
///
/// 1368 before anything was read from the client.
pub fn impersonate_client(pipe: BorrowedHandle<'_>) -> Result<(), Code> {
    // SAFETY: an open handle.
    check(unsafe { ImpersonateNamedPipeClient(raw(pipe)) })
}

/// `RevertToSelf`: this thread acts as its process again.
///
/// # Errors
///
/// After a failure the thread still acts as somebody else; nothing may go on.
pub fn revert_to_self() -> Result<(), Code> {
    // SAFETY: no arguments.
    check(unsafe { RevertToSelf() })
}

/// `OpenThreadToken` for queries, with the access check made against the process and not against
/// the impersonated client (`OpenAsSelf`).
///
/// # Errors
///
/// 1008 (`ERROR_NO_TOKEN`) on a thread that impersonates nobody, 1347 for an anonymous client.
pub fn open_thread_token() -> Result<OwnedHandle, Code> {
    let mut token = null_mut();
    // SAFETY: the pseudo-handle of this thread; `token` outlives the call.
    check(unsafe { OpenThreadToken(GetCurrentThread(), TOKEN_QUERY, 1, &raw mut token) })?;
    // SAFETY: the call gave this open handle to us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(token) })
}

/// `OpenProcessToken` of this process, for queries and to be copied.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn open_process_token() -> Result<OwnedHandle, Code> {
    let mut token = null_mut();
    // SAFETY: the pseudo-handle of this process; `token` outlives the call.
    check(unsafe {
        OpenProcessToken(
            GetCurrentProcess(),
            TOKEN_QUERY | TOKEN_DUPLICATE,
            &raw mut token,
        )
    })?;
    // SAFETY: the call gave this open handle to us alone.
    Ok(unsafe { OwnedHandle::from_raw_handle(token) })
}

/// `GetTokenInformation(TokenUser)`: the account.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn token_user(token: BorrowedHandle<'_>) -> Result<Sid, Code> {
    let buffer = token_information(token, TokenUser)?;
    // SAFETY: for this class the buffer holds a `TOKEN_USER`, and its alignment suffices.
    let user = unsafe { &*buffer.as_ptr().cast::<TOKEN_USER>() };
    // SAFETY: the pointer leads to a valid SID within the buffer.
    unsafe { copy_sid(user.User.Sid) }
}

/// `GetTokenInformation(TokenGroups)`: the groups and their attributes (`SE_GROUP_*`).
///
/// # Errors
///
/// See [`create_pipe`].
pub fn token_groups(token: BorrowedHandle<'_>) -> Result<Vec<(Sid, u32)>, Code> {
    let buffer = token_information(token, TokenGroups)?;
    let list = buffer.as_ptr().cast::<TOKEN_GROUPS>();
    // SAFETY: for this class the buffer holds a `TOKEN_GROUPS`, whose array has `GroupCount`
    // elements; the alignment of the buffer suffices.
    let groups: &[SID_AND_ATTRIBUTES] = unsafe {
        std::slice::from_raw_parts(
            (&raw const (*list).Groups).cast(),
            usize::try_from((*list).GroupCount).unwrap_or(0),
        )
    };
    groups
        .iter()
        // SAFETY: each pointer leads to a valid SID within the buffer.
        .map(|group| Ok((unsafe { copy_sid(group.Sid) }?, group.Attributes)))
        .collect()
}

/// `GetTokenInformation(TokenSessionId)`: the session that the account is logged on in.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn token_session(token: BorrowedHandle<'_>) -> Result<u32, Code> {
    token_number(token, TokenSessionId)
}

/// `GetTokenInformation(TokenImpersonationLevel)`: what the client lets a server do in its name.
///
/// # Errors
///
/// 87 for a token of a process, which has no level.
pub fn token_level(token: BorrowedHandle<'_>) -> Result<SECURITY_IMPERSONATION_LEVEL, Code> {
    token_number(token, TokenImpersonationLevel).map(u32::cast_signed)
}

/// `GetTokenInformation(TokenStatistics)`: which log-on the token belongs to.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn token_logon(token: BorrowedHandle<'_>) -> Result<LogonId, Code> {
    let buffer = token_information(token, TokenStatistics)?;
    if size_of_val(buffer.as_slice()) < size_of::<TOKEN_STATISTICS>() {
        return Err(ERROR_INVALID_DATA);
    }
    // SAFETY: for this class the buffer, which is long enough and aligned, holds this structure.
    let id = unsafe { (*buffer.as_ptr().cast::<TOKEN_STATISTICS>()).AuthenticationId };
    let high = u64::from(id.HighPart.cast_unsigned());
    Ok(LogonId(high << 32 | u64::from(id.LowPart)))
}

/// `GetTokenInformation(TokenIntegrityLevel)`.
///
/// # Errors
///
/// See [`create_pipe`]; 1337 when what is there is no level.
pub fn token_integrity(token: BorrowedHandle<'_>) -> Result<IntegrityLevel, Code> {
    let buffer = token_information(token, TokenIntegrityLevel)?;
    // SAFETY: for this class the buffer holds this structure, and its alignment suffices.
    let label = unsafe { &*buffer.as_ptr().cast::<TOKEN_MANDATORY_LABEL>() };
    // SAFETY: the pointer leads to a valid SID within the buffer.
    let sid = unsafe { copy_sid(label.Label.Sid) }?;
    sid.integrity_level()
        .map(IntegrityLevel::new)
        .ok_or(ERROR_INVALID_SID)
}

/// `GetTokenInformation(TokenElevationType)`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn token_elevation(token: BorrowedHandle<'_>) -> Result<Elevation, Code> {
    let kind = token_number(token, TokenElevationType)?.cast_signed();
    Ok(if kind == TokenElevationTypeFull {
        Elevation::Full
    } else if kind == TokenElevationTypeLimited {
        Elevation::Limited
    } else {
        Elevation::Default
    })
}

/// `GetTokenInformation(TokenIsAppContainer)`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn token_is_app_container(token: BorrowedHandle<'_>) -> Result<bool, Code> {
    token_number(token, TokenIsAppContainer).map(|value| value != 0)
}

/// `IsTokenRestricted`: whether the token has a list of restricting SIDs. The call has no way to
/// fail for an open token.
pub fn token_is_restricted(token: BorrowedHandle<'_>) -> bool {
    // SAFETY: an open handle.
    unsafe { IsTokenRestricted(raw(token)) != 0 }
}

/// `AccessCheck` for `MAXIMUM_ALLOWED`: what a token of a process may do with a pipe. The handle
/// needs `READ_CONTROL`, the token `TOKEN_DUPLICATE`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn granted_access(pipe: BorrowedHandle<'_>, token: BorrowedHandle<'_>) -> Result<u32, Code> {
    let mut descriptor = null_mut();
    let wanted = OWNER_SECURITY_INFORMATION
        | GROUP_SECURITY_INFORMATION
        | DACL_SECURITY_INFORMATION
        | LABEL_SECURITY_INFORMATION;
    // SAFETY: an open handle of a kernel object; the result outlives the call, and the others are
    // not asked for.
    let code = unsafe {
        GetSecurityInfo(
            raw(pipe),
            SE_KERNEL_OBJECT,
            wanted,
            null_mut(),
            null_mut(),
            null_mut(),
            null_mut(),
            &raw mut descriptor,
        )
    };
    if code != ERROR_SUCCESS {
        return Err(code);
    }
    let descriptor = Descriptor(descriptor);
    let mut copy = null_mut();
    // SAFETY: an open handle; `copy` outlives the call.
    check(unsafe { DuplicateToken(raw(token), SecurityIdentification, &raw mut copy) })?;
    // SAFETY: the call gave this open handle to us alone.
    let copy = unsafe { OwnedHandle::from_raw_handle(copy) };
    let mapping = GENERIC_MAPPING {
        GenericRead: FILE_GENERIC_READ,
        GenericWrite: FILE_GENERIC_WRITE,
        GenericExecute: FILE_GENERIC_EXECUTE,
        GenericAll: FILE_ALL_ACCESS,
    };
    let mut privileges = PRIVILEGE_SET::default();
    let mut length = size_of_u32::<PRIVILEGE_SET>();
    let (mut granted, mut allowed) = (0, 0);
    // SAFETY: descriptor and token live until the end of this function, as do all results.
    check(unsafe {
        AccessCheck(
            descriptor.0,
            copy.as_raw_handle(),
            MAXIMUM_ALLOWED,
            &raw const mapping,
            &raw mut privileges,
            &raw mut length,
            &raw mut granted,
            &raw mut allowed,
        )
    })?;
    Ok(if allowed == 0 { 0 } else { granted })
}

/// `ConvertStringSecurityDescriptorToSecurityDescriptorW`.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn descriptor_from_sddl(sddl: &str) -> Result<Descriptor, Code> {
    let sddl = wide(sddl);
    let mut descriptor = null_mut();
    // SAFETY: the text ends with a zero; `descriptor` outlives the call; the size is not asked for.
    check(unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            sddl.as_ptr(),
            SDDL_REVISION_1,
            &raw mut descriptor,
            null_mut(),
        )
    })?;
    Ok(Descriptor(descriptor))
}

/// `GetSecurityInfo`: what the pipe behind a handle is really protected by.
///
/// # Errors
///
/// 5 when the handle was opened without `READ_CONTROL`.
pub fn pipe_security(pipe: BorrowedHandle<'_>) -> Result<PipeSecurity, Code> {
    let (mut owner, mut dacl) = (null_mut(), null_mut());
    let (mut sacl, mut descriptor) = (null_mut(), null_mut());
    // SAFETY: an open handle of a kernel object; the results outlive the call, and one is not asked
    // for.
    let code = unsafe {
        GetSecurityInfo(
            raw(pipe),
            SE_KERNEL_OBJECT,
            OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION | LABEL_SECURITY_INFORMATION,
            &raw mut owner,
            null_mut(),
            &raw mut dacl,
            &raw mut sacl,
            &raw mut descriptor,
        )
    };
    if code != ERROR_SUCCESS {
        return Err(code);
    }
    let _memory = Descriptor(descriptor);
    if owner.is_null() {
        return Err(ERROR_INVALID_SID);
    }
    // SAFETY: owner and list lie in the descriptor, which lives until the end of this function.
    let owner = unsafe { copy_sid(owner) }?;
    let dacl = if dacl.is_null() {
        None
    } else {
        // SAFETY: as above.
        Some(unsafe { copy_acl(dacl) }?)
    };
    let label = if sacl.is_null() {
        None
    } else {
        // SAFETY: as above.
        unsafe { find_label(sacl) }?
    };
    Ok(PipeSecurity { owner, dacl, label })
}

/// `LookupAccountNameW` on this machine: the SID that a name means, and what kind of thing it is
/// (`SidType*`).
///
/// # Errors
///
/// 1332 (`ERROR_NONE_MAPPED`) when there is no such name.
pub fn lookup_account_name(name: &str) -> Result<(Sid, SID_NAME_USE), Code> {
    let name = wide(name);
    let (mut sid_length, mut domain_length, mut kind) = (0, 0, 0);
    let (mut sid, mut domain) = (Vec::<u32>::new(), Vec::<u16>::new());
    // The first call tells the lengths, the second fills.
    for _ in 0..2 {
        // SAFETY: the name ends with a zero; each buffer is as long as its length says, and a SID's
        // alignment is that of `u32`.
        let done = unsafe {
            LookupAccountNameW(
                null(),
                name.as_ptr(),
                room(&mut sid).cast(),
                &raw mut sid_length,
                room(&mut domain),
                &raw mut domain_length,
                &raw mut kind,
            )
        };
        if done != 0 {
            // SAFETY: the call filled the buffer with a SID.
            let sid = unsafe { copy_sid(sid.as_mut_ptr().cast()) }?;
            return Ok((sid, kind));
        }
        insufficient_buffer()?;
        sid = vec![0; length(sid_length).div_ceil(size_of::<u32>())];
        domain = vec![0; length(domain_length)];
    }
    Err(ERROR_INSUFFICIENT_BUFFER)
}

/// `LookupAccountSidW` on this machine: the domain and the name of an account.
///
/// # Errors
///
/// 1332 (`ERROR_NONE_MAPPED`) when no account has the SID.
pub fn lookup_account_sid(sid: &Sid) -> Result<(String, String), Code> {
    let bytes = sid.to_bytes();
    let mut aligned = vec![0_u32; bytes.len().div_ceil(size_of::<u32>())];
    for (word, chunk) in aligned.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*chunk);
    }
    let (mut name_length, mut domain_length, mut kind) = (0, 0, 0);
    let (mut name, mut domain) = (Vec::<u16>::new(), Vec::<u16>::new());
    // The first call tells the lengths, the second fills.
    for _ in 0..2 {
        // SAFETY: the SID is whole and aligned; each buffer is as long as its length says.
        let done = unsafe {
            LookupAccountSidW(
                null(),
                aligned.as_mut_ptr().cast(),
                room(&mut name),
                &raw mut name_length,
                room(&mut domain),
                &raw mut domain_length,
                &raw mut kind,
            )
        };
        if done != 0 {
            return Ok((text(&domain), text(&name)));
        }
        insufficient_buffer()?;
        name = vec![0; length(name_length)];
        domain = vec![0; length(domain_length)];
    }
    Err(ERROR_INSUFFICIENT_BUFFER)
}

/// `GetComputerNameW`: this machine's NetBIOS name.
///
/// # Errors
///
/// See [`create_pipe`].
pub fn computer_name() -> Result<String, Code> {
    // MAX_COMPUTERNAME_LENGTH is 15; room for the final zero.
    let mut name = [0_u16; 16];
    let mut length = 16;
    // SAFETY: the buffer is as long as `length` says.
    check(unsafe { GetComputerNameW(name.as_mut_ptr(), &raw mut length) })?;
    Ok(text(&name))
}

/// `GetTokenInformation` for a class of any length; the result is aligned for every class.
fn token_information(
    token: BorrowedHandle<'_>,
    class: TOKEN_INFORMATION_CLASS,
) -> Result<Vec<u64>, Code> {
    let mut needed = 0;
    let mut buffer = Vec::<u64>::new();
    // The first call tells the length, the second fills.
    for _ in 0..2 {
        let bytes = u32::try_from(size_of_val(buffer.as_slice())).unwrap_or(0);
        // SAFETY: an open handle; the buffer is as long as the argument says.
        let done = unsafe {
            GetTokenInformation(
                raw(token),
                class,
                room(&mut buffer).cast(),
                bytes,
                &raw mut needed,
            )
        };
        if done != 0 {
            return Ok(buffer);
        }
        insufficient_buffer()?;
        buffer = vec![0; length(needed).div_ceil(size_of::<u64>())];
    }
    Err(ERROR_INSUFFICIENT_BUFFER)
}

/// `GetTokenInformation` for a class that is one 32-bit number.
fn token_number(token: BorrowedHandle<'_>, class: TOKEN_INFORMATION_CLASS) -> Result<u32, Code> {
    let (mut value, mut needed) = (0_u32, 0);
    // SAFETY: an open handle; `value` is as long as the argument says.
    check(unsafe {
        GetTokenInformation(
            raw(token),
            class,
            (&raw mut value).cast(),
            size_of_u32::<u32>(),
            &raw mut needed,
        )
    })?;
    Ok(value)
}

/// Copies a SID out of memory of the operating system.
///
/// # Safety
///
/// `sid` points to a valid SID.
unsafe fn copy_sid(sid: PSID) -> Result<Sid, Code> {
    // SAFETY: the caller's promise; the length is that of the SID.
    let bytes = unsafe { std::slice::from_raw_parts(sid.cast::<u8>(), length(GetLengthSid(sid))) };
    Sid::from_bytes(bytes).ok_or(ERROR_INVALID_SID)
}

/// Copies an access control list out of memory of the operating system.
///
/// # Safety
///
/// `acl` points to a valid list.
unsafe fn copy_acl(acl: *const ACL) -> Result<Vec<Ace>, Code> {
    // SAFETY: the caller's promise.
    let count = unsafe { (*acl).AceCount };
    (0..u32::from(count))
        .map(|index| {
            let mut entry = null_mut();
            // SAFETY: a valid list; `entry` outlives the call.
            check(unsafe { GetAce(acl, index, &raw mut entry) })?;
            // SAFETY: every entry begins with this header.
            let kind = unsafe { (*entry.cast::<ACE_HEADER>()).AceType };
            // Entries that grant and that deny have one layout: header, mask, SID.
            let entry = entry.cast::<ACCESS_ALLOWED_ACE>();
            let (mask, sid) = match u32::from(kind) {
                ACCESS_ALLOWED_ACE_TYPE | ACCESS_DENIED_ACE_TYPE => {
                    // SAFETY: the layout of these types; the SID starts at `SidStart`.
                    unsafe {
                        (
                            (*entry).Mask,
                            copy_sid((&raw mut (*entry).SidStart).cast())?,
                        )
                    }
                }
                _ => return Ok(Ace::Other(kind)),
            };
            Ok(if u32::from(kind) == ACCESS_ALLOWED_ACE_TYPE {
                Ace::Allow(mask, sid)
            } else {
                Ace::Deny(mask, sid)
            })
        })
        .collect()
}

/// Finds the mandatory label in a list of the operating system's.
///
/// # Safety
///
/// `acl` points to a valid list.
unsafe fn find_label(acl: *const ACL) -> Result<Option<Label>, Code> {
    // SAFETY: the caller's promise.
    let count = unsafe { (*acl).AceCount };
    for index in 0..u32::from(count) {
        let mut entry = null_mut();
        // SAFETY: a valid list; `entry` outlives the call.
        check(unsafe { GetAce(acl, index, &raw mut entry) })?;
        // SAFETY: every entry begins with this header.
        let kind = unsafe { (*entry.cast::<ACE_HEADER>()).AceType };
        if u32::from(kind) != SYSTEM_MANDATORY_LABEL_ACE_TYPE {
            continue;
        }
        // A label has the layout of an entry that grants.
        let entry = entry.cast::<ACCESS_ALLOWED_ACE>();
        // SAFETY: the layout of this type; the SID starts at `SidStart`.
        let (policy, sid) = unsafe {
            (
                (*entry).Mask,
                copy_sid((&raw mut (*entry).SidStart).cast())?,
            )
        };
        let level = sid.integrity_level().ok_or(ERROR_INVALID_SID)?;
        return Ok(Some(Label {
            level: IntegrityLevel::new(level),
            policy,
        }));
    }
    Ok(None)
}

fn raw(handle: BorrowedHandle<'_>) -> HANDLE {
    handle.as_raw_handle()
}

fn last_error() -> Code {
    // SAFETY: no arguments.
    unsafe { GetLastError() }
}

fn check(done: BOOL) -> Result<(), Code> {
    if done == 0 { Err(last_error()) } else { Ok(()) }
}

/// After a call that failed: goes on if that was for want of room.
fn insufficient_buffer() -> Result<(), Code> {
    match last_error() {
        ERROR_INSUFFICIENT_BUFFER => Ok(()),
        code => Err(code),
    }
}

/// Where a call may write. It takes no room for a question about the length, but only if the pointer
/// is null.
fn room<T>(buffer: &mut Vec<T>) -> *mut T {
    if buffer.is_empty() {
        null_mut()
    } else {
        buffer.as_mut_ptr()
    }
}

fn assert_terminated(text: &[u16]) {
    assert_eq!(
        text.last(),
        Some(&0),
        "text for the operating system ends with a zero"
    );
}

/// A length that the operating system gave; Windows has no address space under 32 bits.
fn length(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// The text before the first zero.
fn text(wide: &[u16]) -> String {
    let end = wide
        .iter()
        .position(|&unit| unit == 0)
        .unwrap_or(wide.len());
    String::from_utf16_lossy(&wide[..end])
}
