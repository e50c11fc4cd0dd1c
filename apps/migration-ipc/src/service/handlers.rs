//! The service's message handlers: from the wire to the keeper and back.

use std::sync::Arc;

use migration_ipc::messages::{
    AgentStarted, BackupCompleted, BackupProgress, BackupStarted, DelayRequest, ErrorReport,
    UserAction, UserId,
};
use migration_ipc::transport::account_name;
use migration_ipc::{
    AccountId, Commit, DispatcherError, ErrorCode, HandlerError, Mailbox, MessageDispatcher,
    ServerSender, StoreHandle,
};
use tokio::sync::OnceCell;

use super::arrival::Arrival;
use super::desk::Desk;
use super::entry_log::EntryLog;
use super::keeper::{Keeper, KeeperError};
use super::key::AgentKey;
use super::snapshot::About;
use super::{kept, operators};
use crate::cli::visible;

/// What the handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Office {
    pub(crate) keeper: Keeper,
    pub(crate) about: About,
    pub(crate) entries: EntryLog,
    pub(crate) store: StoreHandle,
    /// Known once the server has started, which needs the handlers first.
    pub(crate) server: Arc<OnceCell<ServerSender>>,
}

pub(crate) fn dispatcher(office: Office) -> Result<MessageDispatcher, DispatcherError> {
    MessageDispatcher::builder(office)
        .handle(on_agent_started)
        .handle(on_backup_started)
        .handle(on_backup_progress)
        .handle(on_backup_completed)
        .handle(on_delay_request)
        .handle(on_user_action)
        .handle(on_error_report)
        .handle(operators::on_status_request)
        .handle(operators::on_send_request)
        .handle(operators::on_journal_request)
        .handle(kept::on_kept_request)
        .handle(kept::on_change_request)
        .build()
}

impl Office {
    /// The server that these handlers work for.
    pub(crate) fn server(&self) -> Result<&ServerSender, HandlerError> {
        self.server
            .get()
            .ok_or_else(|| HandlerError::new("the service is starting").with_code(ErrorCode::Busy))
    }

    pub(crate) fn mailbox(&self) -> Result<Mailbox, HandlerError> {
        let mailbox = self.server()?.mailbox();
        mailbox.ok_or_else(|| HandlerError::new("the service keeps no mail"))
    }
}

async fn on_agent_started(started: AgentStarted, arrival: Arrival) -> Result<Commit, HandlerError> {
    let agent = arrival.agent_in(started.session_id);
    tracing::info!(%agent, version = %visible(&started.agent_version), "agent started");
    let name = display_name(&agent.account).await;
    let connection = arrival.connection.clone();
    let decide = move |desk: &mut Desk, agent: &AgentKey, now| {
        desk.handle_announced(connection, agent.clone(), name, now)
    };
    arrival.decide(agent, decide).await
}

async fn on_backup_started(
    started: BackupStarted,
    arrival: Arrival,
) -> Result<Commit, HandlerError> {
    let agent = arrival.agent();
    tracing::info!(%agent, megabytes = started.estimated_size_mb, "backup started");
    arrival
        .decide(agent, |desk, agent, now| {
            desk.migration.handle_started(agent, now)
        })
        .await
}

async fn on_backup_progress(
    progress: BackupProgress,
    arrival: Arrival,
) -> Result<Commit, HandlerError> {
    let agent = arrival.agent();
    arrival
        .decide(agent, |desk, agent, now| {
            desk.migration.handle_progress(agent, progress, now)
        })
        .await
}

async fn on_backup_completed(
    completed: BackupCompleted,
    arrival: Arrival,
) -> Result<Commit, HandlerError> {
    let agent = arrival.agent();
    tracing::info!(%agent, success = completed.success, "backup completed");
    arrival
        .decide(agent, |desk, agent, now| {
            desk.migration.handle_completed(agent, completed, now)
        })
        .await
}

async fn on_delay_request(delay: DelayRequest, arrival: Arrival) -> Result<Commit, HandlerError> {
    let agent = arrival.agent();
    tracing::info!(%agent, reason = %visible(delay.reason.as_str()), delay = %delay.requested_delay, "delay requested");
    arrival
        .decide(agent, move |desk, agent, now| {
            desk.migration.handle_delay(agent, &delay, now)
        })
        .await
}

async fn on_user_action(action: UserAction, arrival: Arrival) -> Result<Commit, HandlerError> {
    let agent = arrival.agent();
    tracing::info!(%agent, action = %visible(&action.action), "user action");
    arrival
        .decide(agent, |desk, agent, now| {
            desk.migration.handle_action(agent, action, now)
        })
        .await
}

async fn on_error_report(report: ErrorReport, arrival: Arrival) -> Result<Commit, HandlerError> {
    let agent = arrival.agent();
    tracing::warn!(
        %agent,
        code = %visible(&report.error_code),
        message = %visible(&report.message),
        "an agent reports an error",
    );
    arrival
        .decide(agent, move |desk, agent, now| {
            desk.migration.handle_error(agent, &report, now)
        })
        .await
}

/// What the operating system calls an account, for people.
async fn display_name(account: &AccountId) -> UserId {
    match account_name(account).await {
        Ok(Some(name)) => name.into(),
        Ok(None) => account.as_str().into(),
        Err(error) => {
            tracing::warn!(%account, %error, "the name of an account is not known");
            account.as_str().into()
        }
    }
}

impl From<KeeperError> for HandlerError {
    fn from(error: KeeperError) -> Self {
        let code = match &error {
            KeeperError::Stopping => ErrorCode::Stopping,
            KeeperError::NotStored => ErrorCode::Busy,
        };
        Self::new(error).with_code(code)
    }
}
