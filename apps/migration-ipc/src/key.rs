//! `key`: makes key files, and looks at them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use migration_ipc::OutboxKey;
use migration_ipc::keys::{
    KeyFileError, KeyKind, KeyProtection, MAX_KEY_NAME, ParsedKey, generate_shared_key,
    generate_static_keys, read_key_file, read_keyring, write_key_file,
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

    /// The file of the other side of a connection, which `static` keys need
    #[arg(long, value_name = "FILE", required_if_eq("kind", "static"))]
    peer: Option<PathBuf>,

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
    /// Encrypts connections; each side has a private key and the other's public one, in a file of
    /// its own.
    Static,
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
        if self.peer.is_some() && self.kind != Kind::Static {
            let text = "--peer is for `--kind static`: a key of another kind is in one file, of which \
                        the other side has a copy";
            return Err(Failure::new(Exit::Usage, text));
        }
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| jiff::Timestamp::now().strftime("%Y-%m").to_string());
        match (self.kind, &self.peer) {
            (Kind::Static, Some(peer)) => {
                let [own, others] = generate_static_keys(&name)?;
                self.write(&self.file, &name, &own)?;
                self.write(peer, &name, &others).inspect_err(|_| {
                    // A half alone is of no use, and would be in the way of the next try.
                    let _left = std::fs::remove_file(&self.file);
                })?;
                Ok(print(format_args!(
                    "made the key `{name}` (static) in {} for one side and {} for the other",
                    visible(&self.file.to_string_lossy()),
                    visible(&peer.to_string_lossy()),
                ))?)
            }
            (Kind::Static, None) => Err(Failure::new(
                Exit::Usage,
                "static keys need `--peer FILE`, the file of the other side",
            )),
            (Kind::Shared, _) => self.make_one(&name, KeyKind::Shared),
            (Kind::Outbox, _) => self.make_one(&name, KeyKind::Outbox),
        }
    }

    fn make_one(&self, name: &str, kind: KeyKind) -> Result<(), Failure> {
        let key = ParsedKey {
            name: name.to_owned(),
            kind,
            bytes: generate_shared_key()?,
        };
        self.write(&self.file, name, &[key])?;
        Ok(print(format_args!(
            "made the key `{name}` ({kind}) in {}",
            visible(&self.file.to_string_lossy())
        ))?)
    }

    fn write(&self, file: &Path, name: &str, keys: &[ParsedKey]) -> Result<(), Failure> {
        let protection = self
            .protect
            .map_or(KeyProtection::Clear, |scope| match scope {
                Scope::Machine => KeyProtection::Dpapi(ProtectScope::Machine),
                Scope::User => KeyProtection::Dpapi(ProtectScope::User),
            });
        match write_key_file(file, keys, protection) {
            Err(KeyFileError::Keys(_)) => {
                let text = format!(
                    "`{}` is no name for a key: use 1 to {MAX_KEY_NAME} letters, digits, `.`, `_` \
                     and `-`",
                    visible(name)
                );
                Err(Failure::new(Exit::Usage, text))
            }
            written => written.or_exit(Exit::Usage),
        }
    }
}

impl Check {
    fn run(self) -> Result<(), Failure> {
        let keys = read_key_file(&self.file).or_exit(Exit::Usage)?;
        // A file for an outbox alone makes no keyring, and needs none.
        if keys.iter().any(|key| key.kind != KeyKind::Outbox) {
            read_keyring(&self.file).or_exit(Exit::Usage)?;
        }
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
