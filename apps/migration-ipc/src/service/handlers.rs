//! The service's message handlers: from the wire to the keeper and back.

use std::sync::Arc;

use migration_ipc::messages::{
    AgentStarted, BackupCompleted, BackupProgress, BackupStarted, DelayRequest, ErrorReport,
    UserAction, UserId,
};
use migration_ipc::storage::Reader;
use migration_ipc::transport::{account_name, resolve_account};
use migration_ipc::{
    AccountId, Commit, ConnectionManager, DispatcherError, ErrorCode, HandlerError,
    MessageDispatcher, Peer, Reply, State, StoreHandle,
};
use tokio::sync::OnceCell;

use super::agents::{Audience, NamedAccount};
use super::arrival::Arrival;
use super::desk::Desk;
use super::entry_log::EntryLog;
use super::journal;
use super::keeper::{Keeper, KeeperError};
use super::key::AgentKey;
use super::snapshot::{self, About};
use crate::cli::visible;
use crate::operator::{
    JournalPage, JournalRequest, Recipient, SendReport, SendRequest, ServiceStatus, StatusRequest,
};
use crate::service_message::ServiceMessage;

/// What the handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Office {
    pub(crate) keeper: Keeper,
    pub(crate) about: About,
    pub(crate) entries: EntryLog,
    pub(crate) store: StoreHandle,
    /// Known once the server has started, which needs the handlers first.
    pub(crate) connections: Arc<OnceCell<ConnectionManager>>,
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
        .handle(on_status_request)
        .handle(on_send_request)
        .handle(on_journal_request)
        .build()
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

async fn on_status_request(
    request: StatusRequest,
    State(office): State<Office>,
) -> Result<Reply<ServiceStatus>, HandlerError> {
    let connections = office
        .connections
        .get()
        .map(ConnectionManager::counts)
        .unwrap_or_default();
    let about = office.about.clone();
    let page = office.keeper.ask(move |desk, now| {
        snapshot::page(&about, desk, connections, request.after.as_ref(), now)
    });
    Ok(Reply(page.await?))
}

async fn on_journal_request(
    request: JournalRequest,
    State(office): State<Office>,
) -> Result<Reply<JournalPage>, HandlerError> {
    let read = move |reader: &Reader| journal::page(reader, request.after);
    Ok(Reply(office.store.read(read).await?))
}

async fn on_send_request(
    request: SendRequest,
    peer: Peer,
    State(office): State<Office>,
) -> Result<Reply<SendReport>, HandlerError> {
    let message = ServiceMessage::parse(&request.message_type, &request.payload)?;
    tracing::info!(operator = %peer.identity(), message_type = %request.message_type, to = ?request.to, "an operator sends");
    let Some(audience) = audience(request.to).await? else {
        return Ok(Reply(SendReport::default()));
    };
    let send = move |desk: &mut Desk, now| desk.handle_send(&audience, message, now);
    Ok(Reply(office.keeper.ask(send).await?))
}

/// Whom an operator means; `None` if there is no such account.
async fn audience(recipient: Recipient) -> Result<Option<Audience>, HandlerError> {
    Ok(match recipient {
        Recipient::All => Some(Audience::All),
        Recipient::Session(session) => Some(Audience::Session(session)),
        Recipient::User(name) => {
            let account = resolve_account(&name).await?;
            account.map(|account| {
                Audience::Account(NamedAccount {
                    account,
                    name: name.into(),
                })
            })
        }
    })
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
