//! The rules' calls, made to the operating system.

use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};

use tracing::error;

use super::rules::calls::{ClientCalls, Code, OpenAs, PipeCalls};
use super::sys::{self, PipeShape};
use crate::identity::{Elevation, LogonId};
use crate::security::{IntegrityLevel, PipeSecurity, Sid};

/// What is written and not read yet, in each direction: what deployed peers have.
const BUFFER: u32 = 65_536;

/// A pipe's name, and the descriptor that a service makes its instances with.
#[derive(Debug)]
pub(super) struct ServiceName {
    pub(super) name: Vec<u16>,
    pub(super) descriptor: sys::Descriptor,
}

impl PipeCalls for ServiceName {
    type Pipe = OwnedHandle;

    fn create(
        &self,
        open_mode: u32,
        pipe_mode: u32,
        max_instances: u32,
    ) -> Result<OwnedHandle, Code> {
        let shape = PipeShape {
            open_mode,
            pipe_mode,
            max_instances,
            buffer: BUFFER,
        };
        sys::create_pipe(&self.name, shape, &self.descriptor)
    }

    fn open(&self, access: u32, flags: u32) -> Result<OwnedHandle, Code> {
        sys::open_pipe(&self.name, access, flags)
    }

    fn security(&self, pipe: &OwnedHandle) -> Result<PipeSecurity, Code> {
        sys::pipe_security(pipe.as_handle())
    }
}

/// The service's end of a pipe whose client is asked for.
#[derive(Debug)]
pub(super) struct ClientOf<'a>(pub(super) BorrowedHandle<'a>);

impl ClientCalls for ClientOf<'_> {
    type Token = OwnedHandle;

    fn impersonate(&self) -> Result<(), Code> {
        sys::impersonate_client(self.0)
    }

    fn open_thread_token(&self, checked: OpenAs) -> Result<OwnedHandle, Code> {
        let OpenAs::Process = checked;
        sys::open_thread_token()
    }

    fn revert(&self) -> Result<(), Code> {
        sys::revert_to_self()
    }

    fn abort(&self, code: Code) -> ! {
        error!(
            code,
            "a thread cannot stop acting as a client: ending the process"
        );
        std::process::abort();
    }

    fn level(&self, token: &OwnedHandle) -> Result<u32, Code> {
        sys::token_level(token.as_handle()).map(i32::cast_unsigned)
    }

    fn user(&self, token: &OwnedHandle) -> Result<Sid, Code> {
        sys::token_user(token.as_handle())
    }

    fn session(&self, token: &OwnedHandle) -> Result<u32, Code> {
        sys::token_session(token.as_handle())
    }

    fn logon(&self, token: &OwnedHandle) -> Result<LogonId, Code> {
        sys::token_logon(token.as_handle())
    }

    fn integrity(&self, token: &OwnedHandle) -> Result<IntegrityLevel, Code> {
        sys::token_integrity(token.as_handle())
    }

    fn elevation(&self, token: &OwnedHandle) -> Result<Elevation, Code> {
        sys::token_elevation(token.as_handle())
    }

    fn groups(&self, token: &OwnedHandle) -> Result<Vec<(Sid, u32)>, Code> {
        sys::token_groups(token.as_handle())
    }

    fn is_app_container(&self, token: &OwnedHandle) -> Result<bool, Code> {
        sys::token_is_app_container(token.as_handle())
    }

    fn is_restricted(&self, token: &OwnedHandle) -> Result<bool, Code> {
        Ok(sys::token_is_restricted(token.as_handle()))
    }
}
