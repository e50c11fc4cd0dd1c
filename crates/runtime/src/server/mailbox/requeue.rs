//! A dead letter of an agent, given to its handler once more.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use migration_ipc_protocol::messages::{ErrorCode, SessionId, UserId};
use migration_ipc_protocol::{Announcement, Envelope, MessageSerializer, no_handler_text};
use migration_ipc_store::{DeadLetter, StoreError, StoredOutcome};
use migration_ipc_transport::{AccountId, PeerIdentity, Privilege};
use thiserror::Error;

use crate::access::{RoleId, Table};
use crate::audit::{AuditEvent, AuditText};
use crate::connection::{ConnectionState, DisconnectReason, IpcConnection, Side};
use crate::dispatch::{Arrived, HandlerError, Outcome, OutcomeKind, panicked};
use crate::server::acceptor::Service;
use crate::store::{CommitError, Conclusion, Ending, Entry, StoreHandle};

/// What became of a dead letter that was tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeued {
    /// It is mail again.
    Mailed,
    /// Its handler has handled it.
    Handled,
}

/// Why mail or a dead letter was not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequeueError {
    /// There is no such dead letter.
    #[error("there is no dead letter {0}")]
    Unknown(u64),
    /// It was refused again; the dead letter stays.
    #[error("it was refused again: {text}")]
    Refused {
        /// The kind of failure.
        code: ErrorCode,
        /// Why, for people.
        text: Box<str>,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store cannot be written, or the server has stopped.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<HandlerError> for RequeueError {
    fn from(error: HandlerError) -> Self {
        Self::Refused {
            code: error.code,
            text: error.text.into(),
        }
    }
}

/// Gives a message to its handler, as one of the account and session that it came from.
pub(super) async fn handle_again(
    service: &Service,
    store: &StoreHandle,
    number: u64,
    letter: DeadLetter,
) -> Result<Requeued, RequeueError> {
    let connection = detached(service, &letter);
    let mut frame = Vec::new();
    let malformed =
        |error: &dyn std::fmt::Display| HandlerError::new(error).with_code(ErrorCode::Malformed);
    MessageSerializer::encode_message(&mut frame, &letter.message)
        .map_err(|error| malformed(&error))?;
    let body = frame.get(LENGTH_PREFIX..).unwrap_or_default();
    let envelope = Envelope::parse(body).map_err(|error| malformed(&error))?;
    let route = service.dispatcher.route(&envelope.message_type);
    let route = route.ok_or_else(|| {
        HandlerError::new(no_handler_text(&envelope.message_type)).with_code(ErrorCode::NoHandler)
    })?;
    // It came from an agent, and an agent's it stays, whoever wants it tried again.
    let may_send = |table: &Arc<Table>| table.permits(RoleId::AGENT, route, &envelope.message_type);
    if !connection.access().is_some_and(may_send) {
        let text = format_args!("an agent may not send {}", envelope.message_type);
        let message_type = AuditText::new(&envelope.message_type);
        let event = AuditEvent::TypeRefused { message_type };
        let audit = &service.surroundings.audit;
        audit.record_peer(connection.peer(), None, event);
        let refused = HandlerError::new(text).with_code(ErrorCode::NotPermitted);
        return Err(refused.into());
    }
    let entry = Arc::new(Entry::of_dead_letter(
        store.clone(),
        connection.clone(),
        letter.message.clone(),
        number,
    ));
    entry.begin();
    // The payload's `Deserialize` and the handler are code of the user's, and may panic.
    let started = std::panic::catch_unwind(AssertUnwindSafe(|| {
        route.start(
            &connection,
            Arrived::Read(&envelope),
            Some(Arc::clone(&entry)),
            None,
        )
    }));
    let started = started
        .map_err(|panic| panicked(panic.as_ref()))?
        .map_err(|error| HandlerError::new(error).with_code(ErrorCode::BadPayload))?;
    let outcome = match AssertUnwindSafe(started.future).catch_unwind().await {
        Ok(Outcome(outcome)) => outcome,
        Err(panic) => OutcomeKind::Failed(panicked(panic.as_ref())),
    };
    let conclusion = match entry.conclude(outcome) {
        Ending::Known(conclusion) | Ending::Journaling(conclusion, _) => conclusion,
        Ending::Committing(commit) => Conclusion::of(commit.await),
    };
    match conclusion {
        Conclusion::Failed(error) => Err(error.into()),
        Conclusion::Stored(StoredOutcome::Rejected { code, text }) => {
            Err(RequeueError::Refused { code, text })
        }
        Conclusion::Handled | Conclusion::Replied(_) | Conclusion::Stored(_) => {
            Ok(Requeued::Handled)
        }
    }
}

/// A connection that has ended, of the account and session that a message came from. What is sent
/// over it fails as closed.
fn detached(service: &Service, letter: &DeadLetter) -> IpcConnection {
    let account = AccountId::new(&*letter.account);
    let connection = IpcConnection::new(
        service.manager.next_id(),
        Side::Server,
        PeerIdentity::new(account, Privilege::Ordinary),
        Arc::clone(&service.departed),
        Arc::clone(&service.surroundings),
    );
    if let Some(session) = &letter.session {
        connection.set_announcement(Announcement {
            user_id: UserId::from(&*letter.account),
            session_id: SessionId::from(&**session),
        });
    }
    let reason = DisconnectReason::ClosedByPeer;
    connection.outbound().finish(&reason);
    connection.advance_state(ConnectionState::Gone(reason));
    connection
}
