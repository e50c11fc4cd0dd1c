//! Which handler gets which message.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;

use foldhash::fast::RandomState;
use migration_ipc_protocol::{
    Announcement, Envelope, IpcMessage, MessageId, MessagePayload, PayloadError, PresumedEnvelope,
    Sender, Timestamp, message_types,
};
use thiserror::Error;
use tokio::sync::mpsc;

use super::asked::Asked;
use super::context::{HandlerContext, MessageInfo, Peer};
use super::handler::{Handler, HandlerFuture, MessageHandler, StructHandler};
use super::outcome::{HandlerError, IntoOutcome, Outcome, OutcomeKind};
use crate::connection::{Claim, IpcConnection};
use crate::store::Entry;

/// How messages of one type are handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandlerOptions {
    pub(crate) success: OnSuccess,
    pub(crate) order: Order,
}

impl HandlerOptions {
    /// Acknowledged, and one after the other.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends no acknowledgment when the handler succeeds, for types whose senders do not wait.
    /// A failure is still told.
    #[must_use]
    pub fn silent(mut self) -> Self {
        self.success = OnSuccess::Silent;
        self
    }

    /// Lets later messages of the connection start while this handler works. Handlers still
    /// start in the order of their messages.
    #[must_use]
    pub fn concurrent(mut self) -> Self {
        self.order = Order::Concurrent;
        self
    }
}

/// What the peer gets when a handler succeeds and returns nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum OnSuccess {
    #[default]
    Acknowledge,
    Silent,
    /// Nothing either: the sender of this message wants it so.
    Declined,
}

/// Whether later messages wait for a handler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    Sequential,
    Concurrent,
}

/// A dispatcher that cannot be built: a mistake of the program.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DispatcherError {
    /// A type has two handlers.
    #[error("two handlers for {message_type}: registered at {first}, and again at {second}")]
    Duplicate {
        /// The type.
        message_type: &'static str,
        /// Where the first handler was registered (file, line, column).
        first: String,
        /// Where the second one was.
        second: String,
    },
    /// A type is handled by the connection itself.
    #[error(
        "{message_type} is handled by the connection itself and takes no handler (registered at {at})"
    )]
    Reserved {
        /// The type.
        message_type: &'static str,
        /// Where it was registered.
        at: String,
    },
}

/// Routes messages to the handlers of their types. Cheap to clone; made once, at start-up.
///
/// See [`Handler`] for what a handler looks like. What peers see:
///
/// | case | acknowledgment |
/// |---|---|
/// | the handler returns nothing | `success: true` |
/// | the handler replies | none: the reply takes its place |
/// | the handler fails or panics | `success: false` and the error's text |
/// | the payload does not parse | `success: false` and `Failed to deserialize payload` |
/// | nobody handles the type | `success: false` and `No handler registered` |
#[derive(Debug, Clone)]
pub struct MessageDispatcher {
    routes: Arc<Routes>,
}

#[derive(Debug)]
struct Routes {
    by_type: HashMap<&'static str, Route, RandomState>,
    fallback: Option<Route>,
}

impl MessageDispatcher {
    /// Begins a dispatcher whose handlers share `state` (see [`State`](super::State)); `()` for none.
    pub fn builder<S: Clone + Send + Sync + 'static>(state: S) -> DispatcherBuilder<S> {
        DispatcherBuilder {
            state,
            routes: HashMap::default(),
            fallback: None,
            error: None,
        }
    }

    /// A dispatcher without any handler.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            routes: Arc::new(Routes {
                by_type: HashMap::default(),
                fallback: None,
            }),
        }
    }

    /// A dispatcher that puts every message into a bounded channel, for callers that prefer a
    /// loop to handlers. A message counts as handled once the channel took it; a full channel
    /// holds the connection's reading up. As with [`fallback`](DispatcherBuilder::fallback), the
    /// policy of a server decides what comes here.
    #[must_use]
    pub fn into_channel(capacity: usize) -> (Self, IncomingMessages) {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let fallback = Route::fallback(move |message, peer| {
            let sender = sender.clone();
            async move {
                let closed = |_| HandlerError::new("nobody takes messages any more");
                sender.send((message, peer)).await.map_err(closed)
            }
        });
        let routes = Routes {
            by_type: HashMap::default(),
            fallback: Some(fallback),
        };
        (
            Self {
                routes: Arc::new(routes),
            },
            IncomingMessages { receiver },
        )
    }

    pub(crate) fn route(&self, message_type: &str) -> Option<&Route> {
        self.routes
            .by_type
            .get(message_type)
            .or(self.routes.fallback.as_ref())
    }

    /// The handlers of types of their own, in no order.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.by_type.values()
    }

    /// The types with a handler whose payload says that it is sensitive.
    pub(crate) fn sensitive_types(&self) -> impl Iterator<Item = &'static str> {
        let routes = self.routes.by_type.iter();
        routes
            .filter(|(_, route)| route.sensitive)
            .map(|(message_type, _)| *message_type)
    }

    pub(crate) fn message_types(&self) -> impl Iterator<Item = &'static str> {
        self.routes.by_type.keys().copied()
    }
}

/// The messages of [`MessageDispatcher::into_channel`].
#[derive(Debug)]
pub struct IncomingMessages {
    receiver: mpsc::Receiver<(IpcMessage, Peer)>,
}

impl IncomingMessages {
    /// The next message and its sender; `None` once every connection of the dispatcher is gone.
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<(IpcMessage, Peer)> {
        self.receiver.recv().await
    }
}

/// Collects handlers.
#[derive(Debug)]
#[must_use = "handlers are registered by `build`"]
pub struct DispatcherBuilder<S> {
    state: S,
    routes: HashMap<&'static str, Route, RandomState>,
    fallback: Option<Route>,
    error: Option<DispatcherError>,
}

impl<S: Clone + Send + Sync + 'static> DispatcherBuilder<S> {
    /// Registers a function for the type of its payload: acknowledged, one after the other.
    #[track_caller]
    pub fn handle<A: 'static>(self, handler: impl Handler<A, S>) -> Self {
        self.register(HandlerOptions::default(), handler, Location::caller())
    }

    /// Registers a function with options.
    #[track_caller]
    pub fn handle_with<A: 'static>(
        self,
        options: HandlerOptions,
        handler: impl Handler<A, S>,
    ) -> Self {
        self.register(options, handler, Location::caller())
    }

    /// Registers a struct for the type of its payload.
    #[track_caller]
    pub fn handler(self, handler: impl MessageHandler<S>) -> Self {
        let handler = StructHandler(Arc::new(handler));
        self.register(HandlerOptions::default(), handler, Location::caller())
    }

    /// Registers a struct with options.
    #[track_caller]
    pub fn handler_with(self, options: HandlerOptions, handler: impl MessageHandler<S>) -> Self {
        self.register(
            options,
            StructHandler(Arc::new(handler)),
            Location::caller(),
        )
    }

    /// Registers what gets the messages that have no handler of their own, as they came: who
    /// sent them is sure, what they say (a `userId` too) is not. An announcement that comes here
    /// announces nobody. At a server only what its [`Policy`](crate::Policy) lets pass comes here: of
    /// the built-in types the senders' own, of others those that it names.
    pub fn fallback<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(IpcMessage, Peer) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.fallback = Some(Route::fallback(handler));
        self
    }

    /// Finishes the dispatcher.
    ///
    /// # Errors
    /// When a type was registered twice, naming both places, or is not the user's to handle.
    pub fn build(self) -> Result<MessageDispatcher, DispatcherError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(MessageDispatcher {
                routes: Arc::new(Routes {
                    by_type: self.routes,
                    fallback: self.fallback,
                }),
            }),
        }
    }

    fn register<A: 'static, H: Handler<A, S>>(
        mut self,
        options: HandlerOptions,
        handler: H,
        at: &'static Location<'static>,
    ) -> Self {
        let message_type = H::Payload::TYPE;
        let reserved = message_types::NEGOTIATED.contains(&message_type)
            || [message_types::ACKNOWLEDGMENT, message_types::HEARTBEAT].contains(&message_type);
        let error = if reserved {
            Some(DispatcherError::Reserved {
                message_type,
                at: at.to_string(),
            })
        } else {
            self.routes
                .get(message_type)
                .and_then(|first| first.registered)
                .map(|first| DispatcherError::Duplicate {
                    message_type,
                    first: first.at.to_string(),
                    second: at.to_string(),
                })
        };
        if error.is_some() {
            self.error = self.error.or(error);
            return self;
        }
        let bound = Bound(Arc::new(BoundHandler {
            handler,
            state: self.state.clone(),
            arguments: PhantomData,
        }));
        let route = Route {
            sender: H::Payload::SENDER,
            sensitive: H::Payload::SENSITIVE,
            options,
            registered: Some(Registered {
                at,
                message_type,
                number: self.routes.len(),
            }),
            starter: Box::new(bound),
        };
        self.routes.insert(message_type, route);
        self
    }
}

/// Where the messages of one type go.
pub(crate) struct Route {
    sender: Sender,
    sensitive: bool,
    pub(crate) options: HandlerOptions,
    /// `None` for the fallback.
    registered: Option<Registered>,
    starter: Box<dyn Start>,
}

/// What is known of a handler with a type of its own.
#[derive(Debug, Clone, Copy)]
struct Registered {
    at: &'static Location<'static>,
    message_type: &'static str,
    /// Handlers are numbered from 0, in the order in which they were registered.
    number: usize,
}

impl Route {
    fn fallback<F, Fut>(handler: F) -> Self
    where
        F: Fn(IpcMessage, Peer) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        Self {
            sender: Sender::Any,
            sensitive: false,
            options: HandlerOptions::default(),
            registered: None,
            starter: Box::new(Fallback(handler)),
        }
    }

    /// Who may send messages of this type, which may have come to this route for want of another.
    pub(crate) fn sender_of(&self, message_type: &str) -> Sender {
        match self.registered {
            Some(_) => self.sender,
            None => message_types::sender_of(message_type).unwrap_or(self.sender),
        }
    }

    /// Whether messages come here because the type has a handler of its own.
    pub(crate) fn is_typed(&self) -> bool {
        self.registered.is_some()
    }

    /// Who may send messages of this type, as the payload declares.
    pub(crate) fn sender(&self) -> Sender {
        self.sender
    }

    /// The type that has this handler; empty for the fallback.
    pub(crate) fn message_type(&self) -> &'static str {
        self.registered.map_or("", |it| it.message_type)
    }

    /// The number of this handler; of the fallback one that no handler has.
    pub(crate) fn number(&self) -> usize {
        self.registered.map_or(usize::MAX, |it| it.number)
    }

    /// Parses the payload and prepares the handler, which is polled later.
    pub(crate) fn start(
        &self,
        connection: &IpcConnection,
        arrived: Arrived<'_>,
        entry: Option<Arc<Entry>>,
        asked: Option<Arc<Asked>>,
    ) -> Result<Started, PayloadError> {
        self.starter.start(connection, arrived, entry, asked)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("sender", &self.sender)
            .field("options", &self.options)
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

/// A handler that is ready to be polled.
pub(crate) struct Started {
    pub(crate) future: HandlerFuture,
    /// What the message announces, if its handler accepts it.
    pub(crate) announcement: Option<Box<Announcement>>,
}

/// A message on its way to its handler.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrived<'a> {
    Read(&'a Envelope<'a>),
    /// In the usual form; goes to typed handlers only, whose payload proves it.
    Presumed(&'a PresumedEnvelope<'a>),
}

impl Arrived<'_> {
    pub(crate) fn id(&self) -> &MessageId {
        match self {
            Self::Read(envelope) => &envelope.id,
            Self::Presumed(envelope) => &envelope.id,
        }
    }

    fn timestamp(&self) -> Timestamp {
        match self {
            Self::Read(envelope) => envelope.timestamp,
            Self::Presumed(envelope) => envelope.timestamp,
        }
    }

    fn payload<P: MessagePayload>(&self) -> Result<P, PayloadError> {
        match self {
            Self::Read(envelope) => envelope.payload(),
            Self::Presumed(envelope) => envelope.payload().ok_or(PayloadError::Missing),
        }
    }
}

trait Start: Send + Sync {
    fn start(
        &self,
        connection: &IpcConnection,
        arrived: Arrived<'_>,
        entry: Option<Arc<Entry>>,
        asked: Option<Arc<Asked>>,
    ) -> Result<Started, PayloadError>;
}

struct BoundHandler<H, A, S> {
    handler: H,
    state: S,
    arguments: PhantomData<fn(A)>,
}

struct Bound<H, A, S>(Arc<BoundHandler<H, A, S>>);

impl<H, A, S> Start for Bound<H, A, S>
where
    H: Handler<A, S>,
    A: 'static,
    S: Clone + Send + Sync + 'static,
{
    fn start(
        &self,
        connection: &IpcConnection,
        arrived: Arrived<'_>,
        entry: Option<Arc<Entry>>,
        asked: Option<Arc<Asked>>,
    ) -> Result<Started, PayloadError> {
        let mut payload: H::Payload = arrived.payload()?;
        let announcement = payload.announcement().map(Box::new);
        let context = HandlerContext {
            state: self.0.state.clone(),
            connection: connection.clone(),
            message: MessageInfo {
                id: arrived.id().clone(),
                message_type: H::Payload::TYPE.into(),
                timestamp: arrived.timestamp(),
            },
            entry,
            asked,
        };
        let claim = payload
            .user_id_mut()
            .map(|user| connection.check_claim(user));
        let future = match claim {
            None | Some(Claim::Settled) => self.0.handler.call(payload, context),
            Some(Claim::Unresolved) => {
                let bound = Arc::clone(&self.0);
                Box::pin(async move {
                    if let Some(user) = payload.user_id_mut()
                        && let Err(error) = context.connection.settle_claim(user).await
                    {
                        return Outcome(OutcomeKind::Failed(error));
                    }
                    bound.handler.call(payload, context).await
                })
            }
        };
        Ok(Started {
            future,
            announcement,
        })
    }
}

struct Fallback<F>(F);

impl<F, Fut> Start for Fallback<F>
where
    F: Fn(IpcMessage, Peer) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    fn start(
        &self,
        connection: &IpcConnection,
        arrived: Arrived<'_>,
        _entry: Option<Arc<Entry>>,
        _asked: Option<Arc<Asked>>,
    ) -> Result<Started, PayloadError> {
        let Arrived::Read(envelope) = arrived else {
            return Err(PayloadError::Missing);
        };
        let working = self.0(envelope.to_message(), Peer::new(connection.clone()));
        let future = Box::pin(async move { working.await.into_outcome() });
        Ok(Started {
            future,
            announcement: None,
        })
    }
}
