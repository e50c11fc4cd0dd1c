//! Whether a connection is encrypted, and what waits for it to be.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::RandomState;
use migration_ipc_protocol::MessagePayload;

use super::error::SendError;
use super::handle::IpcConnection;
use crate::config::SensitivePolicy;

/// What a connection turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// Nothing of it is encrypted, and nothing will be.
    Clear,
    /// It is encrypted, and the peer has confirmed what both said in the clear.
    Encrypted,
    /// It ended before that was known.
    Ended,
}

/// The types of messages that are known to be sensitive, by their names: those that a dispatcher was
/// given a handler for, and those that were sent with their payload. A program has so many types, so
/// the set is bounded.
#[derive(Debug, Clone, Default)]
pub(crate) struct SensitiveTypes(Arc<RwLock<HashSet<&'static str, RandomState>>>);

impl SensitiveTypes {
    pub(crate) fn new(types: impl IntoIterator<Item = &'static str>) -> Self {
        Self(Arc::new(RwLock::new(types.into_iter().collect())))
    }

    /// Remembers the type if it is sensitive.
    pub(crate) fn learn<P: MessagePayload>(&self) {
        if P::SENSITIVE && !self.knows(P::TYPE) {
            let mut types = self.0.write().unwrap_or_else(PoisonError::into_inner);
            types.insert(P::TYPE);
        }
    }

    pub(crate) fn knows(&self, message_type: &str) -> bool {
        let types = self.0.read().unwrap_or_else(PoisonError::into_inner);
        types.contains(message_type)
    }
}

impl IpcConnection {
    /// Whether the connection is encrypted. It is once the peer has confirmed with its first
    /// encrypted message that both ends heard the same hellos; with a client,
    /// [`connect`](crate::IpcClientBuilder::connect) returns after that.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.secrecy().get() == Some(&Secrecy::Encrypted)
    }

    /// It is known now; what was known before stays.
    pub(crate) fn settle_secrecy(&self, secrecy: Secrecy) {
        // An error means that it was known.
        drop(self.secrecy().set(secrecy));
    }

    /// Waits until it is known whether the connection is encrypted. Cancel safe.
    pub(crate) async fn secrecy_known(&self) -> Secrecy {
        *self.secrecy().wait().await
    }

    /// Whether sensitive messages go over encrypted connections alone.
    fn guards_sensitive(&self) -> bool {
        match self.config().sensitive {
            SensitivePolicy::AsTheyAre => false,
            SensitivePolicy::Encrypted => true,
        }
    }

    /// Waits until a payload of this type may go out.
    pub(crate) async fn admit<P: MessagePayload>(&self) -> Result<(), SendError> {
        self.sensitive_types().learn::<P>();
        if P::SENSITIVE && self.guards_sensitive() {
            // Boxed, so that the future of any other message has no room for it.
            Box::pin(self.admit_sensitive()).await
        } else {
            Ok(())
        }
    }

    /// As [`admit`](Self::admit), of a type of which the name alone is known.
    pub(crate) async fn admit_named(&self, message_type: &str) -> Result<(), SendError> {
        if self.guards_sensitive() && self.sensitive_types().knows(message_type) {
            Box::pin(self.admit_sensitive()).await
        } else {
            Ok(())
        }
    }

    pub(super) async fn admit_sensitive(&self) -> Result<(), SendError> {
        if !self.guards_sensitive() {
            return Ok(());
        }
        match self.secrecy_known().await {
            // Of one that has ended the lane says why.
            Secrecy::Encrypted | Secrecy::Ended => Ok(()),
            Secrecy::Clear => Err(SendError::NotEncrypted),
        }
    }

    /// Whether a message of this type may go out now: the last look, whichever way it came.
    pub(crate) fn admit_now(&self, message_type: &str) -> Result<(), SendError> {
        let withheld = self.guards_sensitive()
            && matches!(self.secrecy().get(), None | Some(Secrecy::Clear))
            && self.sensitive_types().knows(message_type);
        if withheld {
            return Err(SendError::NotEncrypted);
        }
        Ok(())
    }
}
