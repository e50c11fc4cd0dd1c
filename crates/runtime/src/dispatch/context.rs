//! What a handler may ask for besides its payload.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use migration_ipc_protocol::hello::Role;
use migration_ipc_protocol::messages::{ErrorCode, SessionId};
use migration_ipc_protocol::{MessageId, MessageType, Timestamp};
use migration_ipc_transport::{AccountId, PeerIdentity};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::asked::Asked;
use super::outcome::HandlerError;
use crate::audit::{AuditEvent, AuditText};
use crate::connection::{ConnectionId, IpcConnection};
use crate::store::Entry;

/// What surrounds a message: who sent it, its envelope, the dispatcher's state.
#[derive(Debug, Clone)]
pub struct HandlerContext<S = ()> {
    pub(crate) state: S,
    pub(crate) connection: IpcConnection,
    pub(crate) message: MessageInfo,
    pub(crate) entry: Option<Arc<Entry>>,
    pub(crate) asked: Option<Arc<Asked>>,
}

impl<S> HandlerContext<S> {
    /// The dispatcher's shared state.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// Who sent the message.
    pub fn peer(&self) -> Peer {
        Peer::new(self.connection.clone())
    }

    /// The connection that the message came over.
    pub fn connection(&self) -> &IpcConnection {
        &self.connection
    }

    /// The message's envelope.
    pub fn message(&self) -> &MessageInfo {
        &self.message
    }

    /// Fires when nobody waits for the handler any more: the peer cancelled the message, its
    /// deadline has passed, or the connection has ended.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation {
            connection: self.connection.cancellation().clone(),
            asked: self.asked.clone(),
        }
    }

    /// Until when an answer is of use.
    pub fn deadline(&self) -> Deadline {
        Deadline(self.asked.as_ref().and_then(|asked| asked.deadline()))
    }
}

/// An argument of a handler that is taken from the message's context.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    note = "besides the payload, which comes first, a handler may take `Peer`, `State<S>` with the dispatcher's own state type, `MessageInfo`, `Cancellation`, `Deadline`, `Items<I>`, `IpcConnection`, `Delivery`, `HandlerContext<S>`, or a type of yours that implements `FromContext`"
)]
pub trait FromContext<S>: Send + 'static {
    /// Takes the argument.
    fn from_context(context: &HandlerContext<S>) -> Self;
}

impl<S: Clone + Send + 'static> FromContext<S> for HandlerContext<S> {
    fn from_context(context: &HandlerContext<S>) -> Self {
        context.clone()
    }
}

/// The state that the dispatcher was built with.
#[derive(Debug, Clone, Copy)]
pub struct State<S>(pub S);

impl<S: Clone + Send + 'static> FromContext<S> for State<S> {
    fn from_context(context: &HandlerContext<S>) -> Self {
        Self(context.state.clone())
    }
}

/// Who sent a message, as the operating system says.
#[derive(Debug, Clone)]
pub struct Peer(IpcConnection);

impl Peer {
    pub(crate) fn new(connection: IpcConnection) -> Self {
        Self(connection)
    }

    /// The peer's identity, frozen when the connection was identified.
    #[must_use]
    pub fn identity(&self) -> &PeerIdentity {
        self.0.peer()
    }

    /// The peer's account: the authority for everything it asks for.
    #[must_use]
    pub fn account(&self) -> &AccountId {
        self.0.peer().account()
    }

    /// The peer's role, frozen with its hello: what the service let it be. `None` at a client, whose
    /// peer is the service.
    #[must_use]
    pub fn role(&self) -> Option<&Role> {
        self.0.role()
    }

    /// Asks for a role where the policy alone does not say it: a handler of several roles, one part
    /// of which is for this one.
    ///
    /// # Errors
    /// When the peer has another role; returned by the handler, it is answered with the code
    /// [`NotPermitted`](ErrorCode::NotPermitted). The refusal is counted and recorded.
    pub fn require(&self, role: &Role, what: &str) -> Result<(), HandlerError> {
        if self.role() == Some(role) {
            return Ok(());
        }
        self.0.telemetry().refused("not_permitted");
        self.0.audit(AuditEvent::TypeRefused {
            message_type: AuditText::new(what),
        });
        let text = format_args!("this peer may not send {what}: it takes the role {role}");
        Err(HandlerError::new(text).with_code(ErrorCode::NotPermitted))
    }

    /// Records in the audit log what the peer is about to do by right of its role, for example that
    /// an operator drops a message: `what` it does it with, and `to` whom or what. Texts are cut and
    /// escaped. Does not wait.
    pub fn audit(&self, action: &'static str, what: impl Display, to: impl Display) {
        self.0.audit(AuditEvent::Action {
            action,
            what: AuditText::new(&what.to_string()),
            to: AuditText::new(&to.to_string()),
        });
    }

    /// The session that the peer announced, when it did. A label, not an authority.
    #[must_use]
    pub fn announced_session(&self) -> Option<SessionId> {
        self.0
            .announcement()
            .map(|announcement| announcement.session_id)
    }

    /// The id of the peer's connection.
    #[must_use]
    pub fn connection_id(&self) -> ConnectionId {
        self.0.id()
    }

    /// The peer's connection, to send to it.
    #[must_use]
    pub fn connection(&self) -> &IpcConnection {
        &self.0
    }
}

impl<S> FromContext<S> for Peer {
    fn from_context(context: &HandlerContext<S>) -> Self {
        context.peer()
    }
}

impl<S> FromContext<S> for IpcConnection {
    fn from_context(context: &HandlerContext<S>) -> Self {
        context.connection.clone()
    }
}

/// The envelope of a message, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageInfo {
    /// The id that the sender gave the message.
    pub id: MessageId,
    /// The message's type.
    pub message_type: MessageType,
    /// When the message was made, by the sender's clock.
    pub timestamp: Timestamp,
}

impl<S> FromContext<S> for MessageInfo {
    fn from_context(context: &HandlerContext<S>) -> Self {
        context.message.clone()
    }
}

/// Tells a handler that nobody waits for it any more: the peer cancelled its request, the deadline
/// of that has passed, or the connection has ended. A handler may end early then; whatever it
/// returns is still the answer.
#[derive(Debug, Clone)]
pub struct Cancellation {
    connection: CancellationToken,
    asked: Option<Arc<Asked>>,
}

impl Cancellation {
    /// Whether it has fired.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let given_up = |asked: &Arc<Asked>| asked.given_up().is_cancelled();
        self.connection.is_cancelled() || self.asked.as_ref().is_some_and(given_up)
    }

    /// Resolves when it fires. Cancel safe.
    pub async fn cancelled(&self) {
        let Some(asked) = &self.asked else {
            return self.connection.cancelled().await;
        };
        tokio::select! {
            biased;
            () = asked.given_up().cancelled() => {}
            () = self.connection.cancelled() => {}
        }
    }
}

impl<S> FromContext<S> for Cancellation {
    fn from_context(context: &HandlerContext<S>) -> Self {
        context.cancellation()
    }
}

/// Until when the answer to a message is of use to its sender: what is left of the deadline that
/// came with it, counted from when it was read. It has none when the sender named none, or did not
/// negotiate requests.
///
/// A request that a handler makes to answer another one is bounded by it with
/// [`PendingRequest::before`](crate::PendingRequest::before).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// None: the answer is of use whenever it comes.
    pub(crate) const NONE: Self = Self(None);

    /// When it passes.
    #[must_use]
    pub fn at(self) -> Option<Instant> {
        self.0
    }

    /// How much time is left; nothing once it has passed.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        let now = Instant::now();
        self.0.map(|at| at.saturating_duration_since(now))
    }
}

impl<S> FromContext<S> for Deadline {
    fn from_context(context: &HandlerContext<S>) -> Self {
        context.deadline()
    }
}
