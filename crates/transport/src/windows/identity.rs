//! Who the other end of a pipe is.

use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};

use tokio::sync::oneshot;
use tracing::error;
use windows_sys::Win32::Foundation::{ERROR_CANNOT_IMPERSONATE, ERROR_CANT_OPEN_ANONYMOUS};
use windows_sys::Win32::Security::SecurityIdentification;
use windows_sys::Win32::System::SystemServices::{SE_GROUP_ENABLED, SE_GROUP_USE_FOR_DENY_ONLY};

use super::accounts::account_id;
use super::os_error;
use super::sys::{self, Code, Sid};
use crate::error::IdentifyError;
use crate::identity::{OsSession, PeerIdentity, Privilege};

/// Asks who the client of a pipe is, by impersonating it for a moment.
///
/// That changes whom a *thread* acts as. So it happens on a thread that is made for this one
/// question and does nothing else: no other code can ever run with the client's rights, even if
/// the process were to go wrong in between. The thread owns `pipe`, a duplicate of the stream's
/// handle: when the stream is dropped meanwhile, the handle's number cannot be given to another
/// connection, whose client would then be the answer.
pub(super) async fn of_client(pipe: OwnedHandle) -> Result<PeerIdentity, IdentifyError> {
    let (answer, asked) = oneshot::channel();
    let question = move || {
        // Nobody waits any more if this fails, which is all right.
        let _ = answer.send(identify_client(pipe.as_handle()));
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

fn identify_client(pipe: BorrowedHandle<'_>) -> Result<PeerIdentity, IdentifyError> {
    let token = client_token(pipe)?;
    let token = token.as_handle();
    // A client that allows less than identification hides who it is. Its token cannot even be
    // opened; this is the rule itself.
    let level = sys::token_level(token).map_err(failed("reading the client's level"))?;
    let account = sys::token_user(token).map_err(failed("reading the client's account"))?;
    if level < SecurityIdentification || account == Sid::anonymous() {
        return Err(IdentifyError::Anonymous);
    }
    let session = sys::token_session(token).map_err(failed("reading the client's session"))?;
    let groups = sys::token_groups(token).map_err(failed("reading the client's groups"))?;
    let privilege = if account == Sid::system() || is_administrator(&groups) {
        Privilege::Administrator
    } else if account == own_account().map_err(failed("reading this process's account"))? {
        Privilege::ServiceAccount
    } else {
        Privilege::Ordinary
    };
    Ok(PeerIdentity::new(account_id(&account), privilege)
        .with_session(OsSession::Id(session))
        .with_process_id(sys::client_process_id(pipe).ok()))
}

/// Whether the Administrators group counts in a token: it is there, enabled, and not kept only for
/// denials, as it is in the everyday token of an administrator (UAC).
fn is_administrator(groups: &[(Sid, u32)]) -> bool {
    let enabled = SE_GROUP_ENABLED.cast_unsigned();
    let only_denies = SE_GROUP_USE_FOR_DENY_ONLY.cast_unsigned();
    groups.iter().any(|(group, attributes)| {
        *group == Sid::administrators() && attributes & (enabled | only_denies) == enabled
    })
}

/// The client's token. On return this thread acts as the process again, or the process is gone.
fn client_token(pipe: BorrowedHandle<'_>) -> Result<OwnedHandle, IdentifyError> {
    sys::impersonate_client(pipe).map_err(|code| match code {
        ERROR_CANNOT_IMPERSONATE => IdentifyError::TooEarly,
        code => failed("impersonating the client")(code),
    })?;
    let token = sys::open_thread_token();
    if let Err(code) = sys::revert_to_self() {
        // "Your process should shut down" (RevertToSelf, remarks).
        error!(
            code,
            "a thread cannot stop acting as a client: ending the process"
        );
        std::process::abort();
    }
    token.map_err(|code| match code {
        ERROR_CANT_OPEN_ANONYMOUS => IdentifyError::Anonymous,
        code => failed("opening the client's token")(code),
    })
}

/// Who serves a pipe: the account that owns it, which is the one that created the name.
pub(super) fn of_server(pipe: BorrowedHandle<'_>) -> Result<PeerIdentity, Code> {
    let owner = sys::pipe_security(pipe)?.owner;
    let privilege = if owner == Sid::system() || owner == Sid::administrators() {
        Privilege::Administrator
    } else if owner == own_account()? {
        Privilege::ServiceAccount
    } else {
        Privilege::Ordinary
    };
    let session = sys::server_session_id(pipe).map_or(OsSession::Unknown, OsSession::Id);
    Ok(PeerIdentity::new(account_id(&owner), privilege)
        .with_session(session)
        .with_process_id(sys::server_process_id(pipe).ok()))
}

/// The account that this process runs as.
pub(super) fn own_account() -> Result<Sid, Code> {
    sys::token_user(sys::open_process_token()?.as_handle())
}

fn failed(action: &'static str) -> impl Fn(Code) -> IdentifyError {
    move |code| IdentifyError::Io {
        action,
        source: os_error(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrator_has_the_group_enabled_and_not_only_for_denials() {
        let enabled = SE_GROUP_ENABLED.cast_unsigned();
        let only_denies = SE_GROUP_USE_FOR_DENY_ONLY.cast_unsigned();
        let group = |attributes| {
            [
                (Sid::guests(), enabled),
                (Sid::administrators(), attributes),
            ]
        };
        assert!(is_administrator(&group(enabled)));
        assert!(!is_administrator(&group(only_denies)));
        assert!(!is_administrator(&group(enabled | only_denies)));
        assert!(!is_administrator(&group(0)));
        assert!(!is_administrator(&[(Sid::guests(), enabled)]));
    }
}
