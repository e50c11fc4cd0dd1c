//! Which simulated files there are: as it is seen, and as a crash would leave it.

use std::collections::BTreeMap;

use fastrand::Rng;

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId(pub(super) u64);

type Table = BTreeMap<String, FileId>;

/// What was done to the names since their last sync; a rename is both at once.
#[derive(Clone, Debug)]
struct Change {
    gone: Option<String>,
    there: Option<(String, FileId)>,
}

impl Change {
    fn apply(&self, table: &mut Table) {
        if let Some(name) = &self.gone {
            table.remove(name);
        }
        if let Some((name, id)) = &self.there {
            table.insert(name.clone(), *id);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    visible: Table,
    durable: Table,
    unsynced: Vec<Change>,
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<FileId> {
        self.visible.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, FileId)> {
        self.visible.iter().map(|(name, id)| (name, *id))
    }

    /// The files that have a name, or have one again after a crash.
    pub(super) fn reachable(&self) -> impl Iterator<Item = FileId> {
        let unsynced = self
            .unsynced
            .iter()
            .filter_map(|change| change.there.as_ref());
        let named = self.visible.iter().chain(&self.durable);
        named.map(|(_, id)| *id).chain(unsynced.map(|(_, id)| *id))
    }

    pub(super) fn put_durably(&mut self, name: &str, id: FileId) {
        for table in [&mut self.visible, &mut self.durable] {
            table.insert(name.to_owned(), id);
        }
    }

    pub(super) fn add(&mut self, name: &str, id: FileId) {
        self.change(Change {
            gone: None,
            there: Some((name.to_owned(), id)),
        });
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.change(Change {
            gone: Some(name.to_owned()),
            there: None,
        });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, id: FileId) {
        self.change(Change {
            gone: Some(from.to_owned()),
            there: Some((to.to_owned(), id)),
        });
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.visible);
        self.unsynced.push(change);
    }

    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
        self.durable.clone_from(&self.visible);
    }

    /// The machine stops: of the changes that were not synced none, all, the first ones or any
    /// survive.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let changes = std::mem::take(&mut self.unsynced);
        let kept = rng.usize(..=changes.len());
        let mode = rng.u8(..4);
        for (place, change) in changes.iter().enumerate() {
            let survives = match mode {
                0 => false,
                1 => true,
                2 => place < kept,
                _ => rng.bool(),
            };
            if survives {
                change.apply(&mut self.durable);
            }
        }
        self.visible.clone_from(&self.durable);
    }
}
