//! Takes connections in, and owns their tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::lazy;
use migration_ipc_protocol::{Announcement, Envelope, hello::CapabilitySet};
use migration_ipc_transport::{IdentifyWhen, Listener, PeerIdentity, Stream};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::accounts::NoPlace;
use super::events::{ConnectionEvent, ReceivedMessage};
use super::mailbox::Receipts;
use super::manager::{ConnectionManager, PendingPlace, Place};
use crate::audit::{AuditEvent, AuditText};
use crate::connection::{
    Account, DisconnectReason, Driver, Ended, Identified, IpcConnection, Observer, Session, Side,
    Surroundings, identify,
};
use crate::dispatch::MessageDispatcher;

/// Everything that the connections of one server share.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) dispatcher: MessageDispatcher,
    pub(super) surroundings: Arc<Surroundings>,
    /// The account of those whose messages are handled when they are gone.
    pub(super) departed: Arc<Account>,
    /// How many peers the operating system may be asked about at once.
    pub(super) questions: Semaphore,
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
            () = service.surroundings.shelf.watch() => {}
            accepted = listener.accept() => match accepted {
                Ok(stream) => take_in(&service, stream, &mut connections),
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

/// Gives a newcomer its place, or turns it away. Where the operating system names peers at accept,
/// whoever comes counts towards its account from the beginning, and one account's flood takes no
/// place of anybody else.
fn take_in(
    service: &Arc<Service>,
    stream: Box<dyn Stream>,
    connections: &mut JoinSet<Option<Ended>>,
) {
    let named = match stream.identify_when() {
        IdentifyWhen::Now => stream.identify().now_or_never(),
        IdentifyWhen::AfterFirstRead => None,
    };
    let service = Arc::clone(service);
    match named {
        Some(Ok(identity)) => {
            let timeouts = &service.surroundings.config.timeouts;
            let identified = Identified::at_once(stream, identity, timeouts);
            if let Some(place) = place_for(&service, &identified) {
                // It begins in a task of its own: its defects are its own too.
                let serving = lazy(move |_| serve(service, place, identified)).flatten();
                connections.spawn(serving.map(Some));
            }
        }
        Some(Err(error)) => end_unknown(&service, &error.into()),
        None => match service.manager.admit_unknown() {
            Ok(place) => {
                connections.spawn(serve_unknown(service, place, stream));
            }
            Err(no_place) => refuse(&service, None, no_place),
        },
    }
}

fn place_for(service: &Service, identified: &Identified) -> Option<Place> {
    match service.manager.admit(&identified.identity) {
        Ok(place) => Some(place),
        Err(no_place) => {
            refuse(service, Some(&identified.identity), no_place);
            None
        }
    }
}

fn refuse(service: &Service, peer: Option<&PeerIdentity>, no_place: NoPlace) {
    let reason = no_place.label();
    service.surroundings.telemetry.refused(reason);
    let audit = &service.surroundings.audit;
    let event = AuditEvent::ConnectionRefused {
        reason,
        detail: None,
    };
    match peer {
        Some(peer) => audit.record_peer(peer, None, event),
        None => audit.record(event),
    }
}

/// A connection that ends before its peer is known.
fn end_unknown(service: &Service, reason: &DisconnectReason) {
    service.surroundings.telemetry.refused(reason.label());
    let audit = &service.surroundings.audit;
    audit.record(AuditEvent::ConnectionRefused {
        reason: reason.label(),
        detail: Some(AuditText::new(&reason.to_string())),
    });
}

/// The task of a connection panicked: a defect of this library, and no reason to stop serving.
fn log_defect(error: Option<JoinError>) {
    if let Some(error) = error {
        tracing::error!(%error, "the task of a connection failed");
    }
}

/// One connection whose peer is not known at accept, from there to its end.
async fn serve_unknown(
    service: Arc<Service>,
    place: PendingPlace,
    stream: Box<dyn Stream>,
) -> Option<Ended> {
    let timeouts = &service.surroundings.config.timeouts;
    let identified = tokio::select! {
        biased;
        () = service.stopping.cancelled() => return None,
        () = place.lost() => {
            // It was silent, and a newcomer needed its place.
            refuse(&service, None, NoPlace::GaveWay);
            return None;
        }
        identified = identify(stream, timeouts, &place, &service.questions) => identified,
    };
    match identified {
        Ok(identified) => {
            let known = place_for(&service, &identified)?;
            drop(place);
            Some(serve(service, known, identified).await)
        }
        Err(reason) => {
            end_unknown(&service, &reason);
            None
        }
    }
}

/// One connection whose peer is known, to its end.
fn serve(
    service: Arc<Service>,
    place: Place,
    identified: Identified,
) -> impl Future<Output = Ended> {
    let Identified {
        stream,
        identity,
        decoder,
        handshake_deadline,
    } = identified;
    let account: Arc<Account> = Arc::clone(place.account());
    let connection = IpcConnection::new(
        service.manager.next_id(),
        Side::Server,
        identity,
        Arc::clone(&account),
        Arc::clone(&service.surroundings),
    );
    let registration = service.manager.register(place, &connection);
    account.comings().line(|| {
        tracing::info!(connection = %connection.id(), peer = %connection.peer(), "connected");
    });
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
    let running = driver.run().instrument(span);
    running.map(move |ended| {
        note_end(&service, &connection, &account, &ended);
        registration.end(ended.clone());
        ended
    })
}

fn note_end(service: &Service, connection: &IpcConnection, account: &Account, ended: &Ended) {
    let telemetry = &service.surroundings.telemetry;
    telemetry.disconnected(ended.reason.label(), ended.unsent);
    if ended.reason.is_orderly() {
        account.comings().line(|| {
            tracing::info!(connection = %connection.id(), reason = %ended.reason, "disconnected");
        });
    } else {
        connection.audit(AuditEvent::Disconnected {
            reason: ended.reason.label(),
        });
        account.misdeeds().line(|| {
            tracing::warn!(
                connection = %connection.id(),
                peer = %connection.peer(),
                reason = %ended.reason,
                "disconnected",
            );
        });
    }
}

impl Observer for Service {
    fn announced(&self, connection: &IpcConnection, announcement: Announcement) {
        connection.shared_account().comings().line(|| {
            tracing::info!(
                connection = %connection.id(),
                session = %announcement.session_id.as_str().escape_debug(),
                "announced",
            );
        });
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
