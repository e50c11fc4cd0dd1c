//! Metrics through the `metrics` facade. Handles are made once per message type, so that a
//! message costs a few atomic additions; labels come from closed sets, so that no peer can grow
//! the number of series.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `ipc_messages_total` | counter | `type`, `direction` (`in`, `out`) |
//! | `ipc_bytes_total` | counter, bytes with the length prefix, as they are without compression | `type`, `direction` |
//! | `ipc_compressed_bytes_total` | counter, bytes with the length prefix of what was compressed: as it was before (`plain`) and on the wire (`wire`) | `direction`, `form` |
//! | `ipc_handler_seconds` | histogram, from arrival to the handler's end | `type` |
//! | `ipc_round_trip_seconds` | histogram, from acceptance to the answer | `type` |
//! | `ipc_outbound_messages` | histogram, senders' messages in one write | |
//! | `ipc_connections` | gauge | `state` |
//! | `ipc_inbox_messages` | gauge, messages received and not yet handled | |
//! | `ipc_refusals_total` | counter | `reason` |
//! | `ipc_audit_suppressed_total` | counter, records left out because one account caused too many | |
//! | `ipc_audit_lost_total` | counter, records that an audit sink did not take because it panicked | |
//! | `ipc_disconnects_total` | counter | `reason` |
//! | `ipc_stuck_peers_total` | counter, peers that said that a message had been waiting for its handler's end for over a heartbeat interval | |
//! | `ipc_late_answers_total` | counter, answers to requests that were given up before, dropped | |
//! | `ipc_late_items_total` | counter, items of such requests, and of unknown ones, dropped | |
//! | `ipc_store_commit_messages` | histogram, messages in one commit of a store | |
//! | `ipc_store_commit_seconds` | histogram | |
//! | `ipc_store_commit_failures_total` | counter, commits of which nothing was stored | |
//! | `ipc_store_refusals_total` | counter, messages put off because too many wait for the disk, and journal entries lost | |
//! | `ipc_mail_total` | counter, mail that is settled | `outcome` |
//! | `ipc_unsent_messages_total` | counter, accepted and not written when a connection ended | |
//!
//! A message in a batch counts for its own type, and its bytes for that and for `BATCH`.
//! A type that this program neither handles nor sends counts as `other`. Install the recorder
//! before the server starts or the client connects.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use migration_ipc_protocol::message_types;

/// The label of types that nobody here knows.
const OTHER: &str = "other";

/// The metrics of one server or client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The built-in types and those with handlers.
    known: HashMap<&'static str, Arc<TypeMetrics>, RandomState>,
    /// Types that this program sends and does not handle; grows only by names that it contains.
    sent: RwLock<HashMap<&'static str, Arc<TypeMetrics>, RandomState>>,
    other: Arc<TypeMetrics>,
    inbox: Gauge,
    outbound: Histogram,
    compressed_in: CompressedBytes,
    compressed_out: CompressedBytes,
}

/// What compression makes of frames in one direction.
#[derive(Debug)]
struct CompressedBytes {
    plain: Counter,
    wire: Counter,
}

impl CompressedBytes {
    fn new(direction: &'static str) -> Self {
        let form = |form: &'static str| counter!("ipc_compressed_bytes_total", "direction" => direction, "form" => form);
        Self {
            plain: form("plain"),
            wire: form("wire"),
        }
    }

    fn add(&self, plain: usize, wire: usize) {
        self.plain.increment(plain as u64);
        self.wire.increment(wire as u64);
    }
}

/// The metrics of one message type.
pub(crate) struct TypeMetrics {
    name: &'static str,
    messages_in: Counter,
    messages_out: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    handler: Histogram,
    round_trip: Histogram,
}

impl TypeMetrics {
    fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            messages_in: counter!("ipc_messages_total", "type" => name, "direction" => "in"),
            messages_out: counter!("ipc_messages_total", "type" => name, "direction" => "out"),
            bytes_in: counter!("ipc_bytes_total", "type" => name, "direction" => "in"),
            bytes_out: counter!("ipc_bytes_total", "type" => name, "direction" => "out"),
            handler: histogram!("ipc_handler_seconds", "type" => name),
            round_trip: histogram!("ipc_round_trip_seconds", "type" => name),
        })
    }

    pub(crate) fn received(&self, frame: usize) {
        self.messages_in.increment(1);
        self.bytes_in.increment(frame as u64);
    }

    fn sent(&self, frame: usize) {
        self.messages_out.increment(1);
        self.bytes_out.increment(frame as u64);
    }

    pub(crate) fn handled(&self, took: Duration) {
        self.handler.record(took);
    }

    pub(crate) fn answered(&self, took: Duration) {
        self.round_trip.record(took);
    }
}

impl fmt::Debug for TypeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypeMetrics").field(&self.name).finish()
    }
}

impl Telemetry {
    pub(crate) fn new(handled: impl Iterator<Item = &'static str>) -> Self {
        let known = message_types::PLAIN
            .into_iter()
            .chain(message_types::NEGOTIATED)
            .chain(handled)
            .map(|name| (name, TypeMetrics::new(name)))
            .collect();
        Self {
            inner: Arc::new(Inner {
                known,
                sent: RwLock::default(),
                other: TypeMetrics::new(OTHER),
                inbox: gauge!("ipc_inbox_messages"),
                outbound: histogram!("ipc_outbound_messages"),
                compressed_in: CompressedBytes::new("in"),
                compressed_out: CompressedBytes::new("out"),
            }),
        }
    }

    /// The metrics of a type that somebody else names.
    pub(crate) fn type_of(&self, name: &str) -> &Arc<TypeMetrics> {
        self.inner.known.get(name).unwrap_or(&self.inner.other)
    }

    /// A name that is safe as a label for a type that somebody else names.
    pub(crate) fn known_type(&self, name: &str) -> &'static str {
        self.inner
            .known
            .get_key_value(name)
            .map_or(OTHER, |(known, _)| *known)
    }

    pub(crate) fn sent(&self, name: &'static str, frame: usize) {
        if let Some(metrics) = self.inner.known.get(name) {
            return metrics.sent(frame);
        }
        {
            let sent = self
                .inner
                .sent
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(metrics) = sent.get(name) {
                return metrics.sent(frame);
            }
        }
        let mut sent = self
            .inner
            .sent
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        sent.entry(name)
            .or_insert_with(|| TypeMetrics::new(name))
            .sent(frame);
    }

    /// A frame came compressed; its lengths as it was before, and on the wire.
    pub(crate) fn received_compressed(&self, plain: usize, wire: usize) {
        self.inner.compressed_in.add(plain, wire);
    }

    /// A frame went out compressed; see above.
    pub(crate) fn sent_compressed(&self, plain: usize, wire: usize) {
        self.inner.compressed_out.add(plain, wire);
    }

    /// How many messages went out in one write.
    pub(crate) fn wrote(&self, messages: usize) {
        self.inner.outbound.record(messages as f64);
    }

    pub(crate) fn inbox_gauge(&self) -> InboxGauge {
        InboxGauge {
            gauge: self.inner.inbox.clone(),
            reported: 0,
        }
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        counter!("ipc_refusals_total", "reason" => reason).increment(1);
    }

    pub(crate) fn peer_stuck(&self) {
        counter!("ipc_stuck_peers_total").increment(1);
    }

    pub(crate) fn late_answer(&self) {
        counter!("ipc_late_answers_total").increment(1);
    }

    pub(crate) fn late_item(&self) {
        counter!("ipc_late_items_total").increment(1);
    }

    pub(crate) fn disconnected(&self, reason: &'static str, unsent: usize) {
        counter!("ipc_disconnects_total", "reason" => reason).increment(1);
        counter!("ipc_unsent_messages_total").increment(unsent as u64);
    }
}

/// One connection's part of the gauge of waiting messages; taken back when dropped.
pub(crate) struct InboxGauge {
    gauge: Gauge,
    reported: usize,
}

impl InboxGauge {
    pub(crate) fn set(&mut self, messages: usize) {
        if messages > self.reported {
            self.gauge.increment((messages - self.reported) as f64);
        } else if messages < self.reported {
            self.gauge.decrement((self.reported - messages) as f64);
        }
        self.reported = messages;
    }
}

impl Drop for InboxGauge {
    fn drop(&mut self) {
        self.set(0);
    }
}
