//! Whether the account that a payload names is its sender's own.
//!
//! Authority is the operating system's identity alone. A `userId` that is absent or is any name
//! of the peer's own account is replaced by the canonical id; one that names another account is
//! refused; one that names nobody is replaced as well, and counted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration_ipc_protocol::RawValue;
use migration_ipc_protocol::messages::{ErrorCode, UserId};
use migration_ipc_transport::{AccountId, BoxFuture, ResolveError, resolve_account};

use crate::dispatch::HandlerError;

/// How many names are remembered for a connection: an account has about four forms (canonical id,
/// account name, `DOMAIN\name`, principal name), and an agent uses one or two.
const REMEMBERED_NAMES: usize = 8;

/// Finds the account that a name means. [`OsAccounts`] asks the operating system.
pub trait AccountResolver: Send + Sync + std::fmt::Debug + 'static {
    /// The account of this name, or `None` when nobody has it.
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>>;
}

/// The operating system's account database.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsAccounts;

impl AccountResolver for OsAccounts {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let name = name.to_owned();
        Box::pin(async move { resolve_account(&name).await })
    }
}

/// What can be said of a claim at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It was the peer's own account; the member holds the canonical id now.
    Settled,
    /// The name has to be looked up.
    Unresolved,
}

/// What a look-up showed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// A name of the peer's own account.
    Own,
    /// Nobody's name, as far as the operating system could say.
    Nobody,
    /// Another account.
    Foreign(AccountId),
}

/// The claims of one connection.
#[derive(Debug)]
pub(crate) struct Claims {
    resolver: Arc<dyn AccountResolver>,
    /// The canonical id, as payloads have it.
    canonical: UserId,
    /// Other names that may be replaced by it: the peer's own, and those that are nobody's.
    replaceable: Mutex<Vec<UserId>>,
}

impl Claims {
    pub(crate) fn new(resolver: Arc<dyn AccountResolver>, account: &AccountId) -> Self {
        Self {
            resolver,
            canonical: UserId::from(account.as_str()),
            replaceable: Mutex::default(),
        }
    }

    pub(crate) fn check(&self, user: &mut UserId) -> Claim {
        let replaceable =
            user.is_empty() || *user == self.canonical || self.replaceable().contains(user);
        if !replaceable {
            return Claim::Unresolved;
        }
        user.clone_from(&self.canonical);
        Claim::Settled
    }

    /// Looks the name up, off the I/O path.
    pub(crate) async fn settle(&self, user: &mut UserId) -> Settlement {
        if self.check(user) == Claim::Settled {
            // A message before this one asked the same.
            return Settlement::Own;
        }
        let settlement = match self.resolver.resolve(user.as_str()).await {
            Ok(Some(named)) if named.as_str() == self.canonical.as_str() => Settlement::Own,
            Ok(Some(named)) => return Settlement::Foreign(named),
            Ok(None) => Settlement::Nobody,
            Err(error) => {
                // A resolver may quote the name, which is the peer's.
                let error = error.to_string();
                tracing::warn!(error = %error.escape_debug(), "an account name could not be looked up");
                Settlement::Nobody
            }
        };
        self.remember(user);
        user.clone_from(&self.canonical);
        settlement
    }

    fn remember(&self, user: &UserId) {
        let mut replaceable = self.replaceable();
        if replaceable.len() < REMEMBERED_NAMES && !replaceable.contains(user) {
            replaceable.push(user.clone());
        }
    }

    fn replaceable(&self) -> MutexGuard<'_, Vec<UserId>> {
        self.replaceable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for a message that names another account.
pub(crate) fn foreign_account(own: &AccountId, named: &AccountId) -> HandlerError {
    HandlerError::new(format_args!(
        "the message names the account {named}, but it comes from {own}"
    ))
    .with_code(ErrorCode::IdentityMismatch)
}

/// Writes the `userId` of a payload in another spelling, if it is this account.
pub(super) fn respell(payload: &RawValue, account: &str, spelling: &str) -> Option<Box<RawValue>> {
    #[derive(serde::Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    const MEMBER: &str = "userId";
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_str(payload.get()).ok()?;
    let Text(named) = serde_json::from_str(members.get(MEMBER)?.get()).ok()?;
    if named != account {
        return None;
    }
    let spelled = serde_json::value::to_raw_value(spelling).ok()?;
    members.insert(MEMBER.to_owned(), &spelled);
    serde_json::value::to_raw_value(&members).ok()
}
