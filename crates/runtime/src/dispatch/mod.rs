//! From a message to its typed handler, and from what it returns to an outcome.

mod context;
mod delivery;
mod dispatcher;
mod handler;
mod outcome;

pub use context::{Cancellation, FromContext, HandlerContext, MessageInfo, Peer, State};
pub use delivery::Delivery;
pub(crate) use dispatcher::{Arrived, OnSuccess, Order, Route, Started};
pub use dispatcher::{
    DispatcherBuilder, DispatcherError, HandlerOptions, IncomingMessages, MessageDispatcher,
};
pub use handler::{Handler, HandlerFn, HandlerFuture, MessageHandler};
pub use outcome::{HandlerError, IntoOutcome, Outcome, Reply};
pub(crate) use outcome::{OutcomeKind, ReplyPayload, panicked};
