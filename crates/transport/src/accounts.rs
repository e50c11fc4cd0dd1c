//! From the names of accounts to their canonical ids, and back.
//!
//! An account database can be a directory server that is slow or gone. So each lookup runs on a
//! thread for blocking work, is waited for a bounded time, and holds one of a few permits until it
//! has really ended: a peer that names account after account cannot fill the process with threads.

use std::io;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::error::ResolveError;
use crate::identity::AccountId;
use crate::platform;

/// How long a lookup may take, the wait for a permit included. A domain controller answers within a
/// second or not at all; a connection's first message waits for it.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How many lookups run at a time.
const MAX_LOOKUPS: usize = 4;

/// The longest name that is looked up, in bytes: a user principal name of Windows has at most 1,024
/// characters, of at most four bytes; a login name of Linux has 256. What is longer names nobody.
const MAX_NAME: usize = 4 * 1024;

static LOOKUPS: Semaphore = Semaphore::const_new(MAX_LOOKUPS);

/// The account that a name means on this machine, or `None` if it means none.
///
/// * Unix: a decimal user id (which need not have an entry in the account database), or a login
///   name (`getpwnam_r`). Digits are always an id, never a login name.
/// * Windows: a SID, `DOMAIN\name`, a user principal name or an account name
///   (`LookupAccountNameW`).
///
/// Cancel safe. A lookup that was abandoned ends by itself in the background.
///
/// # Errors
///
/// [`ResolveError`] when the account database does not answer: then nothing is known of the name.
pub async fn resolve_account(name: &str) -> Result<Option<AccountId>, ResolveError> {
    if name.len() > MAX_NAME {
        return Ok(None);
    }
    let asked = name.to_owned();
    look_up(name, move || platform::accounts::resolve(&asked)).await
}

/// The name of an account for people to read: a login name, or `DOMAIN\name`; `None` if the
/// operating system knows no such account.
///
/// Cancel safe, as [`resolve_account`].
///
/// # Errors
///
/// [`ResolveError`] when the account database does not answer.
pub async fn account_name(account: &AccountId) -> Result<Option<String>, ResolveError> {
    let asked = account.clone();
    look_up(account.as_str(), move || platform::accounts::name(&asked)).await
}

/// Runs a blocking lookup within [`LOOKUP_TIMEOUT`] and [`MAX_LOOKUPS`].
async fn look_up<T: Send + 'static>(
    name: &str,
    lookup: impl FnOnce() -> io::Result<Option<T>> + Send + 'static,
) -> Result<Option<T>, ResolveError> {
    let answer = async {
        let permit: SemaphorePermit<'static> = LOOKUPS.acquire().await.map_err(io::Error::other)?;
        let blocking = move || {
            let _until_it_has_ended = permit;
            lookup()
        };
        tokio::task::spawn_blocking(blocking)
            .await
            .map_err(io::Error::other)?
    };
    match timeout(LOOKUP_TIMEOUT, answer).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(source)) => Err(ResolveError::Io {
            name: name.to_owned(),
            source,
        }),
        Err(_elapsed) => Err(ResolveError::TimedOut {
            name: name.to_owned(),
            limit: LOOKUP_TIMEOUT,
        }),
    }
}
