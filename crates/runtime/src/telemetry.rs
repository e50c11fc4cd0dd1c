//! Metrics through the `metrics` facade. Handles are made once per message type, so that a
//! message costs a few atomic additions; labels come from closed sets, so that no peer can grow
//! the number of series.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `ipc_messages_total` | counter | `type`, `direction` (`in`, `out`) |
//! | `ipc_bytes_total` | counter, bytes with the length prefix | `type`, `direction` |
//! | `ipc_handler_seconds` | histogram, from arrival to the handler's end | `type` |
//! | `ipc_round_trip_seconds` | histogram, from acceptance to the answer | `type` |
//! | `ipc_connections` | gauge | `state` |
//! | `ipc_inbox_messages` | gauge, messages received and not yet handled | |
//! | `ipc_refusals_total` | counter | `reason` |
//! | `ipc_disconnects_total` | counter | `reason` |
//! | `ipc_unsent_messages_total` | counter, accepted and not written when a connection ended | |
//!
//! A type that this program neither handles nor sends counts as `other`. Install the recorder
//! before the server starts or the client connects.

use std::collections::HashMap;
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
    /// Grows only by names that this program itself contains.
    types: RwLock<HashMap<&'static str, TypeMetrics, RandomState>>,
    other: TypeMetrics,
    inbox: Gauge,
}

#[derive(Clone)]
struct TypeMetrics {
    messages_in: Counter,
    messages_out: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    handler: Histogram,
    round_trip: Histogram,
}

impl std::fmt::Debug for TypeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TypeMetrics").finish_non_exhaustive()
    }
}

impl TypeMetrics {
    fn new(name: &'static str) -> Self {
        Self {
            messages_in: counter!("ipc_messages_total", "type" => name, "direction" => "in"),
            messages_out: counter!("ipc_messages_total", "type" => name, "direction" => "out"),
            bytes_in: counter!("ipc_bytes_total", "type" => name, "direction" => "in"),
            bytes_out: counter!("ipc_bytes_total", "type" => name, "direction" => "out"),
            handler: histogram!("ipc_handler_seconds", "type" => name),
            round_trip: histogram!("ipc_round_trip_seconds", "type" => name),
        }
    }
}

impl Telemetry {
    pub(crate) fn new(handled: impl Iterator<Item = &'static str>) -> Self {
        let known = message_types::PLAIN
            .into_iter()
            .chain(message_types::CONTROL)
            .chain(handled);
        let types = known.map(|name| (name, TypeMetrics::new(name))).collect();
        Self {
            inner: Arc::new(Inner {
                types: RwLock::new(types),
                other: TypeMetrics::new(OTHER),
                inbox: gauge!("ipc_inbox_messages"),
            }),
        }
    }

    /// A name that is safe as a label for a type that comes from elsewhere.
    pub(crate) fn known_type(&self, name: &str) -> &'static str {
        let types = self
            .inner
            .types
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        types.get_key_value(name).map_or(OTHER, |(known, _)| *known)
    }

    pub(crate) fn sent(&self, name: &'static str, frame: usize) {
        self.with_own_type(name, |metrics| {
            metrics.messages_out.increment(1);
            metrics.bytes_out.increment(frame as u64);
        });
    }

    pub(crate) fn received(&self, name: &str, frame: usize) {
        self.with_type(name, |metrics| {
            metrics.messages_in.increment(1);
            metrics.bytes_in.increment(frame as u64);
        });
    }

    pub(crate) fn handled(&self, name: &str, took: Duration) {
        self.with_type(name, |metrics| metrics.handler.record(took));
    }

    pub(crate) fn answered(&self, name: &'static str, took: Duration) {
        self.with_type(name, |metrics| metrics.round_trip.record(took));
    }

    pub(crate) fn inbox_grew(&self, by: usize) {
        self.inner.inbox.increment(by as f64);
    }

    pub(crate) fn inbox_shrank(&self, by: usize) {
        self.inner.inbox.decrement(by as f64);
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        counter!("ipc_refusals_total", "reason" => reason).increment(1);
    }

    pub(crate) fn disconnected(&self, reason: &'static str, unsent: usize) {
        counter!("ipc_disconnects_total", "reason" => reason).increment(1);
        counter!("ipc_unsent_messages_total").increment(unsent as u64);
    }

    fn with_type(&self, name: &str, record: impl FnOnce(&TypeMetrics)) {
        let types = self
            .inner
            .types
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        record(types.get(name).unwrap_or(&self.inner.other));
    }

    fn with_own_type(&self, name: &'static str, record: impl FnOnce(&TypeMetrics)) {
        {
            let types = self
                .inner
                .types
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(metrics) = types.get(name) {
                return record(metrics);
            }
        }
        let mut types = self
            .inner
            .types
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        record(types.entry(name).or_insert_with(|| TypeMetrics::new(name)));
    }
}
