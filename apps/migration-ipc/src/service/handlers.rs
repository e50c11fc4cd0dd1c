//! The service's message handlers: from the wire to the keeper and back.

use std::sync::Arc;

use migration_ipc::messages::{
    AgentStarted, BackupCompleted, BackupProgress, BackupRequest, BackupStarted, DelayRequest,
    ErrorReport, UserAction, UserId,
};
use migration_ipc::transport::{account_name, resolve_account};
use migration_ipc::{
    AccountId, ConnectionManager, DispatcherError, ErrorCode, HandlerError, IntoOutcome,
    MessageDispatcher, Outcome, Peer, Reply, State, Timestamp,
};
use tokio::sync::OnceCell;

use super::agents::{Audience, NamedAccount};
use super::desk::Desk;
use super::keeper::{Keeper, KeeperError};
use super::key::AgentKey;
use super::snapshot::{self, About};
use super::state::{DelayAnswer, Migration, Refusal};
use crate::cli::visible;
use crate::operator::{Recipient, SendReport, SendRequest, ServiceStatus, StatusRequest};
use crate::service_message::ServiceMessage;

/// What the handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Office {
    pub(crate) keeper: Keeper,
    pub(crate) about: About,
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
        .build()
}

async fn on_agent_started(
    started: AgentStarted,
    peer: Peer,
    State(office): State<Office>,
) -> Result<Option<Reply<BackupRequest>>, HandlerError> {
    let name = display_name(peer.account()).await;
    let agent = AgentKey {
        session: started.session_id,
        ..agent_of(&peer)
    };
    tracing::info!(%agent, version = %visible(&started.agent_version), "agent started");
    let connection = peer.connection().clone();
    let announced = office
        .keeper
        .decide(move |desk, now| desk.handle_announced(connection, agent, name, now));
    Ok(announced.await?.map(Reply))
}

async fn on_backup_started(
    started: BackupStarted,
    peer: Peer,
    State(office): State<Office>,
) -> Result<(), HandlerError> {
    let agent = agent_of(&peer);
    tracing::info!(%agent, megabytes = started.estimated_size_mb, "backup started");
    let decide = move |migration: &mut Migration, now| migration.handle_started(&agent, now);
    office.decide(decide).await
}

async fn on_backup_progress(
    progress: BackupProgress,
    peer: Peer,
    State(office): State<Office>,
) -> Result<(), HandlerError> {
    let agent = agent_of(&peer);
    let decide =
        move |migration: &mut Migration, now| migration.handle_progress(&agent, progress, now);
    office.decide(decide).await
}

async fn on_backup_completed(
    completed: BackupCompleted,
    peer: Peer,
    State(office): State<Office>,
) -> Result<(), HandlerError> {
    let agent = agent_of(&peer);
    tracing::info!(%agent, success = completed.success, "backup completed");
    let decide =
        move |migration: &mut Migration, now| migration.handle_completed(&agent, completed, now);
    office.decide(decide).await
}

async fn on_delay_request(
    delay: DelayRequest,
    peer: Peer,
    State(office): State<Office>,
) -> Result<DelayAnswer, HandlerError> {
    let agent = agent_of(&peer);
    tracing::info!(%agent, reason = %visible(delay.reason.as_str()), delay = %delay.requested_delay, "delay requested");
    let decide = move |migration: &mut Migration, now| migration.handle_delay(&agent, &delay, now);
    office.decide(decide).await
}

impl IntoOutcome for DelayAnswer {
    fn into_outcome(self) -> Outcome {
        match self {
            Self::Granted(request) => Reply(request).into_outcome(),
            Self::Escalated(notice) => Reply(notice).into_outcome(),
        }
    }
}

async fn on_user_action(
    action: UserAction,
    peer: Peer,
    State(office): State<Office>,
) -> Result<(), HandlerError> {
    let agent = agent_of(&peer);
    tracing::info!(%agent, action = %visible(&action.action), "user action");
    let decide = move |desk: &mut Desk, now| desk.migration.handle_action(&agent, action, now);
    Ok(office.keeper.decide(decide).await?)
}

async fn on_error_report(
    report: ErrorReport,
    peer: Peer,
    State(office): State<Office>,
) -> Result<(), HandlerError> {
    let agent = agent_of(&peer);
    tracing::warn!(
        %agent,
        code = %visible(&report.error_code),
        message = %visible(&report.message),
        "an agent reports an error",
    );
    let decide = move |desk: &mut Desk, now| desk.migration.handle_error(&agent, &report, now);
    Ok(office.keeper.decide(decide).await?)
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
    let page = office.keeper.decide(move |desk, now| {
        snapshot::page(&about, desk, connections, request.after.as_ref(), now)
    });
    Ok(Reply(page.await?))
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
    Ok(Reply(office.keeper.decide(send).await?))
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

impl Office {
    /// Runs a decision that the state may refuse.
    async fn decide<R: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Migration, Timestamp) -> Result<R, Refusal> + Send + 'static,
    ) -> Result<R, HandlerError> {
        Ok(self
            .keeper
            .decide(move |desk, now| decide(&mut desk.migration, now))
            .await??)
    }
}

fn agent_of(peer: &Peer) -> AgentKey {
    AgentKey {
        account: peer.account().clone(),
        os_session: peer.identity().session(),
        session: peer.announced_session().unwrap_or_default(),
    }
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
            KeeperError::Store(_) => ErrorCode::HandlerFailed,
        };
        Self::new(error).with_code(code)
    }
}
