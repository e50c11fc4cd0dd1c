//! From connections to the disk, without making any of them wait.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use migration_ipc::{AuditRecord, AuditSink, Timestamp, TracingAudit};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::file::{AuditFiles, FILE_BYTES};

/// How many records wait for the disk: some seconds of a thousand agents that connect at once. At 300
/// bytes each they take 300 KiB.
pub(super) const QUEUE: usize = 1024;

/// How many records one write has at most.
const BATCH: usize = 256;

/// Takes records: into the log like all else, and into the file.
#[derive(Debug, Clone)]
pub(crate) struct AuditFile {
    lines: mpsc::Sender<String>,
    lost: Arc<AtomicU64>,
}

/// Owns the files; a task of the service.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    lines: mpsc::Receiver<String>,
    lost: Arc<AtomicU64>,
    files: AuditFiles,
    trouble: Trouble,
}

/// Whether the disk took the last records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Told,
}

/// Opens the log in a folder that only this account can use. Blocks.
pub(crate) fn open(folder: &Path) -> io::Result<(AuditFile, AuditWriter)> {
    Ok(connect(AuditFiles::open(folder, FILE_BYTES)?))
}

pub(super) fn connect(files: AuditFiles) -> (AuditFile, AuditWriter) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let lost = Arc::default();
    let sink = AuditFile {
        lines: sender,
        lost: Arc::clone(&lost),
    };
    let writer = AuditWriter {
        lines: receiver,
        lost,
        files,
        trouble: Trouble::None,
    };
    (sink, writer)
}

impl AuditSink for AuditFile {
    fn record(&self, record: &AuditRecord) {
        TracingAudit.record(record);
        let taken = match serde_json::to_string(record) {
            Ok(line) => self.lines.try_send(line).is_ok(),
            Err(_) => false,
        };
        if !taken {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl AuditWriter {
    /// Writes until it is told to stop, or no sink is left; what waits then is written too.
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut batch = Vec::new();
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    self.lines.close();
                }
                taken = self.lines.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        break;
                    }
                    self = match self.write(std::mem::take(&mut batch)).await {
                        Some(writer) => writer,
                        None => return,
                    };
                }
            }
        }
        if let Some(mut writer) = self.write(Vec::new()).await {
            let syncing = tokio::task::spawn_blocking(move || writer.files.sync());
            if !matches!(syncing.await, Ok(Ok(()))) {
                tracing::error!("the audit log may not be on the disk to its end");
            }
        }
    }

    /// Writes records, and behind them how many were lost since the last time. `None` if the thread
    /// that did it failed.
    pub(super) async fn write(mut self, mut batch: Vec<String>) -> Option<Self> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let records = batch.len() as u64;
        if lost > 0 {
            let now = Timestamp::from(SystemTime::now());
            let line = json!({
                "time": now, "event": "lost", "outcome": "ended", "records": lost
            });
            batch.push(line.to_string());
            tracing::error!(records = lost, "records of the audit log are lost");
        }
        if batch.is_empty() {
            return Some(self);
        }
        let writing = tokio::task::spawn_blocking(move || {
            let written = self.files.append(&batch);
            (self, written)
        });
        let (mut writer, written) = match writing.await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "the audit log ends: its thread failed");
                return None;
            }
        };
        writer.trouble = match written {
            Ok(()) => Trouble::None,
            Err(error) => {
                // Some of them may be there: to count too many is the better mistake.
                writer.lost.fetch_add(records + lost, Ordering::Relaxed);
                if writer.trouble == Trouble::None {
                    tracing::error!(%error, "the audit log cannot be written");
                }
                Trouble::Told
            }
        };
        Some(writer)
    }
}
