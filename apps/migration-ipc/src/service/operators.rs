//! The handlers of what operators ask.

use std::time::Duration;

use migration_ipc::storage::Reader;
use migration_ipc::transport::resolve_account;
use migration_ipc::{HandlerError, MailOptions, Peer, Reply, State};

use super::agents::{Audience, NamedAccount};
use super::desk::Desk;
use super::handlers::Office;
use super::{journal, snapshot};
use crate::operator::{
    JournalPage, JournalRequest, Recipient, SendReport, SendRequest, ServiceStatus, StatusRequest,
};
use crate::service_message::ServiceMessage;

pub(crate) async fn on_status_request(
    request: StatusRequest,
    State(office): State<Office>,
) -> Result<Reply<ServiceStatus>, HandlerError> {
    let connections = office.server()?.connections().counts();
    let about = office.about.clone();
    let page = office.keeper.ask(move |desk, now| {
        snapshot::page(&about, desk, connections, request.after.as_ref(), now)
    });
    Ok(Reply(page.await?))
}

pub(crate) async fn on_journal_request(
    request: JournalRequest,
    State(office): State<Office>,
) -> Result<Reply<JournalPage>, HandlerError> {
    let read = move |reader: &Reader| journal::page(reader, request.after);
    Ok(Reply(office.store.read(read).await?))
}

pub(crate) async fn on_send_request(
    request: SendRequest,
    peer: Peer,
    State(office): State<Office>,
) -> Result<Reply<SendReport>, HandlerError> {
    let message = ServiceMessage::parse(&request.message_type, &request.payload)?;
    peer.audit("send", &request.message_type, &request.to);
    let Some(audience) = audience(request.to, &peer).await? else {
        return Ok(Reply(SendReport::default()));
    };
    let send = {
        let (audience, message) = (audience.clone(), message.clone());
        move |desk: &mut Desk, now| desk.handle_send(&audience, message, now)
    };
    let report = office.keeper.ask(send).await?;
    let is_absent = report == SendReport::default();
    if let Audience::Account(user) = &audience
        && is_absent
    {
        let mut options = MailOptions::new();
        if let Some(seconds) = request.keep_seconds {
            options = options.time_to_live(Duration::from_secs(seconds));
        }
        let server = office.server()?;
        message.mail(server, &user.account, options).await?;
        return Ok(Reply(SendReport {
            mailed: true,
            ..report
        }));
    }
    Ok(Reply(report))
}

/// Whom an operator means; `None` if there is no such account.
async fn audience(recipient: Recipient, peer: &Peer) -> Result<Option<Audience>, HandlerError> {
    Ok(match recipient {
        Recipient::All => Some(Audience::All),
        Recipient::Session { user, session } => {
            let account = match user {
                Some(name) => resolve_account(&name).await?,
                None => Some(peer.account().clone()),
            };
            account.map(|account| Audience::Session { account, session })
        }
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
