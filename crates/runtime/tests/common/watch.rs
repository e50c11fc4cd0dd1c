//! What an operator sees of a server: warnings in its log, and counters.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, LocalRecorderGuard, Metadata, Recorder,
    SharedString, Unit,
};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::MakeWriter;

/// Sees the log and the counters of everything on this thread, for as long as it lives. Begin it
/// before the server.
pub(crate) struct Watch {
    log: Log,
    counters: &'static Counters,
    _recording: LocalRecorderGuard<'static>,
    _logging: DefaultGuard,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        ask_each_time();
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(log.clone())
            .finish();
        // The guard borrows its recorder; a test program may keep a few hundred bytes.
        let counters: &'static Counters = Box::leak(Box::default());
        Self {
            log,
            counters,
            _recording: metrics::set_default_local_recorder(counters),
            _logging: tracing::subscriber::set_default(subscriber),
        }
    }

    /// The lines of level `WARN` and above so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.log.text().lines().map(str::to_owned).collect()
    }

    /// The value of the counter of this name and `reason`.
    pub(crate) fn counter(&self, name: &str, reason: &str) -> u64 {
        self.counter_with(name, &[("reason", reason)])
    }

    /// The value of the counter of this name and exactly these labels.
    pub(crate) fn counter_with(&self, name: &str, labels: &[(&'static str, &str)]) -> u64 {
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| Label::new(*name, (*value).to_owned()))
            .collect();
        let counters = self.counters.0.lock().unwrap();
        counters
            .get(&Key::from_parts(name.to_owned(), labels))
            .map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// Every counter there is, with its labels.
    pub(crate) fn names(&self) -> Vec<String> {
        let counters = self.counters.0.lock().unwrap();
        counters.keys().map(ToString::to_string).collect()
    }
}

/// A place in the code that logs for the first time asks the subscribers of that moment whether it
/// interests any, and keeps the answer. When a test began on another thread just then, its subscriber
/// was sometimes not among them, and that place stayed silent for it. With a subscriber that is always
/// there and never sure, every place asks each time.
pub(crate) fn ask_each_time() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another one would have been set by nobody here.
        let _first = tracing::subscriber::set_global_default(NeverSure);
    });
}

struct NeverSure;

impl Subscriber for NeverSure {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What was written to a log.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).expect("the log is text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[derive(Debug, Default)]
struct Counters(Mutex<HashMap<Key, Arc<AtomicU64>>>);

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.0.lock().unwrap();
        Counter::from_arc(Arc::clone(counters.entry(key.clone()).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
