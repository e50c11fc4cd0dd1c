//! What the store, its readers and the ledger share: the open database.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration_ipc_protocol::OutboxId;
use redb::{Database, ReadableDatabase};

use super::backend::Health;
use super::error::{Fault, StoreError};
use super::files::{self, Content};
use super::tables::OUTCOMES;
use crate::disk::Disk;
use crate::ledger::{Outcomes, SharedBook, Slot, StoredOutcome};

/// Bytes of the file that are kept in memory: enough for the rows of a busy service, and little
/// beside what its connections take.
pub const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The database, opened again after it failed.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) name: Box<str>,
    pub(super) book: SharedBook,
    access: Mutex<Access>,
}

enum Access {
    Open {
        database: Arc<Database>,
        health: Health,
    },
    Closed,
    /// Closed, and what can be read in the file may not be on the disk.
    Unsynced,
}

/// What was found when the database was opened.
#[derive(Debug)]
pub(super) enum Found {
    Ours { outbox: OutboxId },
    Other { schema: u64 },
}

impl Shared {
    pub(super) fn new(disk: Arc<dyn Disk>, name: &str) -> Self {
        Self {
            disk,
            name: name.into(),
            book: SharedBook::default(),
            access: Mutex::new(Access::Closed),
        }
    }

    fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open database. After [`give_up`](Self::give_up) it is opened again, and the ledger takes
    /// over what is stored in it: perhaps the commit that failed, after all.
    pub(super) fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut access = self.access();
        if let Access::Open { database, .. } = &*access {
            return Ok(Arc::clone(database));
        }
        match self.load(&mut access)? {
            (Found::Ours { .. }, database) => {
                tracing::info!(name = %self.name, "the store was opened again");
                Ok(database)
            }
            (Found::Other { schema }, _) => {
                *access = Access::Closed;
                let problem = format!("somebody replaced it: its schema is {schema}");
                Err(StoreError::damaged(&self.name, &problem))
            }
        }
    }

    /// Opens the database for the first time.
    pub(super) fn open(&self) -> Result<Found, StoreError> {
        let mut access = self.access();
        let (found, _) = self.load(&mut access)?;
        if let Found::Other { .. } = found {
            *access = Access::Closed;
        }
        Ok(found)
    }

    fn load(&self, access: &mut Access) -> Result<(Found, Arc<Database>), StoreError> {
        if let Access::Unsynced = access {
            files::rewrite(&*self.disk, &self.name)?;
            *access = Access::Closed;
        }
        let health = Health::default();
        let database = files::open(&*self.disk, &self.name, &health).inspect_err(|_| {
            if health.sync_failed() {
                *access = Access::Unsynced;
            }
        })?;
        let found = match files::read(&database, &self.name)? {
            Content::Ours { outbox, ledger } => {
                self.book.lock().load(ledger);
                Found::Ours { outbox }
            }
            Content::Other { schema } => Found::Other { schema },
        };
        let database = Arc::new(database);
        *access = Access::Open {
            database: Arc::clone(&database),
            health,
        };
        Ok((found, database))
    }

    /// Lets go of the database after a failure: nobody knows what of it is on the disk.
    pub(super) fn give_up(&self) {
        let mut access = self.access();
        if let Access::Open { health, .. } = &*access {
            health.give_up();
            *access = match health.sync_failed() {
                true => Access::Unsynced,
                false => Access::Closed,
            };
        }
    }

    /// Ends the use of the database in good order, so that it need not be repaired.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        let access = std::mem::replace(&mut *self.access(), Access::Closed);
        let Access::Open { database, .. } = access else {
            return Ok(());
        };
        match Arc::try_unwrap(database) {
            Ok(database) => database
                .close()
                .map_err(|error| Fault::from(error).in_file(&self.name)),
            // A reader is still at work; the last one closes it.
            Err(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("disk", &self.disk)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Outcomes for Shared {
    fn outcome(&self, slot: Slot, seq: u64) -> Result<Option<StoredOutcome>, StoreError> {
        let database = self.database()?;
        let read = || -> Result<Option<StoredOutcome>, Fault> {
            let outcomes = database.begin_read()?.open_table(OUTCOMES)?;
            let row = outcomes.get((slot.0, seq))?;
            let outcome = row.map(|json| serde_json::from_slice(json.value()));
            outcome
                .transpose()
                .map_err(|error| Fault::row("outcomes", &error))
        };
        read().map_err(|fault| fault.in_file(&self.name))
    }
}
