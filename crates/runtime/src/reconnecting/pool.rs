//! Several connections to one service.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use migration_ipc_protocol::MessagePayload;

use super::client::{ReconnectingIpcClient, Remaining};
use super::options::{Durability, SendOptions};
use super::state::ReconnectState;
use crate::connection::SendError;
use crate::delivery::Receipt;

/// The most lanes of a pool. Each is a connection, of which a service has a limited number, and
/// a service handles the messages of one connection one after the other: more lanes than the
/// service has processors help nobody.
pub const MAX_LANES: NonZeroUsize = NonZeroUsize::new(16).expect("sixteen is not zero");

/// A service whose oldest unhandled message has waited for this long is stuck on that lane.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Several lanes to one service, for callers whose messages should not wait behind each other's.
///
/// Each lane is a [`ReconnectingIpcClient`] with a connection of its own, which heartbeats keep an
/// eye on. The first lane announces the client, has the outbox, and gets what the service sends.
/// A message goes to the lane with the fewest unanswered messages among those that are healthy, so
/// no order is kept between two messages; whoever needs one sends them on one
/// [lane](Self::least_loaded).
///
/// ```no_run
/// use migration_ipc::messages::{AgentStarted, UserAction};
/// use migration_ipc::{Endpoint, MessageDispatcher, ReconnectingIpcClient};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = ReconnectingIpcClient::builder(MessageDispatcher::empty())
///     .endpoint(Endpoint::client_default()?)
///     .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
///     .start_pool(4.try_into()?)
///     .await?;
/// let receipt = pool.send(UserAction::new("", "opened")).await?;
/// println!("{}", receipt.fate().await);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct IpcClientPool {
    /// Never empty; the first is the announced one.
    lanes: Vec<ReconnectingIpcClient>,
    /// Where the search for the least loaded lane begins, so that equals take turns.
    turn: AtomicUsize,
}

/// How a lane does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LaneHealth {
    /// Where it is.
    pub state: ReconnectState,
    /// Messages accepted whose fate is not known.
    pub outstanding: usize,
    /// For how long the service's oldest unhandled message of this lane has waited, if the service
    /// says so.
    pub peer_backlog: Option<Duration>,
}

impl LaneHealth {
    fn of(lane: &ReconnectingIpcClient) -> Self {
        Self {
            state: lane.current_state(),
            outstanding: lane.outstanding(),
            peer_backlog: lane
                .connection()
                .and_then(|connection| connection.peer_backlog()),
        }
    }

    /// Whether it is connected, and the service's handlers get on.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let stuck = self
            .peer_backlog
            .is_some_and(|oldest| oldest >= STUCK_AFTER);
        self.state.is_connected() && !stuck
    }
}

impl IpcClientPool {
    pub(super) fn new(lanes: Vec<ReconnectingIpcClient>) -> Self {
        Self {
            lanes,
            turn: AtomicUsize::new(0),
        }
    }

    /// The lane that is announced: it can be addressed by the service, and has the outbox.
    #[must_use]
    pub fn announced(&self) -> &ReconnectingIpcClient {
        &self.lanes[0]
    }

    /// How each lane does, the announced one first.
    #[must_use]
    pub fn health(&self) -> Vec<LaneHealth> {
        self.lanes.iter().map(LaneHealth::of).collect()
    }

    /// The lane with the fewest unanswered messages among the healthy ones; among all, where none
    /// is.
    #[must_use]
    pub fn least_loaded(&self) -> &ReconnectingIpcClient {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        let (before, from) = self.lanes.split_at(turn);
        from.iter()
            .chain(before)
            .min_by_key(|lane| {
                let health = LaneHealth::of(lane);
                (!health.is_healthy(), health.outstanding)
            })
            .unwrap_or(self.announced())
    }

    /// Sends a message on the least loaded lane; a durable one on the announced lane.
    ///
    /// # Errors
    /// As [`ReconnectingIpcClient::send`].
    pub async fn send<P: MessagePayload>(&self, payload: P) -> Result<Receipt, SendError> {
        self.send_with(payload, SendOptions::new()).await
    }

    /// As [`send`](Self::send), with options for this message.
    ///
    /// # Errors
    /// As [`ReconnectingIpcClient::send_with`].
    pub async fn send_with<P: MessagePayload>(
        &self,
        payload: P,
        options: SendOptions,
    ) -> Result<Receipt, SendError> {
        let lane = match self.announced().policy(P::TYPE, &options).durability {
            Durability::Memory => self.least_loaded(),
            Durability::Disk => self.announced(),
        };
        lane.send_with(payload, options).await
    }

    /// Sends a message that may be longer than a frame on the least loaded lane.
    ///
    /// # Errors
    /// As [`ReconnectingIpcClient::send_large`].
    pub async fn send_large<P: MessagePayload>(&self, payload: P) -> Result<Receipt, SendError> {
        self.least_loaded().send_large(payload).await
    }

    /// Stops all lanes, each as [`ReconnectingIpcClient::stop`] does; says what is left of all.
    ///
    /// Cancel safe: the lanes stop all the same.
    pub async fn stop(&self, timeout: Duration) -> Remaining {
        let stopped = join_all(self.lanes.iter().map(|lane| lane.stop(timeout))).await;
        Remaining {
            dropped: stopped.iter().map(|lane| lane.dropped).sum(),
            kept: stopped.iter().map(|lane| lane.kept).sum(),
        }
    }
}
