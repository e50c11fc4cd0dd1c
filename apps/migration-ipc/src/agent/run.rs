//! The agent as a program.

use std::ffi::OsString;
use std::future;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use migration_ipc::messages::{AgentStarted, BackupRequest, Category as CategoryName};
use migration_ipc::{Endpoint, IpcClient, SendError};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::backup_run::{self, Assignment, BackupEnd};
use super::consent::{Choice, Consent};
use super::outbox::{DelayReply, Outbox};
use super::prompt::Prompt;
use super::steps::{Step, Steps};
use super::{inbox, wording};
use crate::backup::{BackupJob, Cancel, Category, FolderName, Layout, Placeholders};
use crate::cli::{Exit, Failure, OrExit, print};
use crate::operator;
use crate::os;
use crate::service_message::ServiceMessage;
use crate::shutdown::{Lifeline, Shutdown};

/// Run an agent.
#[derive(Debug, Args)]
pub(crate) struct AgentCommand {
    /// Where the service is: a pipe name on Windows, a socket path elsewhere
    #[arg(long, value_name = "E")]
    endpoint: Option<Endpoint>,

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

fn category_parser() -> impl clap::builder::TypedValueParser<Value = Category> {
    OsStringValueParser::new().try_map(|text: OsString| Category::parse(&text))
}

impl AgentCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut shutdown = Shutdown::listen(self.lifeline)?;
        let template = self.template()?;
        let prompt = self.prompt()?;
        let endpoint = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => Endpoint::client_default().or_exit(Exit::Usage)?,
        };
        let (dispatcher, messages) = inbox::open()?;
        let session = self.session.clone().or_else(os::session_name);
        let session = session.unwrap_or_else(|| "default".to_owned());
        let announcement =
            AgentStarted::new(template.user.as_str(), env!("CARGO_PKG_VERSION"), session);
        let connecting = IpcClient::builder(dispatcher)
            .endpoint(endpoint)
            .announce(&announcement)
            .connect();
        let mut client = tokio::select! {
            client = connecting => client.map_err(operator::failure)?,
            _cause = shutdown.requested() => return Ok(()),
        };
        match client.announced().await {
            // A plain service that has work answers with the work alone.
            Ok(()) | Err(SendError::Unanswered) => {}
            Err(error @ SendError::Rejected(_)) => return Err(error).or_exit(Exit::Refused),
            Err(error) => return Err(error).or_exit(Exit::Disconnected),
        }
        tracing::info!(user = %template.user, "announced");
        let agent = Agent {
            outbox: Outbox {
                user: template.user.clone(),
                service: client.connection().clone(),
                kind: client.service_kind(),
            },
            steps: Steps::new(self.consent),
            template,
            prompt,
            backup: None,
            delays: JoinSet::new(),
        };
        agent.work(client, messages, shutdown).await
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
    fn template(&self) -> Result<BackupJob, Failure> {
        let user = match &self.user {
            Some(user) => user.clone(),
            None => os::own_account()?,
        };
        let categories = if self.categories.is_empty() {
            vec![default_category()?]
        } else {
            distinct(&self.categories)?
        };
        let root = match (&self.backup_root, &self.data_dir) {
            (Some(root), _) => root.clone(),
            (None, Some(data)) => data.join("backups"),
            (None, None) => os::agent_data_folder()
                .or_exit(Exit::Usage)?
                .join("backups"),
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

/// What goes on next: the agent lives on, or ends.
type Continue = std::ops::ControlFlow<()>;

/// A connected agent.
struct Agent {
    outbox: Outbox,
    steps: Steps,
    template: BackupJob,
    prompt: Option<Prompt>,
    backup: Option<RunningBackup>,
    /// Requests for a delay that wait for their answer; at most one at a time.
    delays: JoinSet<Result<DelayReply, SendError>>,
}

struct RunningBackup {
    cancel: Cancel,
    task: JoinHandle<Result<BackupEnd, SendError>>,
}

impl Agent {
    async fn work(
        mut self,
        client: IpcClient,
        mut messages: mpsc::Receiver<ServiceMessage>,
        mut shutdown: Shutdown,
    ) -> Result<(), Failure> {
        loop {
            let timeout = self.steps.next_timeout();
            let steps = tokio::select! {
                Some(message) = messages.recv() => self.handle_message(message)?,
                line = next_line(&mut self.prompt) => self.handle_line(line)?,
                ended = end_of(&mut self.backup) => self.handle_end(ended)?,
                Some(reply) = self.delays.join_next() => self.handle_delay(reply)?,
                () = until(timeout) => self.steps.handle_timeout(Instant::now()),
                reason = client.closed() => {
                    self.abandon_backup().await;
                    let text = format!("the connection to the service ended: {reason}");
                    return Err(Failure::new(Exit::Disconnected, text));
                }
                cause = shutdown.requested() => {
                    tracing::info!(%cause, "exiting");
                    self.abandon_backup().await;
                    break;
                }
            };
            if self.take(steps).await?.is_break() {
                break;
            }
        }
        client.disconnect().await;
        Ok(())
    }

    fn handle_message(&mut self, message: ServiceMessage) -> Result<Vec<Step>, Failure> {
        let now = Instant::now();
        Ok(match message {
            ServiceMessage::BackupRequest(request) => {
                print(wording::request(&request))?;
                self.steps.handle_request(request, now)
            }
            ServiceMessage::StatusUpdate(status) => {
                print(wording::status(&status))?;
                Vec::new()
            }
            ServiceMessage::EscalationNotice(notice) => {
                print(wording::escalation(&notice))?;
                self.steps.handle_escalation(&notice)
            }
            ServiceMessage::ConfigurationUpdate(update) => {
                print(wording::configuration(&update))?;
                Vec::new()
            }
            ServiceMessage::ShutdownRequest(request) => {
                print(wording::shutdown(&request))?;
                self.steps.handle_shutdown(&request, now)
            }
        })
    }

    fn handle_line(&mut self, line: Option<String>) -> Result<Vec<Step>, Failure> {
        let Some(line) = line else {
            self.prompt = None;
            return Ok(self.steps.handle_choice(Choice::Decline));
        };
        match Choice::parse(&line) {
            Some(choice) => Ok(self.steps.handle_choice(choice)),
            None => {
                print(wording::QUESTION)?;
                Ok(Vec::new())
            }
        }
    }

    fn handle_end(
        &mut self,
        ended: Result<Result<BackupEnd, SendError>, JoinError>,
    ) -> Result<Vec<Step>, Failure> {
        self.backup = None;
        match ended? {
            Ok(end) => print(wording::end(&end))?,
            // The connection's own end is noticed by itself.
            Err(error) => print(format_args!(
                "The service was not told of the backup: {error}"
            ))?,
        }
        Ok(self.steps.handle_finished())
    }

    fn handle_delay(
        &mut self,
        reply: Result<Result<DelayReply, SendError>, JoinError>,
    ) -> Result<Vec<Step>, Failure> {
        match reply? {
            Ok(DelayReply::Message(message)) => self.handle_message(message),
            Ok(DelayReply::Later) => Ok(Vec::new()),
            Ok(DelayReply::Refused(text)) => {
                print(format_args!(
                    "The delay was not granted: {}",
                    text.escape_debug()
                ))?;
                Ok(self.steps.handle_delay_refused())
            }
            Err(error) => {
                print(format_args!("The delay was not requested: {error}"))?;
                Ok(self.steps.handle_delay_refused())
            }
        }
    }

    async fn take(&mut self, steps: Vec<Step>) -> Result<Continue, Failure> {
        for step in steps {
            match step {
                Step::Ask(_) => print(wording::QUESTION)?,
                Step::Start(request) => self.start(&request),
                Step::RequestDelay { by, delays_used } => {
                    let outbox = self.outbox.clone();
                    self.delays
                        .spawn(async move { outbox.request_delay(by, delays_used).await });
                }
                Step::Report(act) => {
                    if let Err(error) = self.outbox.report(act).await {
                        tracing::warn!(%error, "the service was not told what the user did");
                    }
                }
                Step::CancelBackup => {
                    if let Some(backup) = &self.backup {
                        backup.cancel.cancel();
                    }
                }
                Step::Exit => return Ok(Continue::Break(())),
            }
        }
        Ok(Continue::Continue(()))
    }

    fn start(&mut self, request: &BackupRequest) {
        let assignment = self.assignment(&request.categories);
        let cancel = Cancel::default();
        let running = backup_run::run(assignment, self.outbox.service.clone(), cancel.clone());
        self.backup = Some(RunningBackup {
            cancel,
            task: tokio::spawn(running),
        });
    }

    /// What of the categories asked for this agent knows; everything if none are named.
    fn assignment(&self, asked: &[CategoryName]) -> Assignment {
        let mut job = self.template.clone();
        if asked.is_empty() {
            return Assignment {
                job,
                unknown: Vec::new(),
            };
        }
        let known = |name: &CategoryName| {
            self.template
                .categories
                .iter()
                .any(|category| category.name.as_str() == name.as_str())
        };
        job.categories.retain(|category| {
            asked
                .iter()
                .any(|name| name.as_str() == category.name.as_str())
        });
        Assignment {
            job,
            unknown: asked.iter().filter(|name| !known(name)).cloned().collect(),
        }
    }

    /// Ends the running backup and waits for it, so that nothing is written afterwards.
    async fn abandon_backup(&mut self) {
        if let Some(backup) = self.backup.take() {
            backup.cancel.cancel();
            // What it came to matters no more.
            drop(backup.task.await);
        }
    }
}

async fn next_line(prompt: &mut Option<Prompt>) -> Option<String> {
    match prompt {
        Some(prompt) => prompt.line().await,
        None => future::pending().await,
    }
}

async fn end_of(
    backup: &mut Option<RunningBackup>,
) -> Result<Result<BackupEnd, SendError>, JoinError> {
    match backup {
        Some(backup) => (&mut backup.task).await,
        None => future::pending().await,
    }
}

async fn until(timeout: Option<Instant>) {
    match timeout {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}
