//! The client's side.

use std::os::windows::io::{AsHandle, OwnedHandle};
use std::time::Duration;

use windows_sys::Win32::Foundation::{ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, ERROR_PIPE_BUSY};

use super::rules::backoff::Backoff;
use super::rules::calls::{Code, PipeCalls};
use super::rules::server::{self, Distrust, Refused};
use super::stream::PipeStream;
use super::sys::{self, Sid};
use super::{identity, os_error};
use crate::endpoint::Endpoint;
use crate::error::ConnectError;
use crate::seam::{ConnectOptions, Stream, Trust};
use crate::security::PipeSecurity;

/// A busy service arms another instance within milliseconds.
const FIRST_DELAY: Duration = Duration::from_millis(4);

/// A client that waited for long costs one call ten times a second.
const LONGEST_DELAY: Duration = Duration::from_millis(100);

/// Whose pipe a client takes for the service's, for error messages.
const TRUSTED: &str =
    "SYSTEM or Administrators, unless this client was told to trust another account";

/// Opens the pipe, again and again while all instances are busy (the caller limits the time), and
/// checks who serves it. Cancel safe: between the tries there is nothing to lose.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    options: &ConnectOptions,
) -> Result<Box<dyn Stream>, ConnectError> {
    let io_error = |action| {
        move |source| ConnectError::Io {
            endpoint: endpoint.clone(),
            action,
            source,
        }
    };
    let also = match &options.trust {
        Trust::System => None,
        Trust::OwnAccount => {
            let own = identity::own_account().map_err(os_error);
            Some(own.map_err(io_error("reading this process's account"))?)
        }
        Trust::Account(account) => {
            let sid = account.as_str().parse::<Sid>();
            let sid = sid.map_err(|error| std::io::Error::other(format!("{account} {error}")));
            Some(sid.map_err(io_error("trusting an account"))?)
        }
    };
    let name = ClientName(sys::wide(&endpoint.to_string()));
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    let (pipe, owner) = loop {
        match server::open(&name, also.as_ref()) {
            Ok(opened) => break opened,
            Err(Refused::Open(ERROR_PIPE_BUSY)) => tokio::time::sleep(backoff.jittered()).await,
            Err(refused) => return Err(error(endpoint.clone(), refused)),
        }
    };
    let server = identity::of_server(pipe.as_handle(), &owner)
        .map_err(os_error)
        .map_err(io_error("reading this process's account"))?;
    let pipe = sys::adopt_client(pipe).map_err(io_error("registering the pipe"))?;
    Ok(Box::new(PipeStream::connected(pipe, server)))
}

/// A pipe's name, as its clients use it.
#[derive(Debug)]
struct ClientName(Vec<u16>);

impl PipeCalls for ClientName {
    type Pipe = OwnedHandle;

    fn create(&self, _: u32, _: u32, _: u32) -> Result<OwnedHandle, Code> {
        // No client creates one; it has no descriptor to do so with.
        Err(ERROR_ACCESS_DENIED)
    }

    fn open(&self, access: u32, flags: u32) -> Result<OwnedHandle, Code> {
        sys::open_pipe(&self.0, access, flags)
    }

    fn security(&self, pipe: &OwnedHandle) -> Result<PipeSecurity, Code> {
        sys::pipe_security(pipe.as_handle())
    }
}

fn error(endpoint: Endpoint, refused: Refused<OwnedHandle>) -> ConnectError {
    let io_error = |endpoint, action, code| ConnectError::Io {
        endpoint,
        action,
        source: os_error(code),
    };
    match refused {
        Refused::Open(code @ ERROR_FILE_NOT_FOUND) => ConnectError::NotRunning {
            endpoint,
            source: os_error(code),
        },
        Refused::Open(code @ ERROR_ACCESS_DENIED) => ConnectError::Denied {
            endpoint,
            source: os_error(code),
        },
        Refused::Open(code) => io_error(endpoint, "opening the pipe", code),
        Refused::Security(code) => io_error(endpoint, "reading what protects the pipe", code),
        Refused::Distrusted { pipe, owner, why } => {
            match (identity::of_server(pipe.as_handle(), &owner), why) {
                (Ok(server), Distrust::Owner) => ConnectError::Untrusted {
                    endpoint,
                    server,
                    trusted: TRUSTED,
                },
                (Ok(server), Distrust::OtherMaster(other)) => ConnectError::Unprotected {
                    endpoint,
                    server,
                    problem: other.to_string(),
                },
                (Err(code), _) => io_error(endpoint, "reading this process's account", code),
            }
        }
    }
}
