//! The content of one simulated file: as it is read, and as a crash would leave it.

use fastrand::Rng;

/// What a disk writes at once, or not at all.
const SECTOR: usize = 512;

/// What was done to a file since its last sync.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => write(content, *offset, bytes),
            Self::SetLen(len) => content.resize(*len, 0),
        }
    }

    /// Applies what a torn write leaves: each sector by itself reached the disk, or did not.
    fn apply_torn(&self, content: &mut Vec<u8>, rng: &mut Rng) {
        match self {
            Self::Write { offset, bytes } => {
                let mut at = *offset;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (sector, later) = rest.split_at((SECTOR - at % SECTOR).min(rest.len()));
                    if rng.bool() {
                        write(content, at, sector);
                    }
                    at += sector.len();
                    rest = later;
                }
            }
            Self::SetLen(_) if rng.bool() => self.apply(content),
            Self::SetLen(_) => {}
        }
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// One file. `visible` is `durable` with all of `unsynced` applied, but for what a failed sync took
/// out of `unsynced`: that can be read until a crash, and is written by no later sync.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) visible: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

impl Content {
    pub(super) fn durable(bytes: Vec<u8>) -> Self {
        Self {
            visible: bytes.clone(),
            durable: bytes,
            unsynced: Vec::new(),
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        write(&mut self.visible, offset, bytes);
        let bytes = bytes.to_vec();
        self.unsynced.push(Change::Write { offset, bytes });
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.visible.resize(len, 0);
        self.unsynced.push(Change::SetLen(len));
    }

    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// The operating system could not write and forgets that there is something to write: as on
    /// Linux, where the pages stay readable and count as clean.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        survive(&mut self.durable, &mut self.unsynced, rng);
    }

    /// The machine stops.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        survive(&mut self.durable, &mut self.unsynced, rng);
        self.visible.clone_from(&self.durable);
    }

    /// Changes one byte on the disk itself.
    pub(super) fn flip(&mut self, offset: usize, mask: u8) {
        for content in [&mut self.visible, &mut self.durable] {
            if let Some(byte) = content.get_mut(offset) {
                *byte ^= mask;
            }
        }
    }
}

fn survive(durable: &mut Vec<u8>, unsynced: &mut Vec<Change>, rng: &mut Rng) {
    let changes = std::mem::take(unsynced);
    if changes.is_empty() {
        return;
    }
    match rng.u8(..4) {
        0 => {}
        1 => changes.iter().for_each(|change| change.apply(durable)),
        2 => {
            let (whole, rest) = changes.split_at(rng.usize(..changes.len()));
            whole.iter().for_each(|change| change.apply(durable));
            // Within a write, too, what comes first may be all that arrives.
            if let Change::Write { offset, bytes } = &rest[0] {
                write(durable, *offset, &bytes[..rng.usize(..=bytes.len())]);
            }
        }
        _ => changes
            .iter()
            .for_each(|change| change.apply_torn(durable, rng)),
    }
}
