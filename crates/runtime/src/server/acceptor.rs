//! Takes connections in, and owns their tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use migration_ipc_protocol::{Announcement, Envelope, hello::CapabilitySet};
use migration_ipc_transport::{Listener, Stream};
use tokio::sync::broadcast;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::events::{ConnectionEvent, ReceivedMessage};
use super::mailbox::Receipts;
use super::manager::{ConnectionManager, NoPlace, PendingPlace};
use crate::audit::{AuditEvent, AuditText};
use crate::connection::{
    Driver, Ended, Identified, IpcConnection, Observer, Session, Side, Surroundings, identify,
};
use crate::dispatch::MessageDispatcher;

/// Everything that the connections of one server share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) dispatcher: MessageDispatcher,
    pub(super) surroundings: Surroundings,
    pub(super) manager: ConnectionManager,
    pub(super) messages: broadcast::Sender<ReceivedMessage>,
    /// Whether anybody ever asked for the messages: asking the channel takes a lock.
    pub(super) observed: AtomicBool,
    pub(super) receipts: Receipts,
    /// Fires when the server stops.
    pub(super) stopping: CancellationToken,
}

/// What the connections of a server came to when it stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Connections that were open when the stop began.
    pub connections: usize,
    /// Messages that were accepted for sending and not handed to the operating system.
    pub unsent_messages: usize,
    /// Messages that were received and whose handling did not come to its end.
    pub unhandled_messages: usize,
}

impl StopReport {
    pub(super) fn add(&mut self, other: Self) {
        self.unsent_messages += other.unsent_messages;
        self.unhandled_messages += other.unhandled_messages;
    }
}

/// Accepts from one listener until the server stops, then awaits every connection.
pub(super) async fn accept(service: Arc<Service>, mut listener: Box<dyn Listener>) -> StopReport {
    let mut connections: JoinSet<Option<Ended>> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = service.stopping.cancelled() => break,
            Some(ended) = connections.join_next() => log_defect(ended.err()),
            accepted = listener.accept() => match accepted {
                Ok(stream) => match service.manager.admit() {
                    Ok(place) => {
                        connections.spawn(serve(Arc::clone(&service), place, stream));
                    }
                    Err(no_place) => refuse(&service, no_place),
                },
                Err(error) => {
                    let endpoint = listener.endpoint().clone();
                    tracing::error!(%endpoint, %error, "listening has ended");
                    service.manager.publish(ConnectionEvent::ListeningEnded {
                        endpoint,
                        error: error.to_string(),
                    });
                    break;
                }
            },
        }
    }
    // Whoever connects from now on meets nobody, instead of somebody who says nothing.
    drop(listener);
    let mut report = StopReport::default();
    while let Some(ended) = connections.join_next().await {
        match ended {
            Ok(Some(ended)) => report.add(StopReport {
                connections: 0,
                unsent_messages: ended.unsent,
                unhandled_messages: ended.unhandled,
            }),
            Ok(None) => {}
            Err(error) => log_defect(Some(error)),
        }
    }
    report
}

fn refuse(service: &Service, no_place: NoPlace) {
    let reason = match no_place {
        NoPlace::Connections => "connection_limit",
        NoPlace::PendingConnections => "pending_limit",
    };
    service.surroundings.telemetry.refused(reason);
    let audit = &service.surroundings.audit;
    audit.record(AuditEvent::ConnectionRefused {
        reason,
        detail: None,
    });
}

/// The task of a connection panicked: a defect of this library, and no reason to stop serving.
fn log_defect(error: Option<JoinError>) {
    if let Some(error) = error {
        tracing::error!(%error, "the task of a connection failed");
    }
}

/// One connection, from accept to its end.
async fn serve(
    service: Arc<Service>,
    place: PendingPlace,
    stream: Box<dyn Stream>,
) -> Option<Ended> {
    let timeouts = &service.surroundings.config.timeouts;
    let identified = tokio::select! {
        biased;
        () = service.stopping.cancelled() => return None,
        identified = identify(stream, timeouts) => identified,
    };
    let Identified {
        stream,
        identity,
        decoder,
        handshake_deadline,
    } = match identified {
        Ok(identified) => identified,
        Err(reason) => {
            service.surroundings.telemetry.refused(reason.label());
            let audit = &service.surroundings.audit;
            audit.record(AuditEvent::ConnectionRefused {
                reason: reason.label(),
                detail: Some(AuditText::new(&reason.to_string())),
            });
            return None;
        }
    };
    let connection = IpcConnection::new(
        service.manager.next_id(),
        Side::Server,
        identity,
        service.surroundings.clone(),
    );
    let registration = service.manager.register(place, &connection);
    tracing::info!(connection = %connection.id(), peer = %connection.peer(), "connected");
    let session = Session::new(
        connection.clone(),
        service.dispatcher.clone(),
        Arc::clone(&service) as Arc<dyn Observer>,
        Instant::now(),
    );
    let driver = Driver::new(
        stream,
        decoder,
        session,
        connection.clone(),
        Some(handshake_deadline),
    );
    let span = tracing::info_span!("connection", id = %connection.id(), peer = %connection.peer());
    let ended = driver.run().instrument(span).await;
    let telemetry = &service.surroundings.telemetry;
    telemetry.disconnected(ended.reason.label(), ended.unsent);
    if ended.reason.is_orderly() {
        tracing::info!(connection = %connection.id(), reason = %ended.reason, "disconnected");
    } else {
        connection.audit(AuditEvent::Disconnected {
            reason: ended.reason.label(),
        });
        tracing::warn!(
            connection = %connection.id(),
            peer = %connection.peer(),
            reason = %ended.reason,
            "disconnected",
        );
    }
    registration.end(ended.clone());
    Some(ended)
}

impl Observer for Service {
    fn announced(&self, connection: &IpcConnection, announcement: Announcement) {
        tracing::info!(
            connection = %connection.id(),
            session = %announcement.session_id.as_str().escape_debug(),
            "announced",
        );
        self.manager.announce(connection, announcement);
    }

    fn wants_messages(&self) -> bool {
        self.observed.load(Ordering::Relaxed) && self.messages.receiver_count() > 0
    }

    fn received(&self, connection: &IpcConnection, envelope: &Envelope<'_>) {
        let received = ReceivedMessage {
            connection: connection.clone(),
            message: envelope.to_message(),
        };
        // The last observer may leave at any moment.
        drop(self.messages.send(received));
    }

    fn negotiated(&self, _capabilities: Option<CapabilitySet>) {}
}
