//! A client that outlives its connections, and messages that outlive their process.
//!
//! A message's way: `client` writes it down as `stored` says; if it is to be encrypted on disk,
//! `sealing` does that, with keys of `outbox_keys`; `accepting` takes it into a `queue`,
//! a durable one by way of the `desk` and the `log`, whose side is `keeping`; `sending` gives it to
//! the present connection, together with its `company`, and `guarantee` says what the answer means;
//! `large` does both for what may not fit a frame. All of that meets in what is
//! `shared`. `owner` is the one task, `backoff` says when it tries again. `pool` has several clients for one service.

mod accepting;
mod backoff;
mod builder;
mod client;
mod company;
mod desk;
mod guarantee;
mod keeping;
mod large;
mod log;
mod options;
mod outbox_keys;
mod owner;
mod pool;
mod queue;
mod sealing;
mod sending;
mod shared;
mod state;
mod stored;
mod telemetry;

pub use backoff::{Attempts, Backoff};
pub use builder::{ClientStartError, ReconnectingIpcClientBuilder};
pub use client::{ReconnectingIpcClient, Remaining, Restored, RestoredFates};
pub use log::{OutboxFailure, OutboxReport};
pub use options::{Durability, SendOptions};
pub use pool::{IpcClientPool, LaneHealth, MAX_LANES};
pub use queue::{Overflow, QueueLimits};
pub use sealing::{AtRest, Locked, LockedBy, LockedMessages, OutboxKey, OutboxKeyId};
pub use state::{ConnectionTrouble, ReconnectState};
