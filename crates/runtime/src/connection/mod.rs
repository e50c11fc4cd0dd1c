//! One connection: a handle that many hold, and a driver that owns its state.
//!
//! Inwards: `driver` reads, `session` understands, `inbox` runs handlers. Outwards: `handle`
//! encodes, `outbound` queues in `lanes`, `driver` fills and hands over each `write`.

mod account;
mod batch;
mod claims;
mod driver;
mod error;
mod handle;
mod in_flight;
mod inbox;
mod lanes;
mod liveness;
mod outbound;
mod pending;
mod reason;
mod sending;
mod session;
mod write;

pub(crate) use account::Account;
pub use batch::Batch;
pub(crate) use claims::Claim;
pub use claims::{AccountResolver, OsAccounts};
pub(crate) use driver::{Driver, Ended};
pub use error::{Answer, Rejection, SendError};
pub use handle::{ConnectionId, IpcConnection};
pub(crate) use handle::{Side, Surroundings};
pub(crate) use in_flight::AnswerResult;
pub(crate) use outbound::{CloseRequest, Tracking};
pub(crate) use pending::{Identified, Waiting, identify};
pub use reason::{ConnectionState, DisconnectReason};
pub(crate) use sending::{Parcel, with_scratch};
pub(crate) use session::{EncodedAnnouncement, Observer, Preamble, Session};
