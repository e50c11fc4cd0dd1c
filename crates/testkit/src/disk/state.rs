//! What a simulated disk holds, and the faults that were asked of it.

use std::collections::BTreeMap;
use std::io;

use fastrand::Rng;

use super::content::Content;
use super::names::{FileId, Names};

/// What happened on a simulated disk so far, over all its crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimCounts {
    /// Writes to files.
    pub writes: u64,
    /// Bytes written to files.
    pub bytes_written: u64,
    /// Successful syncs of files.
    pub file_syncs: u64,
    /// Successful syncs of the names.
    pub name_syncs: u64,
    /// Times the machine stopped.
    pub crashes: u64,
    /// Syncs that failed because a test asked for it, crashes not included.
    pub failed_syncs: u64,
    /// Writes that found the disk full.
    pub full: u64,
    /// Removals that failed because a test asked for it.
    pub failed_removals: u64,
    /// Bytes changed.
    pub flips: u64,
    /// Operations refused because nothing may be written.
    pub read_only: u64,
}

/// A sync that is to go wrong, so many syncs from now (0: the next one).
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) after: u64,
    pub(super) outcome: PlannedOutcome,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PlannedOutcome {
    Fail,
    Crash,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) rng: Rng,
    /// Goes up with each restart; handles of earlier ones are dead.
    pub(super) boot: u64,
    pub(super) running: bool,
    pub(super) names: Names,
    pub(super) files: BTreeMap<FileId, Content>,
    next_file: u64,
    /// The bytes of all files in `files`.
    used: usize,
    pub(super) capacity: Option<usize>,
    pub(super) read_only: bool,
    pub(super) planned: Vec<Planned>,
    /// So many removals are to fail.
    pub(super) removals_to_fail: u64,
    pub(super) counts: SimCounts,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            boot: 0,
            running: true,
            names: Names::default(),
            files: BTreeMap::new(),
            next_file: 0,
            used: 0,
            capacity: None,
            read_only: false,
            planned: Vec::new(),
            removals_to_fail: 0,
            counts: SimCounts::default(),
        }
    }

    pub(super) fn stop(&mut self) {
        if self.running {
            self.running = false;
            self.counts.crashes += 1;
        }
    }

    /// Decides what survived, and starts again.
    pub(super) fn restart(&mut self) {
        self.stop();
        self.names.crash(&mut self.rng);
        for content in self.files.values_mut() {
            content.crash(&mut self.rng);
        }
        self.drop_unreachable();
        self.cancel_faults();
        self.boot += 1;
        self.running = true;
    }

    pub(super) fn cancel_faults(&mut self) {
        self.planned.clear();
        self.removals_to_fail = 0;
    }

    pub(super) fn usable(&self, boot: u64) -> io::Result<()> {
        if self.running && boot == self.boot {
            Ok(())
        } else {
            Err(io::Error::other("the simulated machine is gone"))
        }
    }

    pub(super) fn writable(&mut self, boot: u64) -> io::Result<()> {
        self.usable(boot)?;
        if self.read_only {
            self.counts.read_only += 1;
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }

    /// What becomes of a sync: whether a fault was planned for it.
    pub(super) fn next_sync(&mut self) -> Option<PlannedOutcome> {
        let mut due = None;
        self.planned.retain_mut(|planned| {
            if planned.after == 0 {
                due = Some(planned.outcome);
                return false;
            }
            planned.after -= 1;
            true
        });
        match due {
            Some(PlannedOutcome::Crash) => self.stop(),
            Some(PlannedOutcome::Fail) => self.counts.failed_syncs += 1,
            None => {}
        }
        due
    }

    pub(super) fn add_file(&mut self, content: Content) -> FileId {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.used += content.visible.len();
        self.files.insert(id, content);
        id
    }

    pub(super) fn named(&self, name: &str) -> io::Result<FileId> {
        self.names
            .get(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn content(&mut self, id: FileId) -> io::Result<&mut Content> {
        self.files
            .get_mut(&id)
            .ok_or_else(|| io::Error::other("the file was removed"))
    }

    /// Takes room for a file to grow to `len`, or says to what length it can grow.
    pub(super) fn reserve(&mut self, from: usize, to: usize) -> Result<(), usize> {
        let free = self
            .capacity
            .map_or(usize::MAX, |capacity| capacity.saturating_sub(self.used));
        let granted = to.saturating_sub(from).min(free);
        self.used += granted;
        if from + granted < to {
            self.counts.full += 1;
            return Err(from + granted);
        }
        Ok(())
    }

    pub(super) fn give_back(&mut self, bytes: usize) {
        self.used -= bytes;
    }

    /// The files that no name leads to any more, not even after a crash, are gone; a handle to one
    /// is of no use then, as the stores close a file before they remove it.
    pub(super) fn drop_unreachable(&mut self) {
        let mut reachable: Vec<FileId> = self.names.reachable().collect();
        reachable.sort_unstable();
        self.files
            .retain(|id, _| reachable.binary_search(id).is_ok());
        self.used = self.files.values().map(|file| file.visible.len()).sum();
    }
}
