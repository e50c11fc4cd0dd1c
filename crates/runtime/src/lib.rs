//! Typed messages between a privileged service and the per-user agents of the same machine, over
//! Windows named pipes and Unix sockets, with identities that come from the operating system.
//!
//! A service has an [`IpcServer`], an agent an [`IpcClient`]; both hand what arrives to a
//! [`MessageDispatcher`], and send through an [`IpcConnection`].
//!
//! A message's way through the folders of this crate:
//!
//! ```text
//! bytes → connection/driver → connection/session → dispatch/ → your handler
//!                                                                 │ returns
//! bytes ← connection/driver ← connection/lanes ← connection/outbound ←┘
//! ```

mod access;
mod audit;
mod client;
mod clock;
mod config;
mod connection;
mod delivery;
mod dispatch;
mod encryption;
mod factory;
pub mod keys;
mod log_budget;
mod reconnecting;
mod server;
mod store;
mod telemetry;

pub use access::{MAX_ROLE_NAME, MAX_ROLES, Policy, PolicyError, Verdict};
pub use audit::{
    AUDIT_TARGET, AuditEvent, AuditOutcome, AuditRecord, AuditSink, AuditSubject, AuditText,
    MAX_AUDIT_TEXT, TracingAudit,
};
pub use client::{ConnectError, DEFAULT_CONNECT_TIMEOUT, IpcClient, IpcClientBuilder, ServiceKind};
pub use clock::Clock;
pub use config::{
    AccountLimits, ConfigError, ConnectionConfig, ConnectionLimits, ConnectionTimeouts, Rate,
    SensitivePolicy, ServerLimits,
};
pub use connection::{
    AccountResolver, Answer, Batch, Compression, ConnectionId, ConnectionState,
    DEFAULT_ITEM_WINDOW, DisconnectReason, IpcConnection, LargeSend, MessageOptions, OsAccounts,
    PendingRequest, PendingStream, Rejection, ReplyStream, RequestError, SendError,
    TransferProgress,
};
pub use delivery::{Execution, Fate, Receipt};
pub use dispatch::{
    Cancellation, Deadline, Delivery, DispatcherBuilder, DispatcherError, FromContext, Handler,
    HandlerContext, HandlerError, HandlerFn, HandlerFuture, HandlerOptions, IncomingMessages,
    IntoOutcome, ItemError, Items, MessageDispatcher, MessageHandler, MessageInfo, Outcome, Peer,
    Reply, State,
};
pub use encryption::{Demand, Encryption};
pub use factory::MessageFactory;
pub use reconnecting::{
    AtRest, Attempts, Backoff, ClientStartError, ConnectionTrouble, Durability, IpcClientPool,
    LaneHealth, Locked, LockedBy, LockedMessages, MAX_LANES, OutboxFailure, OutboxKey, OutboxKeyId,
    OutboxReport, Overflow, QueueLimits, ReconnectState, ReconnectingIpcClient,
    ReconnectingIpcClientBuilder, Remaining, Restored, RestoredFates, SendOptions,
};
pub use server::{
    Broadcast, ConnectionCounts, ConnectionEvent, ConnectionManager, EventStream, IpcServer,
    IpcServerBuilder, MailError, MailOptions, Mailbox, MessageStream, Observed, ReceivedMessage,
    RequeueError, Requeued, ServerSender, StartError, StopReport,
};

pub use store::{Commit, CommitError, ProgramCommit, StoreHandle, StoreOwner};

pub use migration_ipc_crypto as crypto;
pub use migration_ipc_protocol as protocol;
pub use migration_ipc_protocol::extensions::BatchError;
pub use migration_ipc_protocol::hello::{Capability, CapabilitySet, Role};
pub use migration_ipc_protocol::messages::{ErrorCode, SessionId, UserId};
pub use migration_ipc_protocol::{
    Announcement, EncodeError, Idempotence, InvalidStreamName, IpcMessage, MessageId,
    MessagePayload, MessageSerializer, MessageType, OutboxId, PayloadError, Priority, RawValue,
    Request, SchemaFingerprint, Sender, StreamName, StreamingRequest, Timestamp, limits,
    message_types, messages,
};
pub use migration_ipc_store as storage;
pub use migration_ipc_store::{Effects, Refusal, StoredOutcome};
pub use migration_ipc_transport as transport;
pub use migration_ipc_transport::{
    AccountId, BindOptions, Endpoint, OsSession, PeerIdentity, Privilege, ServiceMode, Trust,
};

#[cfg(doctest)]
mod documents {
    #![doc = include_str!("../../../README.md")]
    #![doc = include_str!("../../../docs/seed-names.md")]
    #![doc = include_str!("../../../docs/requests.md")]
}
