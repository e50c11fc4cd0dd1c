//! The service as a program.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use migration_ipc::storage::Store;
use migration_ipc::storage::disk::FolderError;
use migration_ipc::transport::{
    Access, Activation, Audience, BindOptions, ServiceMode, resolve_account,
};
use migration_ipc::{
    AccountId, Encryption, Endpoint, Execution, IpcServer, MessageDispatcher, StoreHandle,
    StoreOwner,
};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use super::agents::NamedAccount;
use super::audit::{self, AuditFile, AuditWriter};
use super::config::Config;
use super::desk::Desk;
use super::entry_log::EntryLog;
use super::handlers::{Office, dispatcher};
use super::journal::publish_endpoint;
use super::keeper::{Keeper, KeeperTask};
use super::key::UserScope;
use super::permissions;
use super::snapshot::About;
use super::state::{Migration, Rules};
use super::store::{self, StateError, Stored};
use crate::cli::{Exit, Failure, OrExit};
use crate::encrypting::{self, connection_config};
use crate::os;
use crate::shutdown::{Lifeline, Shutdown};
use crate::telemetry::Recorder;

/// How long connections may take to drain when the service stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the last state may take to be stored after that.
const LAST_SAVE: Duration = Duration::from_secs(10);

/// How long another process may hold the data folder, and how often that is looked at.
const HELD: Duration = Duration::from_secs(5);
const HELD_INTERVAL: Duration = Duration::from_millis(50);

/// Run the service.
#[derive(Debug, Args)]
pub(crate) struct ServiceCommand {
    /// Where to listen: a pipe name on Windows, a socket path elsewhere
    #[arg(long, value_name = "E")]
    endpoint: Option<Endpoint>,

    /// Where to keep the state
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,

    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Encrypt connections with the keys of this file, in place of the configuration's
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Turn away whoever does not encrypt, whatever the configuration says
    #[arg(long)]
    require_encryption: bool,

    /// Run as an ordinary account, and tell the agents of one account apart by the session that
    /// they announce
    #[arg(long)]
    development: bool,

    /// Append the id and the type of each message to this file when its handler begins
    #[arg(long, value_name = "FILE", hide = true)]
    entry_log: Option<PathBuf>,

    #[command(flatten)]
    lifeline: Lifeline,
}

impl ServiceCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut shutdown = Shutdown::listen(self.lifeline)?;
        let config = match &self.config {
            None => Config::default(),
            Some(path) => Config::read(path).or_exit(Exit::Usage)?,
        };
        let encryption = self.encryption(&config).await?;
        let recorder = Recorder::default();
        recorder.install()?;
        let folder = self.data_folder()?;
        let (store, stored) = open_store(folder.clone()).await?;
        // The folder is this process's own now.
        let (audit, writer) = open_audit(folder.clone()).await?;
        let (stop_audit, stopped) = oneshot::channel();
        let auditing = tokio::spawn(writer.run(stopped));
        let store = StoreOwner::start(store, Execution::Blocking);
        let handle = store.handle();
        let (office, keeping) =
            self.open_office(&config, recorder.clone(), handle.clone(), stored)?;
        let sender = Arc::clone(&office.server);
        let keeper = office.keeper.clone();
        let endpoint = self.endpoint()?;
        let server = self
            .start(
                endpoint.clone(),
                dispatcher(office)?,
                handle,
                audit,
                &config,
                encryption,
            )
            .await?;
        publish_endpoint(&folder, &endpoint)?;
        // Nobody set it before.
        let _known = sender.set(server.sender());

        let mut chores = JoinSet::new();
        let mut keeping = tokio::spawn(keeping.run(server.sender(), server.events()));
        chores.spawn(recorder.sample());
        chores.spawn(enrol(self.roster(config.roster), keeper));

        let stopped_by = tokio::select! {
            cause = shutdown.requested() => Ok(cause),
            failed = &mut keeping => Err(failed),
        };
        chores.shutdown().await;
        let report = server.stop(DRAIN).await;
        match stopped_by {
            Ok(cause) => tracing::info!(%cause, ?report, "stopped"),
            Err(failed) => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("the state's task ended: {failed:?}"),
                ));
            }
        }
        let last = async {
            keeping.await?;
            if let Some(store) = store.close().await {
                tokio::task::spawn_blocking(move || store.close()).await??;
            }
            // The writer may have ended already.
            let _ended = stop_audit.send(());
            auditing.await?;
            Ok(())
        };
        match tokio::time::timeout(LAST_SAVE, last).await {
            Ok(kept) => kept,
            Err(_) => Err(Failure::new(
                Exit::Failed,
                "the last state was not stored in time",
            )),
        }
    }

    fn mode(&self) -> ServiceMode {
        if self.development {
            ServiceMode::Development
        } else {
            ServiceMode::Production
        }
    }

    fn scope(&self) -> UserScope {
        if self.development {
            UserScope::Session
        } else {
            UserScope::Account
        }
    }

    /// The folder of the state, which is for this account alone.
    fn data_folder(&self) -> Result<PathBuf, Failure> {
        let folder = match &self.data_dir {
            Some(folder) => folder.clone(),
            None => os::service_data_folder().or_exit(Exit::Usage)?,
        };
        let folder = std::path::absolute(folder).or_exit(Exit::Usage)?;
        os::prepare_private_folder(&folder, store::FILE).or_exit(Exit::Usage)?;
        Ok(folder)
    }

    /// Everything that handlers share.
    fn open_office(
        &self,
        config: &Config,
        recorder: Recorder,
        store: StoreHandle,
        stored: Stored,
    ) -> Result<(Office, KeeperTask), Failure> {
        let entries = match &self.entry_log {
            None => EntryLog::default(),
            Some(path) => EntryLog::open(path).or_exit(Exit::Usage)?,
        };
        let rules = Rules {
            scope: self.scope(),
            delays: config.delays(),
            on_announce: config.on_announce(),
        };
        let migration = Migration::new(
            rules,
            stored.users,
            stored.standing_request,
            SystemTime::now().into(),
        );
        let (keeper, task) = Keeper::new(Desk::new(migration), store.clone(), stored.decision);
        let about = About {
            started: SystemTime::now().into(),
            recorder,
        };
        Ok((
            Office {
                keeper,
                about,
                entries,
                store,
                server: Arc::new(OnceCell::new()),
            },
            task,
        ))
    }

    /// With which keys connections are encrypted, if any.
    async fn encryption(&self, config: &Config) -> Result<Option<Encryption>, Failure> {
        let file = self.key_file.clone().or_else(|| config.key_file());
        let is_required = self.require_encryption || config.requires_encryption();
        match file {
            Some(file) => Ok(Some(encrypting::load(file, is_required).await?)),
            None if is_required => Err(Failure::new(
                Exit::Usage,
                "encryption is required, and there is no key: name a file with `--key-file FILE` or \
                 `key_file` in the section `[encryption]` of the configuration; `migration-ipc key \
                 new FILE` makes one",
            )),
            None => Ok(None),
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        match &self.endpoint {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Endpoint::service_default().or_exit(Exit::Usage),
        }
    }

    async fn start(
        &self,
        endpoint: Endpoint,
        dispatcher: MessageDispatcher,
        store: StoreHandle,
        audit: AuditFile,
        config: &Config,
        encryption: Option<Encryption>,
    ) -> Result<IpcServer, Failure> {
        let access = match &config.allowed_groups {
            None => Access::AnyLocalUser,
            Some(groups) => Access::Groups(groups.clone()),
        };
        let options = BindOptions::new()
            .mode(self.mode())
            .activation(Activation::IfPassed);
        let operators = endpoint.for_operators();
        let mut builder = IpcServer::builder(dispatcher)
            .store(store)
            .policy(permissions::policy())
            .audit(audit)
            .limits(config.server_limits())
            .endpoint_with(endpoint.clone(), options.clone().access(access));
        if let Some(encryption) = encryption {
            builder = builder
                .connection_config(connection_config(&encryption))
                .encryption(encryption);
        }
        if operators != endpoint {
            builder = builder.endpoint_with(operators, options.audience(Audience::Operators));
        }
        Ok(builder.start().await?)
    }

    /// The roster's names; none in development mode, where sessions count and not accounts.
    fn roster(&self, names: Vec<String>) -> Vec<String> {
        if self.development && !names.is_empty() {
            tracing::warn!("the roster counts for nothing with --development");
            return Vec::new();
        }
        names
    }
}

/// Opens the audit log. A service that cannot write it does not start.
async fn open_audit(folder: PathBuf) -> Result<(AuditFile, AuditWriter), Failure> {
    let opened = tokio::task::spawn_blocking(move || audit::open(&folder)).await?;
    opened.map_err(|error| {
        let text = format!("the audit log in the data folder cannot be opened: {error}");
        Failure::new(Exit::Usage, text)
    })
}

/// Opens the store and reads the state. Another process may hold the folder for a moment: one that
/// reads the journal, or a service that is about to end.
async fn open_store(folder: PathBuf) -> Result<(Store, Stored), Failure> {
    let deadline = Instant::now() + HELD;
    let mut interval = interval(HELD_INTERVAL);
    loop {
        interval.tick().await;
        let folder = folder.clone();
        let opening = move || {
            let (store, report) = store::open(&folder)?;
            let stored = store::load(&store.reader())?;
            Ok::<_, StateError>((store, report, stored, folder))
        };
        match tokio::task::spawn_blocking(opening).await? {
            Err(StateError::Folder(FolderError::Locked(_))) if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
            Ok((store, report, stored, folder)) => {
                tracing::info!(folder = %folder.display(), users = stored.users.len(), ?report, "state opened");
                return Ok((store, stored));
            }
        }
    }
}

/// Makes the roster's users known. A name that the operating system does not know yet counts as
/// a user of its own.
async fn enrol(names: Vec<String>, keeper: Keeper) {
    for name in names {
        let account = match resolve_account(&name).await {
            Ok(Some(account)) => account,
            Ok(None) => {
                tracing::warn!(
                    name,
                    "the roster names an account that this machine does not know"
                );
                AccountId::new(name.as_str())
            }
            Err(error) => {
                tracing::warn!(name, %error, "the roster names an account that cannot be looked up");
                AccountId::new(name.as_str())
            }
        };
        let known = NamedAccount {
            account,
            name: name.into(),
        };
        if let Err(error) = keeper
            .ask(move |desk, _| desk.migration.handle_roster(&known))
            .await
        {
            tracing::error!(%error, "the roster was not read to its end");
            return;
        }
    }
}
