//! From a message to its typed handler, and from what it returns to an outcome.

mod asked;
mod context;
mod delivery;
mod dispatcher;
mod handler;
mod items;
mod outcome;

pub(crate) use asked::{Asked, GivenUp};
pub use context::{Cancellation, Deadline, FromContext, HandlerContext, MessageInfo, Peer, State};
pub use delivery::Delivery;
pub(crate) use dispatcher::{Arrived, OnSuccess, Order, Route, Started};
pub use dispatcher::{
    DispatcherBuilder, DispatcherError, HandlerOptions, IncomingMessages, MessageDispatcher,
};
pub use handler::{Handler, HandlerFn, HandlerFuture, MessageHandler};
pub use items::{ItemError, Items};
pub use outcome::{HandlerError, IntoOutcome, Outcome, Reply};
pub(crate) use outcome::{OutcomeKind, ReplyPayload, panicked};
