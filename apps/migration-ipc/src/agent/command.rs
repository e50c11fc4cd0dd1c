//! The agent as a command: its flags, its connection.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use migration_ipc::messages::{
    AgentStarted, BackupCompleted, BackupProgress, BackupStarted, DelayRequest, ErrorReport,
    UserAction,
};
use migration_ipc::{MessageDispatcher, Overflow, ReconnectingIpcClient};

use super::consent::Consent;
use super::inbox;
use super::memory::Memory;
use super::outbox::Outbox;
use super::prompt::Prompt;
use super::run::Agent;
use crate::backup::{BackupJob, Category, FolderName, Layout, Placeholders};
use crate::cli::{Exit, Failure, OrExit};
use crate::os;
use crate::reconnect::{self, Reconnect};
use crate::shutdown::{Lifeline, Shutdown};

/// Run an agent.
#[derive(Debug, Args)]
pub(crate) struct AgentCommand {
    #[command(flatten)]
    reconnect: Reconnect,

    /// Where this agent keeps what is its user's
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,

    /// What to back up, for example files=/home/alice/Documents; may be given several times
    /// [default: `files` is the user's Documents folder]
    #[arg(long = "category", value_name = "NAME=PATH", value_parser = category_parser())]
    categories: Vec<Category>,

    /// Where backups go, in a folder per user [default: `backups` in the data folder]
    #[arg(long, value_name = "DIR")]
    backup_root: Option<PathBuf>,

    /// The folder of this agent's backups in there [default: the account's id]
    #[arg(long, value_name = "NAME")]
    backup_folder: Option<FolderName>,

    /// How the user's consent is got
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Consent::Ask)]
    consent: Consent,

    /// The name under which the agent announces its user [default: the account's id]
    #[arg(long, value_name = "U")]
    user: Option<String>,

    /// The session that the agent announces [default: the log-on session's name, or `default`]
    #[arg(long, value_name = "S")]
    session: Option<String>,

    /// Also back up files whose content is in the cloud, which fetches it
    #[arg(long)]
    fetch_placeholders: bool,

    #[command(flatten)]
    lifeline: Lifeline,
}

fn category_parser() -> impl TypedValueParser<Value = Category> {
    OsStringValueParser::new().try_map(|text: OsString| Category::parse(&text))
}

impl AgentCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let shutdown = Shutdown::listen(self.lifeline)?;
        let session = self.session();
        let data = self.data_folder()?;
        let template = self.template(&data)?;
        let own = data
            .join("sessions")
            .join(FolderName::from_any(&session).as_str());
        os::create_private_folders(&own).or_exit(Exit::Usage)?;
        let prompt = self.prompt()?;
        let (dispatcher, messages) = inbox::open()?;
        let user = template.user.clone();
        let outbox = Outbox {
            service: self.start(dispatcher, &own, user.clone(), session).await?,
            user,
        };
        let memory = Memory::in_folder(&own);
        Agent::new(outbox, self.consent, prompt, template, memory)
            .work(messages, shutdown)
            .await
    }

    /// Begins to connect, and to keep what is said in the agent's own folder.
    async fn start(
        &self,
        dispatcher: MessageDispatcher,
        own: &Path,
        user: String,
        session: String,
    ) -> Result<ReconnectingIpcClient, Failure> {
        let announcement =
            move || AgentStarted::new(user.as_str(), env!("CARGO_PKG_VERSION"), session.as_str());
        let builder = ReconnectingIpcClient::builder(dispatcher);
        let builder = self
            .reconnect
            .configure(builder)
            .await?
            .announce_with(announcement)
            .durable::<BackupStarted>()
            .durable::<BackupCompleted>()
            .durable::<DelayRequest>()
            .durable::<UserAction>()
            .durable::<ErrorReport>()
            .overflow::<BackupProgress>(Overflow::KeepLatest);
        reconnect::start(builder, own.join("outbox")).await
    }

    fn session(&self) -> String {
        let session = self.session.clone().or_else(os::session_name);
        session.unwrap_or_else(|| "default".to_owned())
    }

    /// What this agent keeps lies in a folder for its session in there.
    fn data_folder(&self) -> Result<PathBuf, Failure> {
        let folder = match &self.data_dir {
            Some(folder) => folder.clone(),
            None => os::agent_data_folder().or_exit(Exit::Usage)?,
        };
        std::path::absolute(folder).or_exit(Exit::Usage)
    }

    fn prompt(&self) -> Result<Option<Prompt>, Failure> {
        match self.consent {
            Consent::Auto | Consent::Deny => Ok(None),
            Consent::Ask if Prompt::is_possible() => Ok(Some(Prompt::open()?)),
            Consent::Ask => Err(Failure::new(
                Exit::Usage,
                "there is no terminal to ask the user in; start the agent in one, or with \
                 `--consent auto` to back up without asking",
            )),
        }
    }

    /// The backup of everything that this agent knows.
    fn template(&self, data: &Path) -> Result<BackupJob, Failure> {
        let user = match &self.user {
            Some(user) => user.clone(),
            None => os::own_account()?,
        };
        let categories = if self.categories.is_empty() {
            vec![default_category()?]
        } else {
            distinct(&self.categories)?
        };
        let root = match &self.backup_root {
            Some(root) => root.clone(),
            None => data.join("backups"),
        };
        let folder = match &self.backup_folder {
            Some(folder) => folder.clone(),
            None => FolderName::from_any(&os::own_account()?),
        };
        let placeholders = if self.fetch_placeholders {
            Placeholders::Fetch
        } else {
            Placeholders::Skip
        };
        Ok(BackupJob {
            user,
            layout: if categories.len() == 1 {
                Layout::Flat
            } else {
                Layout::PerCategory
            },
            categories,
            destination: std::path::absolute(root)?.join(folder.as_str()),
            placeholders,
        })
    }
}

fn default_category() -> Result<Category, Failure> {
    let name = "files".parse()?;
    let source = os::documents_folder().or_exit(Exit::Usage)?;
    if source.is_dir() {
        return Ok(Category { name, source });
    }
    let text = format!(
        "there is no folder `{}` to back up; say what is with `--category NAME=PATH`",
        source.display()
    );
    Err(Failure::new(Exit::Usage, text))
}

fn distinct(categories: &[Category]) -> Result<Vec<Category>, Failure> {
    for (index, category) in categories.iter().enumerate() {
        if categories[..index]
            .iter()
            .any(|earlier| earlier.name == category.name)
        {
            let text = format!("the category `{}` is given twice", category.name);
            return Err(Failure::new(Exit::Usage, text));
        }
    }
    Ok(categories.to_vec())
}
