//! The client's side.

use std::os::windows::io::AsHandle;
use std::time::Duration;

use tokio::net::windows::named_pipe::ClientOptions;
use windows_sys::Win32::Foundation::{ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, ERROR_PIPE_BUSY};
use windows_sys::Win32::Storage::FileSystem::SECURITY_IDENTIFICATION;

use super::rules::backoff::Backoff;
use super::stream::PipeStream;
use super::{identity, os_code, os_error};
use crate::endpoint::Endpoint;
use crate::error::ConnectError;
use crate::seam::Stream;

/// A busy service arms another instance within milliseconds.
const FIRST_DELAY: Duration = Duration::from_millis(4);

/// A client that waited for long costs one call ten times a second.
const LONGEST_DELAY: Duration = Duration::from_millis(100);

/// Whose pipe a client takes for the service's, for error messages.
const TRUSTED: &str = "SYSTEM, Administrators or this account";

/// Opens the pipe, again and again while all instances are busy (the caller limits the time), and
/// checks who owns it. Cancel safe: between the tries there is nothing to lose.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Box<dyn Stream>, ConnectError> {
    // The server may learn who we are and no more: without this flag it could act in our name.
    let mut options = ClientOptions::new();
    options.security_qos_flags(SECURITY_IDENTIFICATION);
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    let pipe = loop {
        let error = match options.open(endpoint.address()) {
            Ok(pipe) => break pipe,
            Err(error) => error,
        };
        let (endpoint, source) = (endpoint.clone(), error);
        match os_code(&source) {
            Some(ERROR_PIPE_BUSY) => tokio::time::sleep(backoff.jittered()).await,
            Some(ERROR_FILE_NOT_FOUND) => {
                return Err(ConnectError::NotRunning { endpoint, source });
            }
            Some(ERROR_ACCESS_DENIED) => return Err(ConnectError::Denied { endpoint, source }),
            _ => {
                return Err(ConnectError::Io {
                    endpoint,
                    action: "opening the pipe",
                    source,
                });
            }
        }
    };
    let endpoint = endpoint.clone();
    let server = match identity::of_server(pipe.as_handle()) {
        Ok(server) => server,
        Err(code) => {
            let source = os_error(code);
            return Err(ConnectError::Io {
                endpoint,
                action: "reading the pipe's owner",
                source,
            });
        }
    };
    if !server.is_operator() {
        return Err(ConnectError::Untrusted {
            endpoint,
            server,
            trusted: TRUSTED,
        });
    }
    Ok(Box::new(PipeStream::connected(pipe, server)))
}
