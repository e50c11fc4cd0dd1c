//! What a handler is: a plain async function with typed arguments, or a struct.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use migration_ipc_protocol::MessagePayload;

use super::context::{FromContext, HandlerContext};
use super::outcome::{IntoOutcome, Outcome};

/// A handler at work.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// An async function that handles messages of one type.
///
/// It is polled by the task of its connection: it may wait as long as it likes, and must not block
/// the thread (`tokio::task::spawn_blocking` is for that), or acknowledgments and heartbeats of the
/// connection wait with it.
///
/// The first argument is the payload, and with it the message type; up to five more are taken
/// from the message's context (see [`FromContext`]), in any order:
///
/// ```
/// use migration_ipc::{HandlerError, MessageInfo, Peer, State, messages::BackupProgress};
///
/// async fn on_progress(
///     progress: BackupProgress,
///     peer: Peer,
///     State(seen): State<std::sync::Arc<std::sync::atomic::AtomicU64>>,
/// ) -> Result<(), HandlerError> {
///     if progress.bytes_total < progress.bytes_transferred {
///         return Err(HandlerError::new("more bytes than there are"));
///     }
///     seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
///     println!("{}: {}", peer.account(), progress.category);
///     Ok(())
/// }
/// # let _ = migration_ipc::MessageDispatcher::builder(std::sync::Arc::default())
/// #     .handle(on_progress).build().unwrap();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message handler",
    label = "not a message handler",
    note = "a handler is an `async fn` of a payload and at most five other arguments",
    note = "a struct that implements `MessageHandler` is registered with `handler`"
)]
pub trait Handler<Arguments, S>: Send + Sync + 'static {
    /// What the handled messages carry.
    type Payload: MessagePayload;

    /// Starts the handler on one message.
    fn call(&self, payload: Self::Payload, context: HandlerContext<S>) -> HandlerFuture;
}

impl<F, Arguments, S> Handler<Arguments, S> for F
where
    F: HandlerFn<Arguments>,
    F::Payload: MessagePayload,
    F::Context: FromContext<S>,
    F::Future: Future + Send + 'static,
    <F::Future as Future>::Output: IntoOutcome,
    S: Clone + Send + Sync + 'static,
{
    type Payload = F::Payload;

    fn call(&self, payload: F::Payload, context: HandlerContext<S>) -> HandlerFuture {
        let working = HandlerFn::call(self, payload, F::Context::from_context(&context));
        Box::pin(async move { working.await.into_outcome() })
    }
}

/// The shape of a [`Handler`]: a function of a payload and up to five more arguments.
///
/// What these and its result have to be is not asked here. With the shape settled first, the
/// compiler can name the one that is wrong.
pub trait HandlerFn<Arguments>: Send + Sync + 'static {
    /// The first argument.
    type Payload;
    /// The other arguments.
    type Context;
    /// What it returns.
    type Future;

    /// Calls it.
    fn call(&self, payload: Self::Payload, context: Self::Context) -> Self::Future;
}

macro_rules! impl_handler_fn {
    ($($argument:ident),*) => {
        impl<F, Fut, P, $($argument),*> HandlerFn<(P, $($argument,)*)> for F
        where
            F: Fn(P, $($argument),*) -> Fut + Send + Sync + 'static,
        {
            type Payload = P;
            type Context = ($($argument,)*);
            type Future = Fut;

            #[allow(non_snake_case, reason = "values are named after their types, if there are any")]
            fn call(&self, payload: P, ($($argument,)*): Self::Context) -> Fut {
                self(payload, $($argument),*)
            }
        }

        impl<S, $($argument: FromContext<S>),*> FromContext<S> for ($($argument,)*) {
            #[allow(clippy::unused_unit, reason = "of no arguments the tuple is the unit")]
            fn from_context(_context: &HandlerContext<S>) -> Self {
                ($($argument::from_context(_context),)*)
            }
        }
    };
}

impl_handler_fn!();
impl_handler_fn!(A1);
impl_handler_fn!(A1, A2);
impl_handler_fn!(A1, A2, A3);
impl_handler_fn!(A1, A2, A3, A4);
impl_handler_fn!(A1, A2, A3, A4, A5);

/// A struct that handles messages of one type; for handlers with fields of their own. As a
/// [`Handler`], it must not block the thread.
///
/// ```
/// use migration_ipc::{HandlerContext, HandlerError, MessageHandler, messages::ErrorReport};
///
/// struct Tickets { queue: String }
///
/// impl MessageHandler for Tickets {
///     type Payload = ErrorReport;
///     type Output = Result<(), HandlerError>;
///
///     async fn handle(&self, report: ErrorReport, context: HandlerContext) -> Self::Output {
///         println!("{}: {} from {}", self.queue, report.error_code, context.peer().account());
///         Ok(())
///     }
/// }
/// # let _ = migration_ipc::MessageDispatcher::builder(())
/// #     .handler(Tickets { queue: "helpdesk".into() }).build().unwrap();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message handler",
    label = "does not implement `MessageHandler<{S}>`",
    note = "a struct implements `MessageHandler<S>` for the dispatcher's own state type `S`",
    note = "an `async fn` is registered with `handle`"
)]
pub trait MessageHandler<S = ()>: Send + Sync + 'static {
    /// What the handled messages carry; it names their type.
    type Payload: MessagePayload;
    /// What handling comes to.
    type Output: IntoOutcome;

    /// Handles one message. Dropped only when its connection has ended and the grace for
    /// handlers is over; [`HandlerContext::cancellation`] fires before.
    fn handle(
        &self,
        payload: Self::Payload,
        context: HandlerContext<S>,
    ) -> impl Future<Output = Self::Output> + Send;
}

/// Makes a [`MessageHandler`] a [`Handler`].
pub(crate) struct StructHandler<H>(pub(crate) Arc<H>);

impl<H, S> Handler<(), S> for StructHandler<H>
where
    H: MessageHandler<S>,
    S: Clone + Send + Sync + 'static,
{
    type Payload = H::Payload;

    fn call(&self, payload: H::Payload, context: HandlerContext<S>) -> HandlerFuture {
        let handler = Arc::clone(&self.0);
        Box::pin(async move { handler.handle(payload, context).await.into_outcome() })
    }
}
