//! What the agent shows its user.

use std::fmt;

use migration_ipc::messages::{
    BackupRequest, Category, ConfigurationUpdate, EscalationNotice, OverallStatus, ShutdownRequest,
    StatusUpdate,
};

use super::backup_run::BackupEnd;
use crate::cli::{print, visible};

/// Shows a line, in which texts of the service may be. A terminal that is gone is no reason to
/// stop working.
pub(crate) fn say(line: impl fmt::Display) {
    if let Err(error) = print(visible(&line.to_string())) {
        tracing::debug!(%error, "the user cannot be shown anything");
    }
}

pub(crate) fn request(request: &BackupRequest) -> String {
    let categories: Vec<&str> = request.categories.iter().map(Category::as_str).collect();
    let what = if categories.is_empty() {
        "everything".to_owned()
    } else {
        categories.join(", ")
    };
    format!(
        "A backup of {what} is requested until {} (priority {}).",
        request.deadline, request.priority
    )
}

pub(crate) const QUESTION: &str = "[s]tart now, [d]elay HOURS, [n]ot now?";

pub(crate) fn status(status: &StatusUpdate) -> String {
    let ready = status.ready_users.len();
    let total = status.total_users;
    let state = match &status.overall_status {
        OverallStatus::Waiting => "has not begun",
        OverallStatus::InProgress => "is in progress",
        OverallStatus::Blocked => "is blocked",
        OverallStatus::Ready => "can begin: everybody is ready",
        OverallStatus::Other(other) => {
            return format!("The migration is `{}`.", other);
        }
    };
    format!("The migration {state} ({ready} of {total} users are ready).")
}

pub(crate) fn escalation(notice: &EscalationNotice) -> String {
    let reason = notice.reason.as_str();
    let details = &notice.details;
    let ticket = match &notice.ticket_number {
        Some(ticket) => format!(", ticket {}", ticket),
        None => String::new(),
    };
    format!("Support staff was called ({reason}{ticket}): {details}")
}

pub(crate) fn configuration(update: &ConfigurationUpdate) -> String {
    let key = &update.key;
    let scope = update.scope.as_str();
    format!(
        "The setting `{key}` of the {scope} is now {}.",
        update.value
    )
}

pub(crate) fn shutdown(request: &ShutdownRequest) -> String {
    let reason = &request.reason;
    format!(
        "The agent is asked to exit within {}: {reason}",
        request.grace_period_seconds
    )
}

pub(crate) fn end(end: &BackupEnd) -> String {
    match end {
        BackupEnd::Done {
            files,
            bytes,
            resumed,
        } => format!("The backup is complete: {files} files, {bytes} bytes{resumed}."),
        BackupEnd::Incomplete(problem) => format!("The backup is not complete: {problem}"),
        BackupEnd::NotWanted(why) => {
            format!("The service does not want the backup now: {}", why)
        }
        BackupEnd::Cancelled => "The backup was cancelled.".to_owned(),
    }
}
