//! How a client or a service encrypts.

use migration_ipc_crypto::{Keyring, Suite};
use migration_ipc_protocol::hello::Capability;

use crate::config::{ConfigError, ConnectionConfig};

/// Whether a connection may do without encryption.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Demand {
    /// It may, with a peer that offers none. An attacker who can change what the two say to each
    /// other can make it so.
    #[default]
    Offered,
    /// It may not: a peer without encryption is refused. A client waits for the service's answer
    /// before it announces itself, and takes nobody's silence for an answer.
    Required,
}

/// Keys, and what to do with them. Given to the builders of clients and servers.
///
/// ```
/// use migration_ipc::Encryption;
/// use migration_ipc::crypto::{Key, Keyring, SharedKey};
///
/// # fn read() -> [u8; 32] { [7; 32] }
/// let key = Key::Shared(SharedKey::new(read()));
/// let keyring = Keyring::new("2026-11".parse()?, key);
/// let encryption = Encryption::required(keyring);
/// # let _ = migration_ipc::IpcClient::builder(migration_ipc::MessageDispatcher::empty())
/// #     .encryption(encryption);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Encryption {
    /// The keys by their names. A client uses the default one; a service all of them, whichever its
    /// client names.
    pub keyring: Keyring,
    /// What a client encrypts with. A service follows its client, as far as the keyring's provider
    /// can.
    pub suite: Suite,
    /// Whether a connection may do without.
    pub demand: Demand,
}

impl Encryption {
    /// Encrypts with peers that can do so too.
    #[must_use]
    pub fn offered(keyring: Keyring) -> Self {
        Self {
            keyring,
            suite: Suite::default(),
            demand: Demand::Offered,
        }
    }

    /// Speaks with nobody else.
    #[must_use]
    pub fn required(keyring: Keyring) -> Self {
        Self {
            demand: Demand::Required,
            ..Self::offered(keyring)
        }
    }

    /// The same with another suite.
    #[must_use]
    pub fn with_suite(self, suite: Suite) -> Self {
        Self { suite, ..self }
    }

    pub(crate) fn is_required(&self) -> bool {
        match self.demand {
            Demand::Offered => false,
            Demand::Required => true,
        }
    }

    /// Checks that a side which demands encryption does not leave it out.
    pub(crate) fn validate(&self, config: &ConnectionConfig) -> Result<(), ConfigError> {
        if self.is_required() && !config.capabilities.contains(Capability::Encryption) {
            return Err(ConfigError::new(
                "capabilities",
                "with encryption, which is demanded",
            ));
        }
        Ok(())
    }
}
