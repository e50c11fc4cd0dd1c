//! The simulated disk as a store sees it, and as a test drives it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration_ipc_store::disk::{Disk, DiskFile};

use super::content::Content;
use super::names::FileId;
use super::state::{Planned, PlannedOutcome, SimCounts, State};

/// A disk in memory that can crash, fill up, fail and rot.
///
/// A clone is the same disk; [`fork`](Self::fork) gives a copy that goes its own way. After a crash
/// every handle fails, this one included, until [`restart`](Self::restart) gives a new one.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    boot: u64,
}

impl SimDisk {
    /// An empty disk of unlimited size. The seed decides what survives each crash.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(seed))),
            boot: 0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked leaves nothing half done: no operation panics between two changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of everything, with what is not synced and what is planned; open files stay with this
    /// one.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            state: Arc::new(Mutex::new(self.state().clone())),
            boot: self.boot,
        }
    }

    /// Chooses anew what survives later crashes.
    pub fn reseed(&self, seed: u64) {
        self.state().rng = fastrand::Rng::with_seed(seed);
    }

    /// The machine stops now.
    pub fn crash(&self) {
        self.state().stop();
    }

    /// The `n`th sync from now, of a file or of the names, does not return any more: the machine
    /// stops (0: the next one). What it was to write may have been written.
    pub fn crash_at_sync(&self, n: u64) {
        self.plan(n, PlannedOutcome::Crash);
    }

    /// The `n`th sync from now fails (0: the next one), once. What was to be written stays readable
    /// until a crash, and no later sync writes it.
    pub fn fail_sync(&self, n: u64) {
        self.plan(n, PlannedOutcome::Fail);
    }

    /// The next `n` removals fail, as when another program holds the file open.
    pub fn fail_removals(&self, n: u64) {
        self.state().removals_to_fail = n;
    }

    fn plan(&self, after: u64, outcome: PlannedOutcome) {
        self.state().planned.push(Planned { after, outcome });
    }

    /// Forgets the faults that were planned and did not happen yet.
    pub fn cancel_faults(&self) {
        self.state().cancel_faults();
    }

    /// Whether the machine runs: `false` between a crash and the restart.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state().running
    }

    /// The disk as the machine finds it when it starts again. Handles from before stay dead. Stops
    /// the machine first if it still runs.
    #[must_use]
    pub fn restart(&self) -> Self {
        let mut state = self.state();
        state.restart();
        Self {
            state: Arc::clone(&self.state),
            boot: state.boot,
        }
    }

    /// Lets the files grow by so many bytes together, or without limit.
    pub fn limit_room(&self, free: Option<usize>) {
        let mut state = self.state();
        state.drop_unreachable();
        let used: usize = state.files.values().map(|file| file.visible.len()).sum();
        state.capacity = free.map(|free| used + free);
    }

    /// Refuses everything that would change the disk, or allows it again.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// Changes the bits of the mask in one byte of a file, on the disk itself.
    ///
    /// # Panics
    /// When there is no such byte.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut state = self.state();
        let id = state.names.get(name);
        match id.and_then(|id| state.files.get_mut(&id)) {
            Some(content) if offset < content.visible.len() => content.flip(offset, mask),
            _ => panic!("{name} has no byte {offset}"),
        }
        state.counts.flips += 1;
    }

    /// Puts a file there, durably, in place of what has the name.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let id = state.add_file(Content::durable(bytes.to_vec()));
        state.names.put_durably(name, id);
    }

    /// The content of a file as it can be read now.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let id = state.names.get(name)?;
        Some(state.files.get(&id)?.visible.clone())
    }

    /// The names of the files, sorted, with their lengths.
    #[must_use]
    pub fn files(&self) -> Vec<(String, usize)> {
        let state = self.state();
        let files = state.names.iter().map(|(name, id)| {
            let len = state.files.get(&id).map_or(0, |file| file.visible.len());
            (name.clone(), len)
        });
        files.collect()
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> SimCounts {
        self.state().counts
    }

    fn file(&self, id: FileId) -> Box<dyn DiskFile> {
        Box::new(SimFile {
            disk: self.clone(),
            id,
        })
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.usable(self.boot)?;
        Ok(state.names.iter().map(|(name, _)| name.clone()).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        state.usable(self.boot)?;
        let id = state.named(name)?;
        drop(state);
        Ok(self.file(id))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.writable(self.boot)?;
        if state.names.get(name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.add_file(Content::default());
        state.names.add(name, id);
        drop(state);
        Ok(self.file(id))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.writable(self.boot)?;
        let id = state.named(from)?;
        state.names.rename(from, to, id);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.writable(self.boot)?;
        state.named(name)?;
        if state.removals_to_fail > 0 {
            state.removals_to_fail -= 1;
            state.counts.failed_removals += 1;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        state.names.remove(name);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.writable(self.boot)?;
        match state.next_sync() {
            None => {
                state.names.sync();
                state.drop_unreachable();
                state.counts.name_syncs += 1;
                Ok(())
            }
            Some(_) => Err(failed()),
        }
    }
}

fn failed() -> io::Error {
    io::Error::other("the simulated disk failed")
}

/// A file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    id: FileId,
}

/// A place in memory, as far as there is memory.
fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.usable(self.disk.boot)?;
        Ok(state.content(self.id)?.visible.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.usable(self.disk.boot)?;
        let offset = place(offset)?;
        let range = offset..offset.saturating_add(buffer.len());
        let Some(bytes) = state.content(self.id)?.visible.get(range) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.disk.boot)?;
        let offset = place(offset)?;
        let len = state.content(self.id)?.visible.len();
        let room = state.reserve(len, offset.saturating_add(bytes.len()));
        let granted = match room {
            Ok(()) => bytes.len(),
            Err(end) => end.saturating_sub(offset),
        };
        state.counts.writes += 1;
        state.counts.bytes_written += granted as u64;
        let content = state.content(self.id)?;
        if granted > 0 {
            content.write(offset, &bytes[..granted]);
        }
        // What was granted for a hole that is not there now.
        let unused = room.err().map_or(0, |end| end - content.visible.len());
        state.give_back(unused);
        room.map_err(|_| io::ErrorKind::StorageFull.into())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.disk.boot)?;
        let len = place(len)?;
        let before = state.content(self.id)?.visible.len();
        if let Err(end) = state.reserve(before, len) {
            state.give_back(end - before);
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.content(self.id)?.set_len(len);
        state.give_back(before.saturating_sub(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable(self.disk.boot)?;
        let outcome = state.next_sync();
        let State {
            files, rng, counts, ..
        } = &mut *state;
        let Some(content) = files.get_mut(&self.id) else {
            return Err(failed());
        };
        match outcome {
            None => {
                content.sync();
                counts.file_syncs += 1;
                Ok(())
            }
            Some(PlannedOutcome::Fail) => {
                content.fail_sync(rng);
                Err(failed())
            }
            // What survives is decided at the restart.
            Some(PlannedOutcome::Crash) => Err(failed()),
        }
    }
}
