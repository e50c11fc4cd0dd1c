//! The demonstration from its first process to its last.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use migration_ipc::keys::{KeyKind, KeyProtection, ParsedKey, generate_shared_key, write_key_file};
use migration_ipc::{Encryption, Endpoint, IpcClient, Trust};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::outcome::{Outcome, table_of};
use super::processes::{Process, Starter};
use super::scratch::Scratch;
use super::source;
use super::view::View;
use crate::backup::{Cancel, Category, FolderName};
use crate::cli::{Exit, Failure, OrExit, print, visible};
use crate::encrypting;
use crate::operator::{self, ServiceStatus, UserStatus};
use crate::os::{self, ParentWatch};
use crate::service::Phase;
use crate::shutdown::{Shutdown, StopCause};

/// How often the service is asked for its status.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often the new service is tried to be reached.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// How long the service may take to be there, and the agents to announce themselves.
const START: Duration = Duration::from_secs(60);

/// The name of the key that everybody requires.
const KEY_NAME: &str = "demo";

/// Run the demonstration.
#[derive(Debug, Args)]
pub(crate) struct DemoCommand {
    /// What to back up [default: a few hundred files of mixed sizes, made for the occasion]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// How many agents back it up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    agents: u8,

    /// Keep the backups in this folder, in one folder per agent
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl DemoCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut shutdown = Shutdown::listen_with_parent(ParentWatch::new())?;
        let sources = sources(&self.paths)?;
        let keep = match &self.keep {
            Some(folder) => Some(std::path::absolute(folder).or_exit(Exit::Usage)?),
            None => None,
        };
        let program = std::env::current_exe()?;
        let scratch = Scratch::create(&program)?;
        let cancel = Cancel::default();
        let result = {
            let stage = Stage {
                scratch: &scratch,
                program,
                sources,
                keep,
                cancel: cancel.clone(),
            };
            let mut crew = Crew::default();
            let result = tokio::select! {
                result = stage.play(usize::from(self.agents), &mut crew) => result,
                cause = shutdown.requested() => Err(interrupted(cause)),
            };
            cancel.cancel();
            let dismissed = crew.dismiss().await;
            result.and_then(|good| dismissed.map(|()| good))
        };
        let cleaned = scratch.clean_up().await;
        let good = result?;
        cleaned?;
        if good {
            Ok(())
        } else {
            Err(Failure::new(Exit::Failed, "not every backup is good"))
        }
    }
}

fn interrupted(cause: StopCause) -> Failure {
    Failure::new(Exit::Interrupted, format!("ended early: {cause}"))
}

/// The paths as categories; with none given, none.
fn sources(paths: &[PathBuf]) -> Result<Vec<Category>, Failure> {
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for path in paths {
        let source = path.canonicalize().map_err(|error| {
            let text = format!("cannot back up `{}`: {error}", path.display());
            Failure::new(Exit::Usage, text)
        })?;
        let name = if paths.len() == 1 {
            "files".into()
        } else {
            base_name(&source)
        };
        sources.push(Category {
            name: unused(&mut names, &name),
            source,
        });
    }
    Ok(sources)
}

fn base_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| "root".into(), |name| name.to_string_lossy().into_owned())
}

/// A safe name like `name` that is not taken, also where cases are not told apart.
fn unused(taken: &mut BTreeSet<String>, name: &str) -> FolderName {
    let mut candidate = FolderName::from_any(name);
    let mut number = 2;
    while !taken.insert(candidate.as_str().to_lowercase()) {
        candidate = FolderName::from_any(&format!("{name}-{number}"));
        number += 1;
    }
    candidate
}

/// The processes at work.
#[derive(Default)]
struct Crew {
    service: Option<Process>,
    agents: Vec<Process>,
}

impl Crew {
    fn check_alive(&mut self) -> anyhow::Result<()> {
        self.service
            .iter_mut()
            .chain(&mut self.agents)
            .try_for_each(Process::check_alive)
    }

    /// Ends everybody, the service last; the first failure is reported, after all have ended.
    async fn dismiss(self) -> Result<(), Failure> {
        let mut result = Ok(());
        for process in self.agents.into_iter().chain(self.service) {
            result = result.and(process.stop().await);
        }
        Ok(result?)
    }
}

/// What the demonstration works with.
struct Stage<'a> {
    scratch: &'a Scratch,
    program: PathBuf,
    sources: Vec<Category>,
    keep: Option<PathBuf>,
    cancel: Cancel,
}

impl Stage<'_> {
    /// Returns whether every backup is good.
    async fn play(mut self, agents: usize, crew: &mut Crew) -> Result<bool, Failure> {
        if self.sources.is_empty() {
            self.sources = vec![self.made_source().await?];
        }
        let backups = self
            .keep
            .clone()
            .unwrap_or_else(|| self.scratch.path("backups"));
        let endpoint = Endpoint::parse(&os::scratch_endpoint(
            self.scratch.folder(),
            self.scratch.id(),
        ))?;
        let config = self.scratch.path("service.toml");
        fs::write(&config, self.config())?;

        let keys = self.scratch.path("keys");
        let encryption = make_key(keys.clone()).await?;
        let starter = Starter {
            program: &self.program,
            scratch: self.scratch,
            endpoint: &endpoint,
            keys: &keys,
        };
        crew.service = Some(starter.service(&config)?);
        let operator = reach(&endpoint, &encryption, crew).await?;
        print(format_args!(
            "Every connection is encrypted: service and agents require the key `{KEY_NAME}`, made for \
             this run."
        ))?;
        let names: Vec<String> = (1..=agents)
            .map(|number| format!("agent-{number}"))
            .collect();
        for name in &names {
            crew.agents
                .push(starter.agent(name, &backups, &self.sources)?);
        }
        let users = watch(&operator, crew, &names).await?;
        operator.disconnect().await;
        self.judge(names, users, &backups).await
    }

    async fn made_source(&self) -> Result<Category, Failure> {
        let source = self.scratch.path("source");
        let folder = source.clone();
        tokio::task::spawn_blocking(move || {
            fs::create_dir(&folder)?;
            source::fill(&folder)
        })
        .await??;
        Ok(Category {
            name: FolderName::from_any("files"),
            source,
        })
    }

    fn config(&self) -> String {
        let names: Vec<String> = self
            .sources
            .iter()
            .map(|it| format!("{:?}", it.name.as_str()))
            .collect();
        format!(
            "[backup]\nrequest = \"on_announce\"\ncategories = [{}]\n",
            names.join(", ")
        )
    }

    /// Compares every backup with the sources, and shows the table.
    async fn judge(
        self,
        names: Vec<String>,
        users: Vec<UserStatus>,
        backups: &Path,
    ) -> Result<bool, Failure> {
        let mut outcomes = Vec::new();
        for (name, user) in names.into_iter().zip(users) {
            let folder = backups.join(&name);
            let (sources, cancel) = (self.sources.clone(), self.cancel.clone());
            let checking = move || Outcome::check(name, user, &folder, &sources, &cancel);
            outcomes.push(tokio::task::spawn_blocking(checking).await?);
        }
        print(table_of(&outcomes))?;
        for problem in outcomes.iter().flat_map(Outcome::problems) {
            print(visible(&problem))?;
        }
        Ok(outcomes.iter().all(Outcome::is_good))
    }
}

/// Makes the key that everybody requires, in a file for this account alone.
async fn make_key(file: PathBuf) -> Result<Encryption, Failure> {
    let key = ParsedKey {
        name: KEY_NAME.to_owned(),
        kind: KeyKind::Shared,
        bytes: generate_shared_key()?,
    };
    let path = file.clone();
    let writing = move || write_key_file(&path, &[key], KeyProtection::Clear);
    tokio::task::spawn_blocking(writing).await??;
    encrypting::load(file, true).await
}

/// Connects to the service as soon as it is there.
async fn reach(
    endpoint: &Endpoint,
    encryption: &Encryption,
    crew: &mut Crew,
) -> Result<IpcClient, Failure> {
    let deadline = Instant::now() + START;
    let mut interval = interval(CONNECT_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        crew.check_alive()?;
        match operator::connect_to(endpoint, Trust::OwnAccount, Some(encryption.clone())).await {
            Err(failure) if failure.exit == Exit::CannotConnect && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

/// Shows the agents' progress until every backup has ended, and returns how.
async fn watch(
    operator: &IpcClient,
    crew: &mut Crew,
    names: &[String],
) -> Result<Vec<UserStatus>, Failure> {
    let mut view = View::new(names);
    let start = Instant::now();
    let mut interval = interval(POLL_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        crew.check_alive()?;
        let status = operator::full_status(operator).await?;
        let users: Vec<Option<UserStatus>> =
            names.iter().map(|name| user_of(&status, name)).collect();
        for (index, user) in users.iter().enumerate() {
            user.as_ref()
                .map_or(Ok(()), |user| view.show(index, user))?;
        }
        let ended: Vec<UserStatus> = users
            .iter()
            .flatten()
            .filter(|user| has_ended(user))
            .cloned()
            .collect();
        if ended.len() == names.len() {
            return Ok(ended);
        }
        if start.elapsed() > START && users.iter().any(Option::is_none) {
            return Err(Failure::new(
                Exit::Failed,
                "not every agent announced itself in time",
            ));
        }
    }
}

fn user_of(status: &ServiceStatus, agent: &str) -> Option<UserStatus> {
    let is_agent =
        |user: &&UserStatus| user.user.split_once('/').is_some_and(|(_, it)| it == agent);
    status.users.iter().find(is_agent).cloned()
}

fn has_ended(user: &UserStatus) -> bool {
    matches!(user.state, Phase::Completed | Phase::Failed)
}
