//! Messages on their way into a queue.

use std::ops::Range;
use std::sync::Arc;

use migration_ipc_store::planted::{PlantedBug, is_planted};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::desk::Batch;
use super::log::OutboxFailure;
use super::queue::{Admission, Awaited, Demand, Entry, Overflow, Rivals};
use super::shared::{Core, Doors, OnDisk, Shared};
use super::stored;
use crate::connection::{DisconnectReason, SendError};
use crate::delivery::Fate;

/// Messages that are to be accepted together or not at all; never none.
pub(super) type Letters = Vec<Entry<Vec<u8>>>;

/// What came of asking for room.
enum Asked {
    Entered,
    /// In the log's next turn.
    Kept(oneshot::Receiver<Result<(), Arc<OutboxFailure>>>),
    /// The messages come back.
    Waits(Letters),
}

impl Shared {
    /// Takes messages into memory, all in one place of the order.
    ///
    /// Cancel safe: all are taken in the last step, or none.
    pub(super) async fn accept_in_memory(
        &self,
        letters: Letters,
        overflow: Overflow,
    ) -> Result<(), SendError> {
        self.accept(letters, overflow, Core::ask_memory).await
    }

    /// Takes messages into the outbox; they are on disk when this returns.
    ///
    /// Dropped, it leaves all of them accepted or none.
    pub(super) async fn accept_on_disk(
        &self,
        letters: Letters,
        overflow: Overflow,
    ) -> Result<(), SendError> {
        self.accept(letters, overflow, Core::ask_disk).await
    }

    async fn accept(
        &self,
        mut letters: Letters,
        overflow: Overflow,
        ask: fn(&mut Core, Letters, Overflow) -> Result<Asked, SendError>,
    ) -> Result<(), SendError> {
        // A sender that never waits would keep the task, on the same worker, from its turn.
        tokio::task::coop::consume_budget().await;
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            let expiring = letters.iter().any(|letter| letter.expires.is_some());
            let asked = ask(&mut self.lock(), letters, overflow)?;
            match asked {
                Asked::Waits(returned) => {
                    letters = returned;
                    room.await;
                }
                Asked::Entered => {
                    self.work.notify_one();
                    if expiring {
                        self.changed.notify_one();
                    }
                    return Ok(());
                }
                Asked::Kept(kept) => {
                    self.log_work.notify_one();
                    return match kept.await {
                        Ok(Ok(())) => Ok(()),
                        Ok(Err(error)) => Err(SendError::NotStored(error)),
                        Err(_) => Err(SendError::NotStored(Arc::new(OutboxFailure::Gone))),
                    };
                }
            }
        }
    }
}

/// What the messages ask for.
fn demand(letters: &Letters) -> Demand<'_> {
    Demand {
        messages: letters.len(),
        bytes: letters.iter().map(|letter| u64::from(letter.bytes)).sum(),
        rivals: letters
            .iter()
            .filter_map(|letter| letter.rivals.as_deref())
            .collect::<Vec<&Rivals>>(),
    }
}

impl Core {
    fn ask_memory(&mut self, letters: Letters, overflow: Overflow) -> Result<Asked, SendError> {
        self.doors.admit()?;
        if let Doors::GaveUp(trouble) = &self.doors {
            return Err(SendError::GaveUp(trouble.clone()));
        }
        let displaced = match self.memory.admit(&demand(&letters), overflow) {
            Admission::Admitted(displaced) => displaced,
            Admission::Full if overflow == Overflow::Wait => return Ok(Asked::Waits(letters)),
            Admission::Full | Admission::TooMuch => return Err(self.full(overflow, &letters)),
        };
        self.metrics.overflowed(overflow, displaced.len());
        for (_, entry) in displaced {
            self.supersede(entry.awaited);
        }
        for letter in letters {
            self.memory.insert(self.next_number, letter);
            self.next_number += 1;
        }
        Ok(Asked::Entered)
    }

    fn ask_disk(&mut self, letters: Letters, overflow: Overflow) -> Result<Asked, SendError> {
        self.doors.admit()?;
        let Some(disk) = &mut self.disk else {
            return Err(SendError::NoOutbox);
        };
        if disk.lost {
            return Err(SendError::NotStored(Arc::new(OutboxFailure::Gone)));
        }
        let displaced = match disk.queue.admit(&demand(&letters), overflow) {
            Admission::Admitted(displaced) => displaced,
            Admission::Full if overflow == Overflow::Wait => {
                return match &self.doors {
                    Doors::GaveUp(trouble) => Err(SendError::GaveUp(trouble.clone())),
                    Doors::Open | Doors::Stopping(_) | Doors::Closed => Ok(Asked::Waits(letters)),
                };
            }
            Admission::Full | Admission::TooMuch => return Err(self.full(overflow, &letters)),
        };
        self.metrics.overflowed(overflow, displaced.len());
        let (done, kept) = oneshot::channel();
        let company = (letters.len() > 1).then_some(self.next_company);
        self.next_company += 1;
        // Of what is sealed it shows only when its turn comes whether it can be opened.
        let join = |letter: Entry<Vec<u8>>| Entry {
            company: company.filter(|_| !stored::is_sealed(&letter.body)),
            ..letter
        };
        let (entries, records) = letters.into_iter().map(join).map(Entry::split).unzip();
        disk.desk.accept(Batch {
            entries,
            records,
            displaced,
            done,
        });
        Ok(Asked::Kept(kept))
    }

    fn full(&self, overflow: Overflow, letters: &Letters) -> SendError {
        self.metrics.overflowed(overflow, letters.len());
        SendError::Full
    }

    /// A batch is on disk.
    pub(super) fn enter(&mut self, batch: Batch, records: Vec<Vec<u8>>, numbers: Range<u64>) {
        let now = Instant::now();
        for (number, entry) in batch.displaced {
            if let Some(disk) = &mut self.disk {
                disk.settle(number, &entry, now);
            }
            self.supersede(entry.awaited);
        }
        if let Some(disk) = &mut self.disk {
            let entries = batch.entries.into_iter().zip(records);
            for ((entry, record), number) in entries.zip(numbers) {
                disk.queue.insert(number, entry);
                disk.desk.keep_record(number, record);
            }
        }
        // A sender that stopped waiting dropped its end; its messages are accepted all the same.
        drop(batch.done.send(Ok(())));
    }

    fn supersede(&mut self, awaited: Awaited) {
        if is_planted(PlantedBug::OldestDroppedSilently) {
            std::mem::forget(awaited);
        } else {
            self.resolve(awaited, Fate::Superseded);
        }
    }

    /// A batch is not on disk, so everything is as it was.
    pub(super) fn turn_away(&mut self, batch: Batch, error: Arc<OutboxFailure>) {
        if let Some(OnDisk { queue, .. }) = &mut self.disk {
            for entry in &batch.entries {
                queue.release(1, u64::from(entry.bytes));
            }
            for (number, entry) in batch.displaced {
                queue.hold(1, u64::from(entry.bytes));
                queue.insert(number, entry);
            }
        }
        drop(batch.done.send(Err(error)));
    }
}

impl Doors {
    fn admit(&self) -> Result<(), SendError> {
        match self {
            Self::Open | Self::GaveUp(_) => Ok(()),
            Self::Stopping(_) | Self::Closed => Err(SendError::Closed(DisconnectReason::Stopped)),
        }
    }
}
