//! The calls whose order and arguments protect the service and its clients.
//!
//! The sequences in this folder are written against these traits. The system layer implements them
//! on Windows; in the tests, which run everywhere, a double that writes down each call does, and so
//! does the model of the pipe file system.

use crate::identity::{Elevation, LogonId};
use crate::security::{IntegrityLevel, PipeSecurity, Sid};

/// A code of the operating system (`ERROR_*`).
pub(crate) type Code = u32;

/// `PIPE_ACCESS_DUPLEX`.
pub(crate) const PIPE_ACCESS_DUPLEX: u32 = 0x3;
/// `FILE_FLAG_OVERLAPPED`.
pub(crate) const FILE_FLAG_OVERLAPPED: u32 = 0x4000_0000;
/// `FILE_FLAG_FIRST_PIPE_INSTANCE`: fail if anybody has the name.
pub(crate) const FILE_FLAG_FIRST_PIPE_INSTANCE: u32 = 0x8_0000;
/// `PIPE_TYPE_MESSAGE`.
pub(crate) const PIPE_TYPE_MESSAGE: u32 = 0x4;
/// `PIPE_READMODE_BYTE`.
pub(crate) const PIPE_READMODE_BYTE: u32 = 0;
/// `PIPE_WAIT`.
pub(crate) const PIPE_WAIT: u32 = 0;
/// `PIPE_REJECT_REMOTE_CLIENTS`.
pub(crate) const PIPE_REJECT_REMOTE_CLIENTS: u32 = 0x8;
/// `PIPE_UNLIMITED_INSTANCES`.
pub(crate) const PIPE_UNLIMITED_INSTANCES: u32 = 255;
/// `GENERIC_READ | GENERIC_WRITE`.
pub(crate) const GENERIC_READ_WRITE: u32 = 0xC000_0000;
/// `SECURITY_SQOS_PRESENT`: without it the levels below mean nothing, and the server may act in the
/// client's name.
pub(crate) const SECURITY_SQOS_PRESENT: u32 = 0x10_0000;
/// `SECURITY_IDENTIFICATION`: the server may know who the client is, and not act as it.
pub(crate) const SECURITY_IDENTIFICATION: u32 = 0x1_0000;
/// `SECURITY_ANONYMOUS`: the server may know nothing.
pub(crate) const SECURITY_ANONYMOUS: u32 = 0;

pub(crate) const ERROR_FILE_NOT_FOUND: Code = 2;
pub(crate) const ERROR_ACCESS_DENIED: Code = 5;
pub(crate) const ERROR_PIPE_BUSY: Code = 231;
pub(crate) const ERROR_INVALID_SECURITY_DESCR: Code = 1338;
pub(crate) const ERROR_CANT_OPEN_ANONYMOUS: Code = 1347;
pub(crate) const ERROR_CANNOT_IMPERSONATE: Code = 1368;
/// `SecurityIdentification`.
pub(crate) const LEVEL_IDENTIFICATION: u32 = 1;

/// What a service or a client calls on one pipe name.
pub(crate) trait PipeCalls {
    /// One end of a pipe, closed when it is dropped.
    type Pipe;

    /// `CreateNamedPipeW` with the service's security descriptor.
    fn create(
        &self,
        open_mode: u32,
        pipe_mode: u32,
        max_instances: u32,
    ) -> Result<Self::Pipe, Code>;

    /// `CreateFileW` of the existing pipe.
    fn open(&self, access: u32, flags: u32) -> Result<Self::Pipe, Code>;

    /// `GetSecurityInfo`: owner, access control list and label.
    fn security(&self, pipe: &Self::Pipe) -> Result<PipeSecurity, Code>;
}

/// Against whose rights the opening of a token is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenAs {
    /// The process's (`OpenAsSelf`): a client that may only be identified could not open its own.
    Process,
}

/// What is called to find out who the client of a pipe is, on a thread of its own.
pub(crate) trait ClientCalls {
    /// A token, closed when it is dropped.
    type Token;

    /// `ImpersonateNamedPipeClient`.
    fn impersonate(&self) -> Result<(), Code>;
    /// `OpenThreadToken(TOKEN_QUERY)`.
    fn open_thread_token(&self, checked: OpenAs) -> Result<Self::Token, Code>;
    /// `RevertToSelf`.
    fn revert(&self) -> Result<(), Code>;
    /// Ends the process at once.
    fn abort(&self, code: Code) -> !;

    /// `TokenImpersonationLevel`.
    fn level(&self, token: &Self::Token) -> Result<u32, Code>;
    /// `TokenUser`.
    fn user(&self, token: &Self::Token) -> Result<Sid, Code>;
    /// `TokenSessionId`.
    fn session(&self, token: &Self::Token) -> Result<u32, Code>;
    /// `TokenStatistics`.
    fn logon(&self, token: &Self::Token) -> Result<LogonId, Code>;
    /// `TokenIntegrityLevel`.
    fn integrity(&self, token: &Self::Token) -> Result<IntegrityLevel, Code>;
    /// `TokenElevationType`.
    fn elevation(&self, token: &Self::Token) -> Result<Elevation, Code>;
    /// `TokenGroups`, with `SE_GROUP_*`.
    fn groups(&self, token: &Self::Token) -> Result<Vec<(Sid, u32)>, Code>;
    /// `TokenIsAppContainer`.
    fn is_app_container(&self, token: &Self::Token) -> Result<bool, Code>;
    /// `IsTokenRestricted`: whether there is a list of restricting SIDs.
    fn is_restricted(&self, token: &Self::Token) -> Result<bool, Code>;
}
