//! How far a backup is, and the wish to end it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::names::FolderName;

/// A report is due after this many bytes ...
const REPORT_BYTES: u64 = 1024 * 1024;
/// ... or after this time, whichever comes first.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How far one category is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) category: FolderName,
    pub(crate) current_file: Option<String>,
    /// Bytes of this category that are in the destination.
    pub(crate) bytes_done: u64,
    /// Bytes that this category has, as far as is known; at least `bytes_done`.
    pub(crate) bytes_total: u64,
}

/// Asks a running scan, copy or check to end; it does so before the next block of bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<(), Cancelled> {
        if self.0.load(Ordering::Relaxed) {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

/// The work ended because it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub(crate) struct Cancelled;

/// Counts bytes of one category and reports them, neither too often nor too rarely.
pub(crate) struct Meter<'a> {
    progress: Progress,
    /// Bytes of finished files; what is beyond belongs to the file being copied.
    settled: u64,
    reported: (u64, Instant),
    report: &'a mut dyn FnMut(&Progress),
}

impl<'a> Meter<'a> {
    pub(crate) fn start(
        category: FolderName,
        bytes_total: u64,
        report: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        let progress = Progress {
            category,
            current_file: None,
            bytes_done: 0,
            bytes_total,
        };
        report(&progress);
        Self {
            progress,
            settled: 0,
            reported: (0, Instant::now()),
            report,
        }
    }

    /// A file begins, or begins again.
    pub(crate) fn begin(&mut self, file: String) {
        self.progress.current_file = Some(file);
        self.progress.bytes_done = self.settled;
        self.reported.0 = self.reported.0.min(self.settled);
    }

    pub(crate) fn moved(&mut self, bytes: u64) {
        self.progress.bytes_done += bytes;
        self.progress.bytes_total = self.progress.bytes_total.max(self.progress.bytes_done);
        self.report_if_due(Instant::now());
    }

    /// The current file is over: `planned` bytes were expected of it, `copied` are there.
    pub(crate) fn settle(&mut self, planned: u64, copied: u64) {
        self.settled += copied;
        self.progress.bytes_done = self.settled;
        let total = self.progress.bytes_total.saturating_sub(planned) + copied;
        self.progress.bytes_total = total.max(self.settled);
        self.report_if_due(Instant::now());
    }

    pub(crate) fn finish(self) {
        (self.report)(&self.progress);
    }

    fn report_if_due(&mut self, now: Instant) {
        let (bytes, at) = self.reported;
        let moved = self.progress.bytes_done.saturating_sub(bytes);
        if moved >= REPORT_BYTES || now.duration_since(at) >= REPORT_INTERVAL {
            self.reported = (self.progress.bytes_done, now);
            (self.report)(&self.progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports_of(work: impl FnOnce(&mut Meter<'_>)) -> Vec<Progress> {
        let mut reports = Vec::new();
        let mut keep = |progress: &Progress| reports.push(progress.clone());
        let mut meter = Meter::start(FolderName::from_any("files"), 4 * REPORT_BYTES, &mut keep);
        work(&mut meter);
        meter.finish();
        reports
    }

    #[test]
    fn a_report_comes_at_the_start_at_the_end_and_per_block_of_bytes() {
        let reports = reports_of(|meter| {
            meter.begin("a".to_owned());
            meter.moved(REPORT_BYTES);
            meter.settle(REPORT_BYTES, REPORT_BYTES);
        });
        let done: Vec<u64> = reports.iter().map(|report| report.bytes_done).collect();
        assert_eq!(done, [0, REPORT_BYTES, REPORT_BYTES]);
    }

    #[test]
    fn bytes_of_an_attempt_that_failed_do_not_count() {
        let reports = reports_of(|meter| {
            meter.begin("a".to_owned());
            meter.moved(3 * REPORT_BYTES);
            meter.begin("a".to_owned());
            meter.moved(REPORT_BYTES);
            meter.settle(3 * REPORT_BYTES, REPORT_BYTES);
        });
        let last = reports.last().unwrap();
        assert_eq!(
            (last.bytes_done, last.bytes_total),
            (REPORT_BYTES, 2 * REPORT_BYTES)
        );
    }

    #[test]
    fn done_never_exceeds_total() {
        let reports = reports_of(|meter| {
            meter.begin("grows".to_owned());
            meter.moved(9 * REPORT_BYTES);
            meter.settle(4 * REPORT_BYTES, 9 * REPORT_BYTES);
        });
        assert!(
            reports
                .iter()
                .all(|report| report.bytes_done <= report.bytes_total)
        );
    }
}
