//! Which peers may have a role: a rule over what the operating system says of them.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use migration_ipc_transport::PeerIdentity;

/// What a rule of a role may return: `bool`, or a `Result` of it if deciding can fail. An error is a
/// no.
pub trait Verdict {
    /// Whether the peer may have the role, or why that cannot be said.
    ///
    /// # Errors
    /// When it cannot be said. The peer does not get the role.
    fn verdict(self) -> Result<bool, String>;
}

impl Verdict for bool {
    fn verdict(self) -> Result<bool, String> {
        Ok(self)
    }
}

impl<E: Display> Verdict for Result<bool, E> {
    fn verdict(self) -> Result<bool, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Why a rule said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum No {
    /// It decided so.
    Decided,
    /// It failed or panicked.
    Failed,
}

type Decide = dyn Fn(&PeerIdentity) -> Result<bool, String> + Send + Sync;

/// A rule: code of the user's, which may fail and panic.
#[derive(Clone)]
pub(super) struct Rule(Arc<Decide>);

impl Rule {
    pub(super) fn new<V: Verdict>(
        rule: impl Fn(&PeerIdentity) -> V + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |peer| rule(peer).verdict()))
    }

    /// Asks the rule. Everything but a clear yes is a no.
    pub(super) fn ask(&self, peer: &PeerIdentity) -> Result<(), No> {
        match catch_unwind(AssertUnwindSafe(|| (self.0)(peer))) {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(No::Decided),
            Ok(Err(error)) => {
                tracing::error!(
                    error = %error.escape_debug(),
                    "the rule of a role failed, which counts as a no",
                );
                Err(No::Failed)
            }
            Err(_) => {
                tracing::error!("the rule of a role panicked, which counts as a no");
                Err(No::Failed)
            }
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").finish_non_exhaustive()
    }
}
