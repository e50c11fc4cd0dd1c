//! Who the other end of a pipe is.

use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};

use tokio::sync::oneshot;

use super::accounts::account_id;
use super::calls::ClientOf;
use super::os_error;
use super::rules::client::{NetworkLogons, ask};
use super::sys::{self, Code, Sid};
use crate::error::IdentifyError;
use crate::identity::{OsSession, PeerIdentity, Privilege};

/// Asks who the client of a pipe is, by impersonating it for a moment, and refuses one that the
/// endpoint is not for.
///
/// That changes whom a *thread* acts as. So it happens on a thread that is made for this one
/// question and does nothing else: no other code can ever run with the client's rights, even if
/// the process were to go wrong in between. The thread owns `pipe`, a duplicate of the stream's
/// handle: when the stream is dropped meanwhile, the handle's number cannot be given to another
/// connection, whose client would then be the answer.
pub(super) async fn of_client(
    pipe: OwnedHandle,
    network: NetworkLogons,
) -> Result<PeerIdentity, IdentifyError> {
    let (answer, asked) = oneshot::channel();
    let question = move || {
        // Nobody waits any more if this fails, which is all right.
        let _ = answer.send(identify_client(pipe.as_handle(), network));
    };
    std::thread::Builder::new()
        .name("pipe-client-identity".to_owned())
        .spawn(question)
        .map_err(|source| IdentifyError::Io {
            action: "starting a thread",
            source,
        })?;
    asked.await.unwrap_or_else(|_panicked| {
        let source = std::io::Error::other("the thread ended without an answer");
        Err(IdentifyError::Io {
            action: "asking on a thread",
            source,
        })
    })
}

fn identify_client(
    pipe: BorrowedHandle<'_>,
    network: NetworkLogons,
) -> Result<PeerIdentity, IdentifyError> {
    let token = ask(&ClientOf(pipe), network)?;
    let own = own_account().map_err(|code| IdentifyError::Io {
        action: "reading this process's account",
        source: os_error(code),
    })?;
    let is_administrator = token.user == Sid::system() || token.is_member(&Sid::administrators());
    let privilege = if is_administrator {
        Privilege::Administrator
    } else if token.user == own {
        Privilege::ServiceAccount
    } else {
        Privilege::Ordinary
    };
    Ok(PeerIdentity::new(account_id(&token.user), privilege)
        .with_session(OsSession::Id(token.session))
        .with_process_id(sys::client_process_id(pipe).ok())
        .with_token(token))
}

/// Who serves a pipe: the account that owns it, which is the one that created the name. The process
/// that created the instance is for logs.
pub(super) fn of_server(pipe: BorrowedHandle<'_>, owner: &Sid) -> Result<PeerIdentity, Code> {
    let privilege = if *owner == Sid::system() || *owner == Sid::administrators() {
        Privilege::Administrator
    } else if *owner == own_account()? {
        Privilege::ServiceAccount
    } else {
        Privilege::Ordinary
    };
    let session = sys::server_session_id(pipe).map_or(OsSession::Unknown, OsSession::Id);
    Ok(PeerIdentity::new(account_id(owner), privilege)
        .with_session(session)
        .with_process_id(sys::server_process_id(pipe).ok()))
}

/// The account that this process runs as.
pub(super) fn own_account() -> Result<Sid, Code> {
    sys::token_user(sys::open_process_token()?.as_handle())
}
