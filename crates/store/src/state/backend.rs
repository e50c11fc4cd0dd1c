//! The database's file, through the seam to the file system.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

use crate::disk::DiskFile;

/// A file as redb wants it. Who may open it is settled by the lock of its folder.
#[derive(Debug)]
pub(super) struct Backend {
    file: Box<dyn DiskFile>,
    health: Health,
}

/// What a backend and its owner tell each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Health(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    given_up: AtomicBool,
    sync_failed: AtomicBool,
}

impl Health {
    /// Ends all writing. After a failed commit nobody knows what of it is on the disk, so the
    /// database is opened again, and the old one must not touch the file any more, not even to
    /// close it in good order.
    pub(super) fn give_up(&self) {
        self.0.given_up.store(true, Ordering::SeqCst);
    }

    /// Whether a sync failed: what can be read in the file may not be on the disk, and no later
    /// sync will bring it there (fsync(2)).
    pub(super) fn sync_failed(&self) -> bool {
        self.0.sync_failed.load(Ordering::SeqCst)
    }

    fn check(&self) -> io::Result<()> {
        if self.0.given_up.load(Ordering::SeqCst) {
            return Err(io::Error::other("given up after a failure"));
        }
        Ok(())
    }
}

impl Backend {
    pub(super) fn new(file: Box<dyn DiskFile>, health: Health) -> Self {
        Self { file, health }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.health.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.health.check()?;
        self.file.sync().inspect_err(|_| {
            self.health.0.sync_failed.store(true, Ordering::SeqCst);
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.health.check()?;
        self.file.write_at(offset, data)
    }
}
