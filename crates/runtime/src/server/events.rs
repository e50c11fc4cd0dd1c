//! What can be observed of a server: connections that come and go, and messages that arrive.
//!
//! Observers never hold anything up. One that falls behind misses the oldest items and is told
//! how many.

use migration_ipc_protocol::{Announcement, IpcMessage};
use migration_ipc_transport::Endpoint;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::connection::{DisconnectReason, IpcConnection};

/// A connection came, announced itself, or went.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The operating system said who the peer is.
    Connected {
        /// The connection.
        connection: IpcConnection,
    },
    /// The peer's announcement was accepted; it can be addressed from now on.
    Announced {
        /// The connection.
        connection: IpcConnection,
        /// What it announced.
        announcement: Announcement,
    },
    /// The connection is gone.
    Disconnected {
        /// The connection.
        connection: IpcConnection,
        /// Why it ended.
        reason: DisconnectReason,
        /// Messages that were accepted for sending and not handed to the operating system.
        unsent_messages: usize,
        /// Messages that were received and whose handling did not come to its end.
        unhandled_messages: usize,
    },
    /// Nobody can connect to this endpoint any more, because its listener failed for good. What is
    /// connected lives on.
    ListeningEnded {
        /// The endpoint.
        endpoint: Endpoint,
        /// The operating system's words.
        error: String,
    },
}

/// A message on its way to its handler.
#[derive(Debug, Clone)]
pub struct ReceivedMessage {
    /// Where it came from.
    pub connection: IpcConnection,
    /// The message as it came: the payload is not checked yet.
    pub message: IpcMessage,
}

/// What an observer gets.
#[derive(Debug, Clone)]
pub enum Observed<T> {
    /// The next item.
    Item(T),
    /// The observer was too slow: this many items are gone.
    Missed(u64),
}

/// [`ConnectionEvent`]s, in order.
#[derive(Debug)]
pub struct EventStream(Observations<ConnectionEvent>);

/// [`ReceivedMessage`]s, in order for each connection.
#[derive(Debug)]
pub struct MessageStream(Observations<ReceivedMessage>);

impl EventStream {
    pub(crate) fn new(receiver: broadcast::Receiver<ConnectionEvent>) -> Self {
        Self(Observations(receiver))
    }

    /// The next event; `None` once the server and every [`ServerSender`](crate::ServerSender) are
    /// gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Observed<ConnectionEvent>> {
        self.0.recv().await
    }
}

impl MessageStream {
    pub(crate) fn new(receiver: broadcast::Receiver<ReceivedMessage>) -> Self {
        Self(Observations(receiver))
    }

    /// The next message; `None` once the server is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Observed<ReceivedMessage>> {
        self.0.recv().await
    }
}

#[derive(Debug)]
struct Observations<T>(broadcast::Receiver<T>);

impl<T: Clone> Observations<T> {
    async fn recv(&mut self) -> Option<Observed<T>> {
        match self.0.recv().await {
            Ok(item) => Some(Observed::Item(item)),
            Err(RecvError::Lagged(missed)) => Some(Observed::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}
