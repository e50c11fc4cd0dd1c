//! One backup from its start to its report.

use std::collections::BTreeMap;

use migration_ipc::messages::{
    BackupCompleted, BackupProgress, BackupStarted, Category, CategoryResult, ErrorReport, Percent,
};
use migration_ipc::{IpcConnection, SendError};
use tokio::sync::watch;

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

/// Backs up and tells the service: `BACKUP_STARTED`, `BACKUP_PROGRESS` and `BACKUP_COMPLETED`, and
/// an `ERROR_REPORT` where something went wrong.
pub(crate) async fn run(
    assignment: Assignment,
    service: IpcConnection,
    cancel: Cancel,
) -> Result<BackupEnd, SendError> {
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
    if let Some(refusal) = reporter.started(&categories, plan.bytes()).await? {
        return Ok(BackupEnd::NotWanted(refusal));
    }
    match reporter.copy(plan, cancel).await {
        Ok(report) => reporter.completed(report, &assignment.unknown).await,
        Err(error) => reporter.failed(&categories, &error).await,
    }
}

/// Tells the service about one backup.
struct Reporter {
    user: String,
    service: IpcConnection,
}

impl Reporter {
    /// Returns why the service does not want the backup, if it does not.
    async fn started(
        &self,
        categories: &[Category],
        bytes: u64,
    ) -> Result<Option<String>, SendError> {
        let megabytes = bytes.div_ceil(1024 * 1024);
        let started = BackupStarted::new(self.user.as_str(), categories.iter().cloned(), megabytes);
        match self.service.send_acknowledged(started).await {
            Ok(_) | Err(SendError::Unanswered) => Ok(None),
            Err(SendError::Rejected(rejection)) => Ok(Some(rejection.error)),
            Err(error) => Err(error),
        }
    }

    /// Copies on a thread for blocking work. Progress never holds the copying up: what the service
    /// has not taken yet is replaced by what is newer, for each category by itself, so that the
    /// last word on every category is said.
    async fn copy(&self, plan: BackupPlan, cancel: Cancel) -> Result<BackupReport, BackupError> {
        let (newest, mut progress) = watch::channel(BTreeMap::<FolderName, Progress>::new());
        let copying = blocking(move || {
            plan.execute(&cancel, &mut |now| {
                newest.send_modify(|newest| drop(newest.insert(now.category.clone(), now.clone())));
            })
        });
        let reporting = async {
            let mut told = BTreeMap::new();
            while progress.changed().await.is_ok() {
                let newest = progress.borrow_and_update().clone();
                for (category, now) in &newest {
                    if told.get(category) == Some(now) {
                        continue;
                    }
                    if let Err(error) = self.service.send(self.progress(now.clone())).await {
                        tracing::debug!(%error, "progress was not reported");
                        return;
                    }
                }
                told = newest;
            }
        };
        let (report, ()) = tokio::join!(copying, reporting);
        report
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

    async fn completed(
        &self,
        report: BackupReport,
        unknown: &[Category],
    ) -> Result<BackupEnd, SendError> {
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
        self.service.send_acknowledged(completed).await?;
        let sum = |of: fn(&CategoryReport) -> u64| report.categories.values().map(of).sum();
        let end = match problem {
            None => BackupEnd::Done {
                files: sum(|it| it.files),
                bytes: sum(|it| it.bytes),
                resumed: report.categories.values().map(|it| it.resumed).sum(),
            },
            Some(problem) => return Ok(BackupEnd::Incomplete(problem)),
        };
        // The next backup would only have less to do.
        if let Err(error) = blocking(move || Ok(report.settle()?)).await {
            tracing::warn!(%error, "the traces of the backup were not removed");
        }
        Ok(end)
    }

    async fn failed(
        &self,
        categories: &[Category],
        error: &BackupError,
    ) -> Result<BackupEnd, SendError> {
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
        self.service.send_acknowledged(completed).await?;
        Ok(end)
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
