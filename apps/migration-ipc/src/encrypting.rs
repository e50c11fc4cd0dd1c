//! With which keys a command encrypts, and whether it may do without.

use std::path::PathBuf;

use clap::Args;
use migration_ipc::keys::read_keyring;
use migration_ipc::{ConnectionConfig, Demand, Encryption, SensitivePolicy};

use crate::cli::{Exit, Failure, OrExit};

/// How a client encrypts.
#[derive(Debug, Default, Args)]
pub(crate) struct Encrypting {
    /// Encrypt the connection with the first key of this file, if the service can; `key new` makes
    /// such files
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Say nothing to a service that does not encrypt
    #[arg(long, requires = "key_file")]
    require_encryption: bool,
}

impl Encrypting {
    pub(crate) async fn load(&self) -> Result<Option<Encryption>, Failure> {
        match self.key_file.clone() {
            Some(file) => Ok(Some(load(file, self.require_encryption).await?)),
            None => Ok(None),
        }
    }
}

/// Reads the keys of a file.
pub(crate) async fn load(file: PathBuf, is_required: bool) -> Result<Encryption, Failure> {
    let reading = tokio::task::spawn_blocking(move || read_keyring(file));
    let keyring = reading.await?.or_exit(Exit::Usage)?;
    Ok(if is_required {
        Encryption::required(keyring)
    } else {
        Encryption::offered(keyring)
    })
}

/// Where encryption is demanded, what is sensitive goes nowhere without it.
pub(crate) fn connection_config(encryption: &Encryption) -> ConnectionConfig {
    let sensitive = match encryption.demand {
        Demand::Required => SensitivePolicy::Encrypted,
        Demand::Offered => SensitivePolicy::AsTheyAre,
    };
    ConnectionConfig {
        sensitive,
        ..ConnectionConfig::default()
    }
}
