//! The agent at work: one loop over everything that can happen to it.

use std::future;
use std::time::{Duration, SystemTime};

use migration_ipc::messages::{BackupRequest, Category as CategoryName};
use migration_ipc::{Fate, ReconnectState, Restored, RestoredFates, SendError};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::backup_run::{self, Assignment};
use super::consent::{Choice, Consent};
use super::memory::Memory;
use super::outbox::{DelayReply, Outbox};
use super::prompt::Prompt;
use super::steps::{Step, Steps};
use super::wording::{self, say};
use crate::backup::{BackupJob, Cancel};
use crate::cli::Failure;
use crate::reconnect::{is_for_want_of_encryption, refusal, trouble_of};
use crate::service_message::ServiceMessage;
use crate::shutdown::Shutdown;

/// Whether the agent lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Exit,
}

/// How long the end may take: what waits is sent by then, or is kept.
const GOODBYE: Duration = Duration::from_secs(5);

/// An agent, connected or not.
pub(super) struct Agent {
    outbox: Outbox,
    steps: Steps,
    template: BackupJob,
    memory: Memory,
    prompt: Option<Prompt>,
    backup: Option<RunningBackup>,
    /// Requests for a delay that wait for their answer; at most one at a time.
    delays: JoinSet<DelayReply>,
    /// What the user was told of it last.
    link: Link,
}

/// Whether the service is there, as the user knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    New,
    Up,
    Down,
}

struct RunningBackup {
    cancel: Cancel,
    task: JoinHandle<Result<(), SendError>>,
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
            link: Link::New,
        }
    }

    /// Works until somebody asks for the end, or the service refuses this agent, which is a
    /// failure.
    pub(super) async fn work(
        mut self,
        mut messages: mpsc::Receiver<ServiceMessage>,
        mut shutdown: Shutdown,
    ) -> Result<(), Failure> {
        let client = self.outbox.service.clone();
        let (mut state, mut refusing) = (client.state(), client.state());
        let mut restored = client.restored();
        let result = loop {
            let timeout = self.steps.next_timeout();
            let steps = tokio::select! {
                // What the service said before the connection ended counts before its end.
                biased;
                cause = shutdown.requested() => {
                    tracing::info!(%cause, "exiting");
                    break Ok(());
                }
                Some(message) = messages.recv() => self.handle_message(message),
                line = next_line(&mut self.prompt) => self.handle_line(line),
                ended = end_of(&mut self.backup) => self.handle_end(ended),
                Some(reply) = self.delays.join_next() => self.handle_delay(reply),
                fate = next_restored(&mut restored) => self.handle_restored(fate),
                () = until(timeout) => self.steps.handle_timeout(Instant::now()),
                failure = refusal(&mut refusing) => break Err(failure),
                Ok(()) = state.changed() => {
                    self.show_link(&mut state);
                    Vec::new()
                }
            };
            if self.take(steps).await == Next::Exit {
                break Ok(());
            }
        };
        self.abandon_backup().await;
        let remaining = client.stop(GOODBYE).await;
        tracing::info!(?remaining, "stopped");
        result
    }

    /// Tells the user whether the service is there, when that changes.
    fn show_link(&mut self, state: &mut watch::Receiver<ReconnectState>) {
        let state = state.borrow_and_update();
        if state.is_connected() {
            if self.link == Link::Down {
                say("The service is there again.");
            }
            self.link = Link::Up;
        } else if let Some(trouble) = trouble_of(&state)
            && self.link != Link::Down
        {
            if is_for_want_of_encryption(trouble) {
                say(format_args!(
                    "The service does not encrypt; waiting until it does ({trouble})."
                ));
            } else {
                say(format_args!(
                    "The service is not there; waiting for it ({trouble})."
                ));
            }
            self.link = Link::Down;
        }
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
            return self.steps.handle_no_terminal(Instant::now());
        };
        let Some(choice) = Choice::parse(&line) else {
            say(wording::QUESTION);
            return Vec::new();
        };
        let steps = self.steps.handle_choice(choice, Instant::now());
        if steps.is_empty() {
            say("There is nothing to decide at the moment.");
        }
        steps
    }

    fn handle_end(&mut self, ended: Result<Result<(), SendError>, JoinError>) -> Vec<Step> {
        self.backup = None;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => say(format_args!(
                "The service was not told of the backup: {error}"
            )),
            Err(error) => say(format_args!("The backup failed: {error}")),
        }
        self.steps.handle_finished()
    }

    fn handle_delay(&mut self, reply: Result<DelayReply, JoinError>) -> Vec<Step> {
        let problem = match reply {
            Ok(DelayReply::Message(message)) => return self.handle_message(message),
            Ok(DelayReply::Later) => return Vec::new(),
            Ok(DelayReply::Refused(text)) => text,
            Err(error) => error.to_string(),
        };
        say(format_args!("The delay was not granted: {problem}"));
        self.steps.handle_delay_refused()
    }

    /// The service answered what an earlier run of this agent said. Only a request for a delay is
    /// answered by a message.
    fn handle_restored(&mut self, restored: Option<Restored>) -> Vec<Step> {
        match restored {
            Some(Restored { fate, .. }) if matches!(fate, Fate::Replied(_)) => {
                self.handle_delay(Ok(DelayReply::from(&fate)))
            }
            Some(_) | None => Vec::new(),
        }
    }

    async fn take(&mut self, steps: Vec<Step>) -> Next {
        for step in steps {
            match step {
                Step::Ask(_) => say(wording::QUESTION),
                Step::Start(request) => self.start(&request),
                Step::RequestDelay { by, delays_used } => {
                    let asked = self.outbox.request_delay(by, delays_used).await;
                    self.delays.spawn(async move {
                        match asked {
                            Ok(receipt) => receipt.fate().await.into(),
                            Err(error) => DelayReply::Refused(error.to_string()),
                        }
                    });
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
            // What it came to matters no more; the service may not be there to be told.
            drop(timeout(GOODBYE, backup.task).await);
        }
    }
}

async fn next_line(prompt: &mut Option<Prompt>) -> Option<String> {
    match prompt {
        Some(prompt) => prompt.line().await,
        None => future::pending().await,
    }
}

/// The next fate of what an earlier run sent; nothing any more once all are told.
async fn next_restored(restored: &mut Option<RestoredFates>) -> Option<Restored> {
    let next = match restored {
        Some(restored) => restored.recv().await,
        None => future::pending().await,
    };
    if next.is_none() {
        *restored = None;
    }
    next
}

async fn end_of(backup: &mut Option<RunningBackup>) -> Result<Result<(), SendError>, JoinError> {
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
