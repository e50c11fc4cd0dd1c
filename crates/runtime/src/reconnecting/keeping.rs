//! The log's side of what is shared: what it is to do next, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use migration_ipc_store::outbox::OutboxError;
use tokio::time::{Instant, sleep_until};

use super::desk::Due;
use super::log::{Done, Kept, OutboxFailure, Turn};
use super::queue::Awaited;
use super::shared::{Core, Doors, OnDisk, Shared};
use crate::connection::SendError;
use crate::delivery::Fate;

/// How long a stream waits whose next message the disk could not give, or mark.
const DISK_DELAY: Duration = Duration::from_secs(1);

impl Shared {
    /// Waits for the log's next turn; `None` once the client is closed and nothing is left to do.
    pub(super) async fn next_turn(&self, leave_alone_until: Option<Instant>) -> Option<Turn> {
        loop {
            let due = {
                let mut core = self.lock();
                let closed = matches!(core.doors, Doors::Closed);
                let disk = core.disk.as_mut()?;
                let due = disk.desk.due(leave_alone_until);
                match due {
                    Due::Now => return Some(disk.take_turn()),
                    // One last turn for what is settled, unless the disk failed the last time.
                    Due::At(_) if closed && leave_alone_until.is_none() => {
                        return Some(disk.take_turn());
                    }
                    Due::At(_) | Due::Nothing if closed => return None,
                    Due::At(_) | Due::Nothing => due,
                }
            };
            let time = async {
                match due {
                    Due::At(at) => sleep_until(at).await,
                    Due::Now | Due::Nothing => std::future::pending().await,
                }
            };
            let wake = tokio::select! {
                biased;
                () = time => Some(()),
                () = self.log_work.notified() => None,
            };
            if wake.is_some() {
                let mut core = self.lock();
                return Some(core.disk.as_mut()?.take_turn());
            }
        }
    }

    pub(super) fn finish_turn(&self, done: Done) {
        self.lock().finish_turn(done);
        self.work.notify_one();
        self.changed.notify_one();
        self.room.notify_waiters();
    }

    /// The outbox is gone; whoever waits for it is told.
    pub(super) fn lose_outbox(&self) {
        tracing::error!("the outbox is lost to a failure: nothing more is kept or sent from it");
        let mut core = self.lock();
        let Some(disk) = &mut core.disk else { return };
        disk.lost = true;
        for batch in disk.desk.take_batches() {
            core.turn_away(batch, Arc::new(OutboxFailure::Gone));
        }
        drop(core);
        self.room.notify_waiters();
    }
}

impl OnDisk {
    fn take_turn(&mut self) -> Turn {
        let renumber = match self.desk.to_renumber() {
            Some(below) => self.to_renumber(below),
            None => Vec::new(),
        };
        self.desk.take_turn(renumber)
    }

    /// Messages of this run that the service would take for others, which had their numbers before
    /// this outbox forgot it. Those of earlier runs may be these others.
    fn to_renumber(&self, below: u64) -> Vec<u64> {
        self.queue
            .waiting_below(below)
            .filter(|(_, entry)| matches!(entry.awaited, Awaited::Receipt(_)))
            .filter(|(_, entry)| !entry.history.attempted)
            .map(|(number, _)| number)
            .collect()
    }

    fn renumber(&mut self, old: u64, new: u64, now: Instant) {
        self.desk.settle(old, now);
        match self.queue.take(old) {
            Some(mut entry) => {
                // It was certainly not sent, so its mark means nothing.
                if let Some(mark) = entry.history.mark.take() {
                    self.desk.settle(mark, now);
                }
                self.queue.insert(new, entry);
            }
            // It came to its end meanwhile.
            None => self.desk.settle(new, now),
        }
    }
}

impl Core {
    fn finish_turn(&mut self, done: Done) {
        let now = Instant::now();
        let Some(disk) = &mut self.disk else { return };
        let synced = done.trouble.is_none();
        disk.desk.finish_sync(done.floor, synced, now);
        for (old, new) in done.renumbered {
            disk.renumber(old, new, now);
        }
        disk.desk.finish_numbering(done.next, done.still_to_number);
        let batches = disk.desk.take_accepting();
        // What needs a new number comes first, and the disk cannot give it one.
        let behind = match (&done.trouble, done.still_to_number) {
            (Some(trouble), Some(_)) => Some((disk.desk.take_batches(), Arc::clone(trouble))),
            (Some(_) | None, _) => None,
        };
        let mut accepted = 0;
        for (batch, (records, numbers)) in batches.into_iter().zip(done.batches) {
            match numbers {
                Ok(numbers) => {
                    accepted += batch.entries.len();
                    self.enter(batch, records, numbers);
                }
                Err(error) => {
                    tracing::warn!(%error, "messages were not accepted");
                    self.turn_away(batch, error);
                }
            }
        }
        for (batch, error) in behind.into_iter().flat_map(|(batches, error)| {
            batches
                .into_iter()
                .map(move |batch| (batch, Arc::clone(&error)))
        }) {
            self.turn_away(batch, error);
        }
        self.metrics.committed(accepted);
        self.finish_marks(done.marks, now);
        self.finish_reads(done.reads, now);
    }

    fn finish_marks(&mut self, marks: Kept<Vec<(u64, u64)>>, now: Instant) {
        let Some(disk) = &mut self.disk else { return };
        match marks {
            Ok(marks) => {
                for (number, mark) in marks {
                    disk.desk.finish_mark(number);
                    match disk.queue.entry_mut(number) {
                        Some(entry) => entry.history.mark = Some(mark),
                        // It came to its end meanwhile.
                        None => disk.desk.settle(mark, now),
                    }
                }
            }
            Err(error) => {
                for number in disk.desk.take_marking() {
                    if let Some(entry) = disk.queue.entry_mut(number) {
                        tracing::warn!(number, %error, "the disk takes no mark; sending waits");
                        let stream = entry.stream.clone();
                        disk.queue.put_off(stream, now + DISK_DELAY);
                    }
                }
            }
        }
    }

    fn finish_reads(&mut self, reads: Vec<(u64, Result<Vec<u8>, OutboxError>)>, now: Instant) {
        if reads.is_empty() {
            return;
        }
        if let Some(disk) = &mut self.disk {
            disk.desk.finish_read();
        }
        for (number, read) in reads {
            let Some(disk) = &mut self.disk else { return };
            let Some(entry) = disk.queue.entry_mut(number) else {
                continue;
            };
            match read {
                Ok(record) => disk.desk.insert_record(number, record),
                Err(error @ (OutboxError::Damaged { .. } | OutboxError::NotWaiting { .. })) => {
                    tracing::error!(number, %error, "a message of the outbox cannot be sent");
                    let attempted = entry.history.attempted;
                    let error = SendError::NotStored(Arc::new(error.into()));
                    let fate = if attempted {
                        Fate::Unknown(error)
                    } else {
                        Fate::NotSent(error)
                    };
                    if let Some(entry) = disk.queue.take(number) {
                        self.settle_disk(number, entry, fate, now);
                    }
                }
                Err(error) => {
                    tracing::warn!(number, %error, "a message of the outbox cannot be read yet");
                    let stream = entry.stream.clone();
                    disk.queue.put_off(stream, now + DISK_DELAY);
                }
            }
        }
    }
}
