//! The account database: local accounts, and those of the domain where there is one.

use std::io;

use windows_sys::Win32::Foundation::ERROR_NONE_MAPPED;
use windows_sys::Win32::Security::{SidTypeUser, SidTypeWellKnownGroup};

use super::{os_error, sys};
use crate::identity::AccountId;

/// May block for seconds: a domain controller is asked.
pub(crate) fn resolve(name: &str) -> io::Result<Option<AccountId>> {
    if let Ok(sid) = name.parse::<sys::Sid>() {
        return Ok(Some(account_id(&sid)));
    }
    // A name with a NUL byte would be looked up as the part before it.
    if name.is_empty() || name.contains('\0') {
        return Ok(None);
    }
    match sys::lookup_account_name(name) {
        // SYSTEM and the like are "well-known groups". Other groups, computers and domains are no
        // accounts that a peer can run as.
        Ok((sid, kind)) if kind == SidTypeUser || kind == SidTypeWellKnownGroup => {
            Ok(Some(account_id(&sid)))
        }
        Ok(_) | Err(ERROR_NONE_MAPPED) => Ok(None),
        Err(code) => Err(os_error(code)),
    }
}

/// May block for seconds, as [`resolve`].
pub(crate) fn name(account: &AccountId) -> io::Result<Option<String>> {
    let Ok(sid) = account.as_str().parse::<sys::Sid>() else {
        return Ok(None);
    };
    match sys::lookup_account_sid(&sid) {
        Ok((domain, name)) if domain.is_empty() => Ok(Some(name)),
        Ok((domain, name)) => Ok(Some(format!(r"{domain}\{name}"))),
        Err(ERROR_NONE_MAPPED) => Ok(None),
        Err(code) => Err(os_error(code)),
    }
}

/// The SID of a group or an account, `None` if there is none of that name. May block as
/// [`resolve`].
pub(super) fn group(name: &str) -> io::Result<Option<sys::Sid>> {
    if let Ok(sid) = name.parse() {
        return Ok(Some(sid));
    }
    match sys::lookup_account_name(name) {
        Ok((sid, _kind)) => Ok(Some(sid)),
        Err(ERROR_NONE_MAPPED) => Ok(None),
        Err(code) => Err(os_error(code)),
    }
}

/// The canonical id of an account: its SID.
pub(super) fn account_id(sid: &sys::Sid) -> AccountId {
    AccountId::new(sid.to_string())
}
