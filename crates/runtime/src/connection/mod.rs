//! One connection: a handle that many hold, and a driver that owns its state.
//!
//! Inwards: `driver` reads, `session` understands, `inbox` runs handlers. Outwards: `handle`
//! encodes, `outbound` queues in `lanes`, `driver` fills and hands over each `write`.

mod account;
mod asking;
mod batch;
mod chunk_room;
mod claims;
mod compression;
mod driver;
mod error;
mod frames;
mod handle;
mod in_flight;
mod inbox;
mod lane;
mod lane_kind;
mod lanes;
mod large;
mod layers;
mod liveness;
mod options;
mod outbound;
mod pending;
mod reason;
mod request_error;
mod requesting;
mod rewind;
mod secrecy;
mod sending;
mod session;
mod shelf;
mod sync;
mod transfers;
mod write;

pub(crate) use account::Account;
pub use batch::Batch;
pub(crate) use claims::Claim;
pub use claims::{AccountResolver, OsAccounts};
pub use compression::Compression;
pub(crate) use compression::pack;
pub(crate) use driver::{Driver, Ended};
pub use error::{Answer, Rejection, SendError};
pub use handle::{ConnectionId, IpcConnection};
pub(crate) use handle::{Side, Surroundings};
pub(crate) use in_flight::AnswerResult;
pub(crate) use large::LargeBody;
pub use large::{LargeSend, TransferProgress};
pub use options::MessageOptions;
pub(crate) use outbound::{CloseRequest, ItemRefused, Tracking};
pub(crate) use pending::{Identified, Waiting, identify};
pub use reason::{ConnectionState, DisconnectReason};
pub use request_error::RequestError;
pub use requesting::{DEFAULT_ITEM_WINDOW, PendingRequest, PendingStream, ReplyStream};
pub(crate) use secrecy::{Secrecy, SensitiveTypes};
pub(crate) use sending::{Parcel, with_scratch};
pub(crate) use session::{EncodedAnnouncement, Observer, Offer, Preamble, Session};
pub(crate) use shelf::Shelf;
