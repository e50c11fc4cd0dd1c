//! The audit log: who connected, what was refused, and what operators did.
//!
//! A server makes records; an [`AuditSink`] takes them. What a peer can cause is bounded: so many
//! records per account and minute, then one that says how many were left out.

mod budget;
mod event;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use budget::AUDIT_WINDOW;
use budget::{Budget, Cause, Suppressed};
pub use event::{AuditEvent, AuditOutcome, AuditRecord, AuditSubject, AuditText, MAX_AUDIT_TEXT};
use metrics::counter;
use migration_ipc_transport::PeerIdentity;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::connection::{ConnectionId, IpcConnection};

/// The target of the default sink's `tracing` events.
pub const AUDIT_TARGET: &str = "migration_ipc::audit";

/// Where records go.
pub trait AuditSink: Send + Sync + fmt::Debug + 'static {
    /// Takes a record. Called on the tasks of connections: it must not block. A sink that cannot take
    /// a record now counts it and says so later.
    fn record(&self, record: &AuditRecord);
}

/// The default sink: `tracing` events of the target [`AUDIT_TARGET`], refusals as warnings.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingAudit;

impl AuditSink for TracingAudit {
    fn record(&self, record: &AuditRecord) {
        let event = record.event.name();
        let detail = &record.event;
        let peer = record.subject.as_ref().map(tracing::field::display);
        match record.event.outcome() {
            outcome @ (AuditOutcome::Allowed | AuditOutcome::Ended) => {
                let outcome = outcome.as_str();
                tracing::info!(target: AUDIT_TARGET, event, peer, %detail, "{outcome}");
            }
            AuditOutcome::Refused => {
                tracing::warn!(target: AUDIT_TARGET, event, peer, %detail, "refused");
            }
        }
    }
}

/// The audit log of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sink: Arc<dyn AuditSink>,
    clock: Clock,
    budget: Mutex<Budget>,
}

impl Audit {
    pub(crate) fn new(sink: Arc<dyn AuditSink>, clock: Clock) -> Self {
        Self {
            inner: Arc::new(Inner {
                sink,
                clock,
                budget: Mutex::new(Budget::new()),
            }),
        }
    }

    /// Records what concerns nobody who is known.
    pub(crate) fn record(&self, event: AuditEvent) {
        self.take(Cause::Unidentified, || None, event);
    }

    /// Records what concerns a peer that has no connection yet, or none any more.
    pub(crate) fn record_peer(
        &self,
        peer: &PeerIdentity,
        connection: Option<ConnectionId>,
        event: AuditEvent,
    ) {
        let subject = || Some(AuditSubject::of(peer, connection));
        self.take(Cause::Account(peer.account().clone()), subject, event);
    }

    /// Records what concerns the peer of a connection.
    pub(crate) fn record_connection(&self, connection: &IpcConnection, event: AuditEvent) {
        let subject = || Some(AuditSubject::of_connection(connection));
        let cause = Cause::Account(connection.account().clone());
        self.take(cause, subject, event);
    }

    /// Says what was left out, if its time is over. Called once in each [`AUDIT_WINDOW`] at least.
    pub(crate) fn turn(&self) {
        let suppressed = self.budget(|budget| budget.turn(Instant::now()));
        self.tell(suppressed);
    }

    /// Says what was left out, at the end.
    pub(crate) fn finish(&self) {
        let suppressed = self.budget(Budget::close);
        self.tell(suppressed);
    }

    fn take(
        &self,
        cause: Cause,
        subject: impl FnOnce() -> Option<AuditSubject>,
        event: AuditEvent,
    ) {
        let (suppressed, admitted) = self.budget(|budget| {
            let suppressed = budget.turn(Instant::now());
            let admitted = !event.is_limited() || budget.admit(cause);
            (suppressed, admitted)
        });
        self.tell(suppressed);
        if admitted {
            self.hand_over(subject(), event);
        } else {
            counter!("ipc_audit_suppressed_total").increment(1);
        }
    }

    fn tell(&self, suppressed: Suppressed) {
        for (cause, records) in suppressed {
            let account = match &cause {
                Cause::Account(account) => Some(account.as_str()),
                Cause::Unidentified | Cause::Others => None,
            };
            let subject = account.map(|account| AuditSubject {
                account: AuditText::new(account),
                os_session: None,
                session: None,
                process_id: None,
                connection: None,
            });
            self.hand_over(subject, AuditEvent::Suppressed { records });
        }
    }

    /// The sink is code of the user's. Its panic is its own; the record counts as lost.
    fn hand_over(&self, subject: Option<AuditSubject>, event: AuditEvent) {
        let record = AuditRecord {
            time: self.inner.clock.now(),
            subject,
            event,
        };
        let taken = catch_unwind(AssertUnwindSafe(|| self.inner.sink.record(&record)));
        if taken.is_err() {
            counter!("ipc_audit_lost_total").increment(1);
            tracing::error!(event = record.event.name(), "the audit sink panicked");
        }
    }

    /// No code of the user's runs in here.
    fn budget<T>(&self, look: impl FnOnce(&mut Budget) -> T) -> T {
        let budget = self.inner.budget.lock();
        look(&mut budget.unwrap_or_else(PoisonError::into_inner))
    }
}
