//! The operating system's own pipes.

use std::os::windows::io::{AsHandle, OwnedHandle};

use migration_ipc_transport::win32;
use windows_sys::Win32::Foundation::{ERROR_OPERATION_ABORTED, GENERIC_READ, GENERIC_WRITE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX, SECURITY_ANONYMOUS,
    SECURITY_IDENTIFICATION, SECURITY_SQOS_PRESENT,
};
use windows_sys::Win32::System::Pipes::{
    PIPE_READMODE_BYTE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_BYTE, PIPE_TYPE_MESSAGE,
};

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
        win32::listen_within(server.as_handle(), AT_ONCE).map_err(waits)
    }

    fn disconnect(&mut self, server: &OwnedHandle) -> Result<(), Code> {
        win32::disconnect(server.as_handle())
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
        win32::open_pipe(
            &win32::wide(&address(name)),
            GENERIC_READ | GENERIC_WRITE,
            FILE_FLAG_OVERLAPPED | flags,
        )
    }

    fn wait(&mut self, name: &str) -> Result<(), Code> {
        win32::wait_for_instance(&win32::wide(&address(name)), PATIENCE)
    }

    fn read_messages(&mut self, handle: &OwnedHandle) -> Result<(), Code> {
        win32::read_messages(handle.as_handle())
    }

    fn read(&mut self, handle: &OwnedHandle, room: usize) -> Result<Chunk, Code> {
        let read = win32::read_within(handle.as_handle(), room, AT_ONCE);
        let (bytes, goes_on) = read.map_err(waits)?;
        Ok(Chunk { bytes, goes_on })
    }

    fn write(&mut self, handle: &OwnedHandle, bytes: &[u8]) -> Result<(), Code> {
        win32::write_within(handle.as_handle(), bytes, AT_ONCE).map_err(waits)
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

/// What an operation says that would have to wait and was withdrawn.
fn waits(code: Code) -> Code {
    if code == ERROR_OPERATION_ABORTED {
        WAITS
    } else {
        code
    }
}
