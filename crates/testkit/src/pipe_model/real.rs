//! The operating system's own pipes.

#![expect(
    unsafe_code,
    reason = "raw overlapped calls, which the transport leaves to tokio"
)]

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr::{null, null_mut};

use migration_ipc_transport::win32;
use windows_sys::Win32::Foundation::{
    ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_OPERATION_ABORTED, GENERIC_READ, GENERIC_WRITE,
    GetLastError, HANDLE, INVALID_HANDLE_VALUE, WAIT_OBJECT_0,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, OPEN_EXISTING,
    PIPE_ACCESS_DUPLEX, ReadFile, SECURITY_ANONYMOUS, SECURITY_IDENTIFICATION,
    SECURITY_SQOS_PRESENT, WriteFile,
};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Pipes::{
    ConnectNamedPipe, DisconnectNamedPipe, PIPE_READMODE_BYTE, PIPE_READMODE_MESSAGE,
    PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_BYTE, PIPE_TYPE_MESSAGE, SetNamedPipeHandleState,
    WaitNamedPipeW,
};
use windows_sys::Win32::System::Threading::{CreateEventW, WaitForSingleObject};
use windows_sys::core::BOOL;

use super::system::{
    Chunk, Code, Instance, Kind, Opening, Owner, PipeSystem, Place, Rights, WAITS,
};

/// What each direction of a pipe holds before a write waits.
const QUOTA: u32 = 65_536;

/// How long a call may take that does not have to wait for a peer, in milliseconds.
const AT_ONCE: u32 = 200;

/// How long to wait for a free instance, in milliseconds.
const PATIENCE: u32 = 50;

/// The pipes of Windows, or of Wine, seen through the calls themselves. Instances are created, read
/// back and impersonated through the transport's thin system layer.
#[derive(Debug, Default)]
pub struct Real;

impl Real {
    /// This machine.
    pub fn new() -> Self {
        Self
    }
}

impl PipeSystem for Real {
    type Handle = OwnedHandle;

    fn create(&mut self, name: &str, instance: Instance) -> Result<OwnedHandle, Code> {
        let owner = match instance.owner {
            Owner::Creator => "",
            Owner::System => "O:SY",
        };
        let rights = match instance.rights {
            Rights::All => "(A;;FA;;;WD)",
            Rights::Connect => "(A;;0x12019b;;;WD)",
            Rights::None => "(D;;FA;;;WD)",
        };
        let descriptor = win32::descriptor_from_sddl(&format!("{owner}D:P{rights}"))?;
        let first = match instance.place {
            Place::First => FILE_FLAG_FIRST_PIPE_INSTANCE,
            Place::Further => 0,
        };
        let kind = match instance.kind {
            Kind::Message => PIPE_TYPE_MESSAGE,
            Kind::Byte => PIPE_TYPE_BYTE,
        };
        let shape = win32::PipeShape {
            open_mode: PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | first,
            pipe_mode: kind | PIPE_READMODE_BYTE | PIPE_REJECT_REMOTE_CLIENTS,
            max_instances: instance.max_instances,
            buffer: QUOTA,
        };
        win32::create_pipe(&win32::wide(&address(name)), shape, &descriptor)
    }

    fn listen(&mut self, server: &OwnedHandle) -> Result<(), Code> {
        attempt(server, |handle, overlapped| {
            // SAFETY: `attempt` keeps handle and memory valid until the operation has ended.
            unsafe { ConnectNamedPipe(handle, overlapped) }
        })
        .map(|_count| ())
        .map_err(|(code, _count)| code)
    }

    fn disconnect(&mut self, server: &OwnedHandle) -> Result<(), Code> {
        // SAFETY: an open handle.
        check(unsafe { DisconnectNamedPipe(server.as_raw_handle()) })
    }

    fn identify(&mut self, server: &OwnedHandle) -> Result<(), Code> {
        win32::impersonate_client(server.as_handle())?;
        let token = win32::open_thread_token();
        win32::revert_to_self()?;
        token.map(drop)
    }

    fn open(&mut self, name: &str, opening: Opening) -> Result<OwnedHandle, Code> {
        let flags = match opening {
            Opening::Unspecified => 0,
            Opening::Identification => SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION,
            Opening::Anonymous => SECURITY_SQOS_PRESENT | SECURITY_ANONYMOUS,
        };
        let name = win32::wide(&address(name));
        // SAFETY: the name ends with a zero.
        let handle = unsafe {
            CreateFileW(
                name.as_ptr(),
                GENERIC_READ | GENERIC_WRITE,
                0,
                null(),
                OPEN_EXISTING,
                FILE_FLAG_OVERLAPPED | flags,
                null_mut(),
            )
        };
        if handle == INVALID_HANDLE_VALUE {
            return Err(last_error());
        }
        // SAFETY: the call gave this open handle to us alone.
        Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
    }

    fn wait(&mut self, name: &str) -> Result<(), Code> {
        let name = win32::wide(&address(name));
        // SAFETY: the name ends with a zero.
        check(unsafe { WaitNamedPipeW(name.as_ptr(), PATIENCE) })
    }

    fn read_messages(&mut self, handle: &OwnedHandle) -> Result<(), Code> {
        let mode = PIPE_READMODE_MESSAGE;
        // SAFETY: an open handle; `mode` outlives the call.
        check(unsafe {
            SetNamedPipeHandleState(handle.as_raw_handle(), &raw const mode, null(), null())
        })
    }

    fn read(&mut self, handle: &OwnedHandle, room: usize) -> Result<Chunk, Code> {
        let mut bytes = vec![0; room];
        let outcome = attempt(handle, |handle, overlapped| {
            // SAFETY: `attempt` keeps handle and memory valid until the operation has ended, and
            // the buffer, as long as the argument says, outlives `attempt`.
            unsafe {
                ReadFile(
                    handle,
                    bytes.as_mut_ptr(),
                    length(room),
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
        Ok(Chunk { bytes, goes_on })
    }

    fn write(&mut self, handle: &OwnedHandle, bytes: &[u8]) -> Result<(), Code> {
        attempt(handle, |handle, overlapped| {
            // SAFETY: as for reading.
            unsafe {
                WriteFile(
                    handle,
                    bytes.as_ptr(),
                    length(bytes.len()),
                    null_mut(),
                    overlapped,
                )
            }
        })
        .map(|_count| ())
        .map_err(|(code, _count)| code)
    }

    fn peek(&mut self, handle: &OwnedHandle) -> Result<usize, Code> {
        win32::peek(handle.as_handle()).map(|count| usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn close(&mut self, handle: OwnedHandle) {
        drop(handle);
    }
}

fn address(name: &str) -> String {
    format!(r"\\.\pipe\{name}")
}

/// Starts an overlapped operation, gives it a moment, and withdraws it if it has to wait. In any
/// case it has ended on return. Gives the number of bytes, beside the code if it failed.
fn attempt(
    handle: &OwnedHandle,
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
    let handle = handle.as_raw_handle();
    if start(handle, overlapped) == 0 {
        match last_error() {
            ERROR_IO_PENDING | ERROR_MORE_DATA => {}
            code => return Err((code, 0)),
        }
    }
    // SAFETY: the event is open. The operation that is cancelled is the one of `overlapped`, which
    // lives until its result was waited for below.
    unsafe {
        if WaitForSingleObject(event.as_raw_handle(), AT_ONCE) != WAIT_OBJECT_0 {
            CancelIoEx(handle, overlapped);
        }
    }
    let mut count = 0;
    // SAFETY: as above; `count` outlives the call.
    let done = unsafe { GetOverlappedResult(handle, overlapped, &raw mut count, 1) };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if done != 0 {
        return Ok(count);
    }
    Err(match last_error() {
        ERROR_OPERATION_ABORTED => (WAITS, 0),
        code => (code, count),
    })
}

fn check(done: BOOL) -> Result<(), Code> {
    if done == 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Code {
    // SAFETY: no arguments.
    unsafe { GetLastError() }
}

fn length(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
