//! The database's file: made whole or not at all, verified when opened, set aside when newer.

use std::io;

use migration_ipc_protocol::OutboxId;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable};

use super::backend::{Backend, Health};
use super::error::{Fault, StoreError};
use super::shared::CACHE_BYTES;
use super::tables::{JOURNAL, LEDGER, META, META_OUTBOX, META_SCHEMA, OUTCOMES};
use crate::disk::{Disk, DiskFile};
use crate::ledger::{LedgerRow, OutboxKey, Slot, Window};

/// The version of the tables and of what is in them. Version 1 is that of services before this
/// crate.
pub const SCHEMA: u64 = 2;

/// Bytes that are copied at once.
const COPIED_AT_ONCE: usize = 1024 * 1024;

/// Opens the database of a file that is there, and verifies all of it. What is in it then is
/// durable, its name included, whoever wrote it and whether or not it was synced.
pub(super) fn open(disk: &dyn Disk, name: &str, health: &Health) -> Result<Database, StoreError> {
    disk.sync().map_err(StoreError::disk("sync", name))?;
    let file = disk.open(name).map_err(StoreError::disk("open", name))?;
    // redb would take an empty file for a new database.
    if file.is_empty().map_err(StoreError::disk("read", name))? {
        return Err(StoreError::damaged(name, &"it is empty"));
    }
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(Backend::new(file, health.clone()))
        .map_err(|error| match error {
            DatabaseError::Storage(redb::StorageError::Io(error)) => match error.kind() {
                // That is how redb calls a file that is no database, or ends too early.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    StoreError::damaged(name, &error)
                }
                _ => StoreError::disk("open", name)(error),
            },
            other => StoreError::damaged(name, &other),
        })
}

/// Makes a new database. Its name is durable when it is opened.
pub(super) fn create(disk: &dyn Disk, name: &str, outbox: OutboxId) -> Result<(), StoreError> {
    replace(disk, name, |file| {
        let health = Health::default();
        fill(Backend::new(file, health.clone()), outbox).map_err(|fault| {
            health.give_up();
            fault.in_file(name)
        })
    })
}

/// Writes all that can be read in a file to the disk anew, after a sync of it failed.
pub(super) fn rewrite(disk: &dyn Disk, name: &str) -> Result<(), StoreError> {
    tracing::warn!(name, "the store is written anew, because a sync failed");
    let old = disk.open(name).map_err(StoreError::disk("open", name))?;
    replace(disk, name, move |new| {
        copy(&*old, &*new).map_err(StoreError::disk("write anew", name))
    })
}

fn copy(from: &dyn DiskFile, to: &dyn DiskFile) -> io::Result<()> {
    let len = from.len()?;
    let mut buffer = vec![0; COPIED_AT_ONCE];
    let mut offset = 0;
    while offset < len {
        let rest = usize::try_from(len - offset).unwrap_or(usize::MAX);
        let part = &mut buffer[..rest.min(COPIED_AT_ONCE)];
        from.read_at(offset, part)?;
        to.write_at(offset, part)?;
        offset += part.len() as u64;
    }
    to.sync()
}

/// Makes a file under another name, and gives it the right one when it is whole.
fn replace(
    disk: &dyn Disk,
    name: &str,
    fill: impl FnOnce(Box<dyn DiskFile>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let unfinished = format!("{name}.new");
    match disk.remove(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::disk("remove", &unfinished)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let file = disk
        .create(&unfinished)
        .map_err(StoreError::disk("create", &unfinished))?;
    fill(file)?;
    disk.rename(&unfinished, name)
        .map_err(StoreError::disk("create", name))
}

fn fill(backend: Backend, outbox: OutboxId) -> Result<(), Fault> {
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let schema = serde_json::to_vec(&SCHEMA).map_err(Fault::Json)?;
        meta.insert(META_SCHEMA, schema.as_slice())?;
        let outbox = serde_json::to_vec(&outbox).map_err(Fault::Json)?;
        meta.insert(META_OUTBOX, outbox.as_slice())?;
        transaction.open_table(LEDGER)?;
        transaction.open_table(OUTCOMES)?;
        transaction.open_table(JOURNAL)?;
    }
    transaction.commit()?;
    Ok(database.close()?)
}

/// What is in the file besides what programs put there.
#[derive(Debug)]
pub(super) enum Content {
    /// A store of this version.
    Ours {
        outbox: OutboxId,
        ledger: Vec<LedgerRow>,
    },
    /// A store of another version.
    Other { schema: u64 },
}

pub(super) fn read(database: &Database, name: &str) -> Result<Content, StoreError> {
    read_content(database).map_err(|fault| fault.in_file(name))
}

fn read_content(database: &Database) -> Result<Content, Fault> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META).map_err(|error| match error {
        redb::TableError::Storage(error) => Fault::from(error),
        other => Fault::row("meta", &other),
    })?;
    let text = |key| -> Result<Vec<u8>, Fault> {
        let row = meta.get(key)?;
        let row = row.ok_or_else(|| Fault::row("meta", &format!("`{key}` is missing")))?;
        Ok(row.value().to_vec())
    };
    let bad = |error| Fault::row("meta", &error);
    let schema: u64 = serde_json::from_slice(&text(META_SCHEMA)?).map_err(bad)?;
    if schema != SCHEMA {
        return Ok(Content::Other { schema });
    }
    let outbox: OutboxId = serde_json::from_slice(&text(META_OUTBOX)?).map_err(bad)?;
    let mut ledger = Vec::new();
    for entry in transaction.open_table(LEDGER)?.iter()? {
        let (key, row) = entry?;
        let (account, id) = key.value();
        let (slot, used, window) = row.value();
        let window = Window::decode(window)
            .ok_or_else(|| Fault::row("ledger", &"a window of another length"))?;
        ledger.push(LedgerRow {
            key: OutboxKey::new(account, OutboxId::from_bytes(id)),
            slot: Slot(slot),
            used,
            window,
        });
    }
    Ok(Content::Ours { outbox, ledger })
}

/// Renames the store of a newer version to a name that is free, which it returns.
pub(super) fn set_aside(disk: &dyn Disk, name: &str, schema: u64) -> Result<String, StoreError> {
    let failed = || StoreError::disk("set aside", name);
    let taken = disk.list().map_err(failed())?;
    let plain = format!("{name}.schema-{schema}");
    let numbered = (1_u32..).map(|number| format!("{plain}.{number}"));
    let mut candidates = std::iter::once(plain.clone()).chain(numbered);
    let kept = candidates
        .find(|candidate| !taken.contains(candidate))
        .unwrap_or(plain);
    disk.rename(name, &kept).map_err(failed())?;
    Ok(kept)
}
