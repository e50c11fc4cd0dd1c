//! `key`: makes key files, and looks at them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use migration_ipc::OutboxKey;
use migration_ipc::keys::{
    KeyFileError, KeyKind, KeyProtection, MAX_KEY_NAME, ParsedKey, generate_shared_key,
    read_key_file, write_key_file,
};
use migration_ipc::transport::secrets::ProtectScope;

use crate::cli::{Exit, Failure, OrExit, print, visible};
use crate::operator::table;

/// Make and check files with keys.
#[derive(Debug, Args)]
pub(crate) struct KeyCommand {
    #[command(subcommand)]
    action: KeyAction,
}

#[derive(Debug, Subcommand)]
enum KeyAction {
    /// Make a file with a new key, for this account alone.
    New(New),
    /// Check a key file as the programs do that use it, and show what is in it but not the keys.
    Check(Check),
}

/// Make a file with a new key, for this account alone.
#[derive(Debug, Args)]
struct New {
    /// The file; nothing is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// How both sides call the key: letters, digits, `.`, `_`, `-` [default: the present month]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// What the key is for
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kind::Shared)]
    kind: Kind,

    /// Protect the file with DPAPI as well, so that a copy of it is of no use (Windows only); for
    /// this account, or for all of this machine, which services need that run as SYSTEM
    #[arg(long, value_enum, value_name = "SCOPE")]
    protect: Option<Scope>,
}

#[derive(Debug, Args)]
struct Check {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Encrypts connections; both sides have it.
    Shared,
    /// Encrypts an outbox on disk.
    Outbox,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scope {
    Machine,
    User,
}

impl KeyCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        tokio::task::spawn_blocking(move || match self.action {
            KeyAction::New(new) => new.run(),
            KeyAction::Check(check) => check.run(),
        })
        .await?
    }
}

impl New {
    fn run(self) -> Result<(), Failure> {
        let kind = match self.kind {
            Kind::Shared => KeyKind::Shared,
            Kind::Outbox => KeyKind::Outbox,
        };
        let protection = self
            .protect
            .map_or(KeyProtection::Clear, |scope| match scope {
                Scope::Machine => KeyProtection::Dpapi(ProtectScope::Machine),
                Scope::User => KeyProtection::Dpapi(ProtectScope::User),
            });
        let name = self
            .name
            .unwrap_or_else(|| jiff::Timestamp::now().strftime("%Y-%m").to_string());
        let key = ParsedKey {
            name,
            kind,
            bytes: generate_shared_key()?,
        };
        match write_key_file(&self.file, std::slice::from_ref(&key), protection) {
            Err(KeyFileError::Keys(_)) => {
                let text = format!(
                    "`{}` is no name for a key: use 1 to {MAX_KEY_NAME} letters, digits, `.`, `_` \
                     and `-`",
                    visible(&key.name)
                );
                return Err(Failure::new(Exit::Usage, text));
            }
            written => written.or_exit(Exit::Usage)?,
        }
        Ok(print(format_args!(
            "made the key `{}` ({}) in {}",
            key.name,
            key.kind,
            visible(&self.file.to_string_lossy())
        ))?)
    }
}

impl Check {
    fn run(self) -> Result<(), Failure> {
        let keys = read_key_file(&self.file).or_exit(Exit::Usage)?;
        let mut rows = vec![["NAME", "KIND", "ID"].map(str::to_owned).to_vec()];
        rows.extend(keys.iter().map(|key| {
            let id = match key.kind {
                KeyKind::Outbox => OutboxKey::new(&key.bytes).id().to_string(),
                KeyKind::Shared | KeyKind::StaticPrivate | KeyKind::StaticPublic => "-".to_owned(),
            };
            vec![key.name.clone(), key.kind.to_string(), id]
        }));
        Ok(print(table(&rows))?)
    }
}
