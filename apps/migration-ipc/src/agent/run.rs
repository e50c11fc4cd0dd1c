//! The agent at work: one loop over everything that can happen to it.

use std::future;
use std::time::SystemTime;

use migration_ipc::messages::{BackupRequest, Category as CategoryName};
use migration_ipc::{IpcClient, SendError};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::backup_run::{self, Assignment, BackupEnd};
use super::consent::{Choice, Consent};
use super::memory::Memory;
use super::outbox::{DelayReply, Outbox};
use super::prompt::Prompt;
use super::steps::{Step, Steps};
use super::wording::{self, say};
use crate::backup::{BackupJob, Cancel};
use crate::cli::{Exit, Failure};
use crate::service_message::ServiceMessage;
use crate::shutdown::Shutdown;

/// Whether the agent lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Exit,
}

/// A connected agent.
pub(super) struct Agent {
    outbox: Outbox,
    steps: Steps,
    template: BackupJob,
    memory: Memory,
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
    pub(super) fn new(
        outbox: Outbox,
        consent: Consent,
        prompt: Option<Prompt>,
        template: BackupJob,
        memory: Memory,
    ) -> Self {
        let steps = Steps::new(consent, memory.delay(SystemTime::now()));
        Self {
            outbox,
            steps,
            template,
            memory,
            prompt,
            backup: None,
            delays: JoinSet::new(),
        }
    }

    /// Works until the connection ends, which is a failure, or somebody asks for the end.
    pub(super) async fn work(
        mut self,
        client: IpcClient,
        mut messages: mpsc::Receiver<ServiceMessage>,
        mut shutdown: Shutdown,
    ) -> Result<(), Failure> {
        loop {
            let timeout = self.steps.next_timeout();
            let steps = tokio::select! {
                // What the service said before the connection ended counts before its end.
                biased;
                cause = shutdown.requested() => {
                    tracing::info!(%cause, "exiting");
                    self.abandon_backup().await;
                    break;
                }
                Some(message) = messages.recv() => self.handle_message(message),
                line = next_line(&mut self.prompt) => self.handle_line(line),
                ended = end_of(&mut self.backup) => self.handle_end(ended),
                Some(reply) = self.delays.join_next() => self.handle_delay(reply),
                () = until(timeout) => self.steps.handle_timeout(Instant::now()),
                reason = client.closed() => {
                    self.abandon_backup().await;
                    let text = format!("the connection to the service ended: {reason}");
                    return Err(Failure::new(Exit::Disconnected, text));
                }
            };
            if self.take(steps).await == Next::Exit {
                break;
            }
        }
        client.disconnect().await;
        Ok(())
    }

    fn handle_message(&mut self, message: ServiceMessage) -> Vec<Step> {
        let now = Instant::now();
        match message {
            ServiceMessage::BackupRequest(request) => {
                say(wording::request(&request));
                self.steps.handle_request(request, now)
            }
            ServiceMessage::StatusUpdate(status) => {
                say(wording::status(&status));
                Vec::new()
            }
            ServiceMessage::EscalationNotice(notice) => {
                say(wording::escalation(&notice));
                self.steps.handle_escalation(&notice)
            }
            ServiceMessage::ConfigurationUpdate(update) => {
                say(wording::configuration(&update));
                Vec::new()
            }
            ServiceMessage::ShutdownRequest(request) => {
                say(wording::shutdown(&request));
                self.steps.handle_shutdown(&request, now)
            }
        }
    }

    fn handle_line(&mut self, line: Option<String>) -> Vec<Step> {
        let Some(line) = line else {
            self.prompt = None;
            return self.steps.handle_no_terminal();
        };
        let Some(choice) = Choice::parse(&line) else {
            say(wording::QUESTION);
            return Vec::new();
        };
        let steps = self.steps.handle_choice(choice);
        if steps.is_empty() {
            say("There is nothing to decide at the moment.");
        }
        steps
    }

    fn handle_end(&mut self, ended: Result<Result<BackupEnd, SendError>, JoinError>) -> Vec<Step> {
        self.backup = None;
        match ended {
            Ok(Ok(end)) => say(wording::end(&end)),
            // The connection's own end is noticed by itself.
            Ok(Err(error)) => say(format_args!(
                "The service was not told of the backup: {error}"
            )),
            Err(error) => say(format_args!("The backup failed: {error}")),
        }
        self.steps.handle_finished()
    }

    fn handle_delay(
        &mut self,
        reply: Result<Result<DelayReply, SendError>, JoinError>,
    ) -> Vec<Step> {
        let problem = match reply {
            Ok(Ok(DelayReply::Message(message))) => return self.handle_message(message),
            Ok(Ok(DelayReply::Later)) => return Vec::new(),
            Ok(Ok(DelayReply::Refused(text))) => text,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        say(format_args!("The delay was not granted: {problem}"));
        self.steps.handle_delay_refused()
    }

    async fn take(&mut self, steps: Vec<Step>) -> Next {
        for step in steps {
            match step {
                Step::Ask(_) => say(wording::QUESTION),
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
                Step::KeepDelay(delay) => self.memory.keep_delay(&delay, SystemTime::now()),
                Step::ForgetDelay => self.memory.forget_delay(),
                Step::CancelBackup => {
                    if let Some(backup) = &self.backup {
                        backup.cancel.cancel();
                    }
                }
                Step::Exit => return Next::Exit,
            }
        }
        Next::GoOn
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
