//! One connection: a handle that many hold, and a driver that owns its state.
//!
//! Inwards: `driver` reads, `session` understands, `inbox` runs handlers. Outwards: `handle`
//! encodes, `outbound` queues in `lanes`, `driver` fills and hands over each `write`.

mod account;
mod claims;
mod driver;
mod error;
mod frames;
mod handle;
mod in_flight;
mod inbox;
mod lane;
mod lanes;
mod liveness;
mod options;
mod outbound;
mod pending;
mod reason;
mod sending;
mod session;
mod sync;
mod write;

pub(crate) use account::Account;
pub(crate) use claims::Claim;
pub use claims::{AccountResolver, OsAccounts};
pub(crate) use driver::{Driver, Ended};
pub use error::{Answer, Rejection, SendError};
pub use handle::{ConnectionId, IpcConnection};
pub(crate) use handle::{Side, Surroundings};
pub(crate) use in_flight::AnswerResult;
pub use options::MessageOptions;
pub(crate) use outbound::CloseRequest;
pub(crate) use pending::{Identified, Waiting, identify};
pub use reason::{ConnectionState, DisconnectReason};
pub(crate) use sending::{Parcel, with_scratch};
pub(crate) use session::{EncodedAnnouncement, Observer, Preamble, Session};
