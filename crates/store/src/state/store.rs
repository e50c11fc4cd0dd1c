//! The store itself.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use migration_ipc_protocol::{OutboxId, Timestamp};
use redb::Database;

use super::commit;
use super::effects::Work;
use super::error::{Fault, StoreError};
use super::files;
use super::journal::MAX_JOURNAL;
use super::mail::{self, KeptMail};
use super::reader::Reader;
use super::rows::{Rows, Tables};
use super::shared::{Found, Shared};
use crate::disk::Disk;
use crate::ledger::{Ledger, StoredOutcome};

/// How a store is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreOptions {
    /// Whether handled messages are listed.
    pub journal: Journal,
}

/// Whether handled messages are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Journal {
    /// They are not.
    #[default]
    Off,
    /// The newest ones, so many. Too low a number, and an operator looks in vain for what happened
    /// yesterday; each entry takes about 200 bytes of disk, all of which are read when the store is
    /// opened.
    Newest(NonZeroU64),
}

impl Journal {
    /// The newest [`MAX_JOURNAL`] messages.
    #[must_use]
    pub fn newest() -> Self {
        NonZeroU64::new(MAX_JOURNAL).map_or(Self::Off, Self::Newest)
    }

    fn bound(self) -> Option<u64> {
        match self {
            Self::Off => None,
            Self::Newest(newest) => Some(newest.get()),
        }
    }
}

/// What was found when a store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// There was a store of a newer version. It is kept, and this store began empty.
    pub set_aside: Option<SetAside>,
}

/// A store of a newer version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The name that the file has now.
    pub name: String,
    /// The version of its schema.
    pub schema: u64,
}

/// The service's store. Its methods block on the disk.
///
/// One value commits; [`Ledger`] and [`Reader`] are handles for everybody else. Dropped, it closes
/// its file in good order when it can; a crash instead costs no more than time when it is opened
/// again.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    outbox: OutboxId,
    journal: Option<u64>,
}

impl Store {
    /// Opens the store in the file of this name, or makes one; `fresh`, which should be random, is
    /// the [outbox id](Self::outbox) of a new one.
    ///
    /// Everything in the file is verified, which takes about a second for some hundred megabytes.
    /// That only one process has it open is the business of the `disk`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the file is damaged, and [`StoreError::Disk`] when it cannot be
    /// used. The file stays as it is.
    pub fn open(
        disk: Arc<dyn Disk>,
        name: &str,
        options: StoreOptions,
        fresh: OutboxId,
    ) -> Result<(Self, OpenReport), StoreError> {
        let mut report = OpenReport::default();
        let shared = Arc::new(Shared::new(disk, name));
        let disk = &*shared.disk;
        let found = match exists(disk, name)? {
            true => shared.open()?,
            false => begin(&shared, fresh)?,
        };
        let found = match found {
            Found::Other { schema } if schema > files::SCHEMA => {
                let kept = files::set_aside(disk, name, schema)?;
                tracing::warn!(%kept, schema, "the store of a newer version was set aside");
                report.set_aside = Some(SetAside { name: kept, schema });
                begin(&shared, fresh)?
            }
            found => found,
        };
        match found {
            Found::Ours { outbox } => {
                let store = Self {
                    shared,
                    outbox,
                    journal: options.journal.bound(),
                };
                Ok((store, report))
            }
            Found::Other { schema } => Err(StoreError::damaged(
                name,
                &format!(
                    "its schema is {schema}, and this version reads {}",
                    files::SCHEMA
                ),
            )),
        }
    }

    /// The id under which this side sends the mail that it keeps.
    #[must_use]
    pub fn outbox(&self) -> OutboxId {
        self.outbox
    }

    /// Whether handled messages are listed.
    #[must_use]
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// The ledger of this store.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.shared.book.clone(), self.shared.clone())
    }

    /// A reader of this store.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.shared))
    }

    /// Stores all of the works, which are taken out of the list in any case, in one transaction.
    /// Returns how each of them ended, in their order.
    ///
    /// Each message is stored as a whole: its effects, that it is done, its outcome, and its journal
    /// entry. An outcome that is [put off](StoredOutcome::is_put_off) means that nothing of this
    /// one was stored and its sender is to send it again. When this returns, everything is durable.
    ///
    /// # Errors
    /// When the disk or the database fails: then every message is put off. What is on the disk is
    /// all of it or nothing; if it is all of it after all, the messages are found done when they
    /// arrive again.
    pub fn commit(&mut self, works: &mut Vec<Work>) -> Result<Vec<StoredOutcome>, StoreError> {
        let works = works.drain(..);
        if works.len() == 0 {
            return Ok(Vec::new());
        }
        let (book, journal) = (&self.shared.book, self.journal);
        self.transact(|database| commit::commit(database, book, journal, works))
    }

    /// Takes mail away whose time is over by `now`, some hundred messages at most, and keeps it as
    /// dead letters; but not these numbers, which may be with an agent. Returns what it took; empty
    /// when there is nothing to do any more.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn expire_mail(
        &mut self,
        now: Timestamp,
        except: &HashSet<u64>,
    ) -> Result<Vec<KeptMail>, StoreError> {
        self.transact(|database| {
            let transaction = commit::begin(database)?;
            let mut tables = Tables::new(&transaction);
            let mut rows = Rows::new(&mut tables);
            let expired = mail::expire(&mut rows, now, except).unwrap_or_default();
            let changes = rows.finish()?;
            if expired.is_empty() {
                return Ok(expired);
            }
            tables.apply(changes)?;
            drop(tables);
            transaction.commit()?;
            Ok(expired)
        })
    }

    /// Closes the file in good order, so that opening it need not repair anything.
    ///
    /// # Errors
    /// When the disk fails. What was committed is safe nevertheless.
    pub fn close(self) -> Result<(), StoreError> {
        self.shared.close()
    }

    /// Runs a transaction. After a failure the database is given up: what is in memory of it may
    /// not be what is on the disk.
    fn transact<T>(
        &self,
        transaction: impl FnOnce(&Database) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let database = self.shared.database()?;
        transaction(&database).map_err(|fault| {
            self.shared.give_up();
            fault.in_file(&self.shared.name)
        })
    }
}

fn exists(disk: &dyn Disk, name: &str) -> Result<bool, StoreError> {
    let names = disk.list().map_err(StoreError::disk("look for", name))?;
    Ok(names.iter().any(|listed| listed == name))
}

fn begin(shared: &Shared, outbox: OutboxId) -> Result<Found, StoreError> {
    files::create(&*shared.disk, &shared.name, outbox)?;
    shared.open()
}
