//! One lane: whole frames in order.

use std::collections::VecDeque;

/// A frame that holds more than one message.
#[derive(Debug, Clone, Copy)]
struct Batched {
    ordinal: u64,
    messages: usize,
}

/// Whole frames, back to back, with their lengths.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Invariant: `bytes[start..]` is the concatenation of the frames measured by `lengths`.
    bytes: Vec<u8>,
    start: usize,
    lengths: VecDeque<usize>,
    /// Invariant: those of the frames that hold more than one message, in order; `None` where there
    /// has been none.
    #[expect(
        clippy::box_collection,
        reason = "most lanes never have any, and need no room for it"
    )]
    batches: Option<Box<VecDeque<Batched>>>,
    /// Invariant: the messages of all the frames.
    messages: usize,
    /// Frames that have left for a write, ever.
    left: u64,
    /// Their bytes.
    left_bytes: u64,
    /// Those of the frames whose write is complete.
    written: u64,
    /// What the lane has had, by what its bytes cost; that begins anew when no lane has anything to
    /// send.
    pub(crate) had: u64,
}

/// What a lane gave to a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
    /// What they hold.
    pub(crate) messages: usize,
}

impl Lane {
    /// Takes one frame, in parts, which holds so many messages. Returns its length.
    pub(crate) fn push(&mut self, parts: &[&[u8]], messages: usize) -> usize {
        if messages != 1 {
            let ordinal = self.next();
            let batches = self.batches.get_or_insert_default();
            batches.push_back(Batched { ordinal, messages });
        }
        self.messages += messages;
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let length = parts.iter().map(|part| part.len()).sum();
        self.lengths.push_back(length);
        length
    }

    /// The place of the next frame.
    pub(crate) fn next(&self) -> u64 {
        self.left + self.lengths.len() as u64
    }

    /// How many messages wait.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Frames that have left for a write, ever.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Their bytes.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.left_bytes
    }

    /// Those of the frames whose write is complete.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The write that was filled last is complete.
    pub(crate) fn finish_write(&mut self) {
        self.written = self.left;
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Moves frames to `out`, as many as are allowed. A frame that begins within the bytes is due, and
    /// so is always the first one. A batch goes as long as any message is allowed, or it might never
    /// go: whoever grants credit does so as messages are handled, and may never grant as many as it
    /// has.
    pub(crate) fn drain_into(&mut self, out: &mut Vec<u8>, allowance: Allowance) -> Moved {
        let Allowance {
            room,
            messages,
            bytes,
            first,
        } = allowance;
        let all = self.len_bytes();
        if all <= room.min(bytes) && self.messages <= messages {
            let moved = Moved {
                frames: self.lengths.len(),
                bytes: all,
                messages: self.messages,
            };
            self.note_left(moved);
            out.extend_from_slice(&self.bytes[self.start..]);
            self.clear();
            return moved;
        }
        let mut moved = Moved::default();
        while moved.messages < messages
            && let Some(&length) = self.lengths.front()
        {
            let is_first = moved.frames == 0;
            let fits = moved.bytes + length <= room || (is_first && first == First::Whatever);
            let due = is_first || moved.bytes < bytes;
            if !(fits && due) {
                break;
            }
            let ordinal = self.left + moved.frames as u64;
            let batch = self
                .batches
                .as_mut()
                .and_then(|batches| batches.pop_front_if(|batch| batch.ordinal == ordinal));
            self.lengths.pop_front();
            moved.bytes += length;
            moved.frames += 1;
            moved.messages += batch.map_or(1, |batch| batch.messages);
        }
        self.messages -= moved.messages;
        out.extend_from_slice(&self.bytes[self.start..self.start + moved.bytes]);
        self.start += moved.bytes;
        self.note_left(moved);
        if self.lengths.is_empty() {
            self.clear();
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        moved
    }

    fn note_left(&mut self, moved: Moved) {
        self.left += moved.frames as u64;
        self.left_bytes += moved.bytes as u64;
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
        self.lengths.clear();
        self.batches = None;
        self.messages = 0;
    }

    /// Gives back what a burst made it allocate.
    pub(crate) fn trim(&mut self) {
        if self.lengths.is_empty() {
            *self = Self {
                left: self.left,
                left_bytes: self.left_bytes,
                written: self.written,
                had: self.had,
                ..Self::default()
            };
        }
    }
}

/// How much a lane may give to a write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    /// Bytes that the write has room for.
    pub(crate) room: usize,
    pub(crate) messages: usize,
    /// Bytes after which it is another lane's turn.
    pub(crate) bytes: usize,
    pub(crate) first: First,
}

/// Whether the first frame of a lane has to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Fits,
    /// It goes even into a write that has no room for it: nothing else is in it, or it was left out
    /// of the write before this one.
    Whatever,
}
