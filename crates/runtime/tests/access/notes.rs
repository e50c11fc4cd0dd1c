//! An audit sink that keeps what it gets.

use std::sync::{Arc, Mutex};

use migration_ipc::{AuditEvent, AuditRecord, AuditSink};

#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<AuditRecord>>>);

impl AuditSink for Notes {
    fn record(&self, record: &AuditRecord) {
        self.0.lock().unwrap().push(record.clone());
    }
}

impl Notes {
    pub(crate) fn all(&self) -> Vec<AuditRecord> {
        self.0.lock().unwrap().clone()
    }

    /// The records of this name.
    pub(crate) fn of(&self, name: &str) -> Vec<AuditRecord> {
        let mut records = self.all();
        records.retain(|record| record.event.name() == name);
        records
    }

    /// As what, and by whom, each record of this name is.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let line = |record: &AuditRecord| {
            let account = record.subject.as_ref().map(|it| it.account.to_string());
            format!("{}: {}", account.unwrap_or_default(), record.event)
        };
        self.of(name).iter().map(line).collect()
    }

    /// How many records were left out, by those that say so.
    pub(crate) fn suppressed(&self) -> u64 {
        let records = self.all();
        let counts = records.iter().map(|record| match record.event {
            AuditEvent::Suppressed { records } => records,
            _ => 0,
        });
        counts.sum()
    }
}
