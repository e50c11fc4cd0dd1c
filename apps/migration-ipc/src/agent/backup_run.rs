//! One backup from its start to its report.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use migration_ipc::messages::{
    BackupCompleted, BackupProgress, BackupStarted, Category, CategoryResult, ErrorReport, Percent,
};
use migration_ipc::{Fate, Receipt, ReconnectingIpcClient, SendError, SendOptions};
use tokio::sync::watch;
use tokio::time::timeout;

use super::wording::{self, say};
use crate::backup::{
    BackupError, BackupJob, BackupPlan, BackupReport, Cancel, CategoryReport, FolderName, Progress,
    Resumed,
};

/// A backup that was asked for: what of it this agent can do, and what it cannot.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) job: BackupJob,
    /// Categories that were asked for and that nobody told this agent where to find.
    pub(crate) unknown: Vec<Category>,
}

/// How a backup ended, for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackupEnd {
    Done {
        files: u64,
        bytes: u64,
        resumed: Resumed,
    },
    Incomplete(String),
    /// The service does not want it, for example because another session is at it.
    NotWanted(String),
    Cancelled,
}

/// For how long progress is worth telling.
const FRESH: Duration = Duration::from_secs(1);

/// How long a backup that is over waits for the service to know that it began.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Backs up and tells the service: `BACKUP_STARTED`, `BACKUP_PROGRESS` and `BACKUP_COMPLETED`, and
/// an `ERROR_REPORT` where something went wrong. The copying does not wait for the service. Shows
/// the user how it ended, and returns when the service knows.
pub(crate) async fn run(
    assignment: Assignment,
    service: ReconnectingIpcClient,
    cancel: Cancel,
) -> Result<(), SendError> {
    let reporter = Reporter {
        user: assignment.job.user.clone(),
        service,
    };
    let categories: Vec<Category> = assignment
        .job
        .categories
        .iter()
        .map(|it| category(&it.name))
        .collect();
    let scanning = cancel.clone();
    let job = assignment.job.clone();
    let plan = blocking(move || Ok(BackupPlan::scan(job, &scanning)?)).await;
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return reporter.failed(&categories, &error).await,
    };
    let started = reporter.started(&categories, plan.bytes()).await?;
    match reporter.copy(plan, &started, cancel).await {
        Copying::NotWanted(why) => {
            say(wording::end(&BackupEnd::NotWanted(why)));
            Ok(())
        }
        Copying::Done(Ok(report)) => reporter.completed(report, &assignment.unknown).await,
        Copying::Done(Err(error)) => reporter.failed(&categories, &error).await,
    }
}

/// How the copying ended.
enum Copying {
    /// The service refused the backup.
    NotWanted(String),
    Done(Result<BackupReport, BackupError>),
}

/// Tells the service about one backup.
struct Reporter {
    user: String,
    service: ReconnectingIpcClient,
}

impl Reporter {
    async fn started(&self, categories: &[Category], bytes: u64) -> Result<Receipt, SendError> {
        let megabytes = bytes.div_ceil(1024 * 1024);
        let started = BackupStarted::new(self.user.as_str(), categories.iter().cloned(), megabytes);
        self.service.send(started).await
    }

    /// Copies on a thread for blocking work.
    async fn copy(&self, plan: BackupPlan, started: &Receipt, cancel: Cancel) -> Copying {
        let (newest, progress) = watch::channel(BTreeMap::<FolderName, Progress>::new());
        let cancelled = cancel.clone();
        let mut copying = pin!(blocking(move || {
            plan.execute(&cancelled, &mut |now| {
                newest.send_modify(|newest| drop(newest.insert(now.category.clone(), now.clone())));
            })
        }));
        // Nothing is told of a backup of which the service does not know yet that it began.
        let (early, known) = tokio::select! {
            report = &mut copying => {
                let known = timeout(LAST_WORD, started.fate()).await.ok();
                (Some(report), known)
            }
            fate = started.fate() => (None, Some(fate)),
        };
        match (early, known) {
            (early, Some(Fate::Rejected(rejection))) => {
                cancel.cancel();
                if early.is_none() {
                    drop(copying.await);
                }
                Copying::NotWanted(rejection.error.clone())
            }
            (Some(report), None) => Copying::Done(report),
            (Some(report), Some(_)) => {
                self.tell(progress).await;
                Copying::Done(report)
            }
            (None, _) => Copying::Done(tokio::join!(copying, self.tell(progress)).0),
        }
    }

    /// Tells how far the copying is, until it has ended. Progress never holds it up: what the
    /// service has not taken yet is replaced by what is newer, for each category by itself, so that
    /// the last word on every category is said, if the service is there.
    async fn tell(&self, mut progress: watch::Receiver<BTreeMap<FolderName, Progress>>) {
        let mut told = BTreeMap::new();
        while progress.changed().await.is_ok() {
            let newest = progress.borrow_and_update().clone();
            for (category, now) in &newest {
                if told.get(category) == Some(now) {
                    continue;
                }
                let options = SendOptions::new().time_to_live(FRESH);
                let sent = self.service.send_with(self.progress(now.clone()), options);
                match sent.await {
                    // What comes after it must not overtake it.
                    Ok(receipt) => {
                        receipt.fate().await;
                    }
                    Err(error) => tracing::debug!(%error, "progress was not reported"),
                }
            }
            told = newest;
        }
    }

    fn progress(&self, now: Progress) -> BackupProgress {
        let progress = BackupProgress::new(
            self.user.as_str(),
            category(&now.category),
            Percent::of(now.bytes_done, now.bytes_total),
            now.bytes_done,
            now.bytes_total,
        );
        match now.current_file {
            Some(file) => progress.with_current_file(file),
            None => progress,
        }
    }

    async fn completed(&self, report: BackupReport, unknown: &[Category]) -> Result<(), SendError> {
        let done = report
            .categories
            .iter()
            .map(|(name, report)| (category(name), result(report)));
        let missing = |category: &Category| {
            (
                category.clone(),
                CategoryResult::failure(0, "this agent does not know where that is"),
            )
        };
        let results: BTreeMap<_, _> = done.chain(unknown.iter().map(missing)).collect();
        let problem = results.values().find_map(|result| result.error.clone());
        if let Some(problem) = &problem {
            self.report_error("backup_incomplete", problem).await?;
        }
        let completed = BackupCompleted::new(self.user.as_str(), problem.is_none(), results)
            .with_manifest_path(report.manifest_path.to_string_lossy());
        let receipt = self.service.send(completed).await?;
        let sum = |of: fn(&CategoryReport) -> u64| report.categories.values().map(of).sum();
        let is_complete = problem.is_none();
        say(wording::end(&match problem {
            None => BackupEnd::Done {
                files: sum(|it| it.files),
                bytes: sum(|it| it.bytes),
                resumed: report.categories.values().map(|it| it.resumed).sum(),
            },
            Some(problem) => BackupEnd::Incomplete(problem),
        }));
        let fate = receipt.fate().await;
        if let Fate::Rejected(rejection) = fate {
            say(wording::end(&BackupEnd::NotWanted(rejection.error.clone())));
        }
        // What is not settled is taken over by the next backup.
        if is_complete
            && fate.is_handled()
            && let Err(error) = blocking(move || Ok(report.settle()?)).await
        {
            tracing::warn!(%error, "the traces of the backup were not removed");
        }
        Ok(())
    }

    async fn failed(&self, categories: &[Category], error: &BackupError) -> Result<(), SendError> {
        let (code, end) = match error {
            BackupError::Cancelled(_) => ("backup_cancelled", BackupEnd::Cancelled),
            BackupError::Destination(_) => (
                "backup_destination",
                BackupEnd::Incomplete(error.to_string()),
            ),
            BackupError::Write(_) => ("backup_write", BackupEnd::Incomplete(error.to_string())),
        };
        self.report_error(code, &error.to_string()).await?;
        let failure = |category: &Category| {
            (
                category.clone(),
                CategoryResult::failure(0, error.to_string()),
            )
        };
        let results = categories.iter().map(failure);
        let completed = BackupCompleted::new(self.user.as_str(), false, results);
        let receipt = self.service.send(completed).await?;
        say(wording::end(&end));
        receipt.fate().await;
        Ok(())
    }

    async fn report_error(&self, code: &str, text: &str) -> Result<(), SendError> {
        let report = ErrorReport::new(self.user.as_str(), code, text);
        self.service.send(report).await.map(drop)
    }
}

fn category(name: &FolderName) -> Category {
    name.as_str().into()
}

fn result(report: &CategoryReport) -> CategoryResult {
    match &report.error {
        None => CategoryResult::success(report.files),
        Some(error) => CategoryResult::failure(report.files, error.as_str()),
    }
}

/// Runs blocking work; a panic in it is an error like any other.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let finished = tokio::task::spawn_blocking(work).await;
    finished.unwrap_or_else(|failed| Err(std::io::Error::other(failed).into()))
}
