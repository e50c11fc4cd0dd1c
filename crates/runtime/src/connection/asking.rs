//! Our own requests, as far as their answer is not all: the items that come before it, and what is
//! remembered of those that were given up.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use migration_ipc_protocol::{IpcMessage, MessageId};
use tokio::sync::mpsc;

use super::handle::IpcConnection;
use super::lane_kind::Place;

/// Requests that were given up and whose answers have not come, as many as are remembered. Each
/// takes some hundred bytes. The answer to one that is forgotten is a message like any other, as
/// that to a message whose sender never waited.
pub(crate) const MAX_ABANDONED: usize = 1024;

/// An item that came, and has not been read.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) message: IpcMessage,
    /// Counts the bytes for as long as the item is there.
    _held: HeldBytes,
}

impl Item {
    pub(crate) fn new(connection: &IpcConnection, message: IpcMessage, bytes: usize) -> Self {
        connection.outbound().hold_item(bytes);
        Self {
            message,
            _held: HeldBytes {
                connection: connection.clone(),
                bytes,
            },
        }
    }
}

#[derive(Debug)]
struct HeldBytes {
    connection: IpcConnection,
    bytes: usize,
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.connection.outbound().release_item(self.bytes);
    }
}

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ItemFate {
    Taken,
    /// Nobody waits for it, or ever did.
    Dropped,
}

/// An item that breaks the rules, and which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadItem(pub(crate) &'static str);

/// Where the items of one request go.
#[derive(Debug)]
struct Sink {
    number: u64,
    items: mpsc::Sender<Item>,
    /// The number of the last item.
    last: u64,
    /// How many were granted, ever.
    granted: u64,
}

/// A request that was given up before its answer came.
#[derive(Debug)]
struct Abandoned {
    number: u64,
    place: Place,
    /// What tells the peer so. It goes out behind the request, never before.
    cancel: Option<Box<[u8]>>,
}

#[derive(Debug, Default)]
pub(crate) struct Asking {
    streams: HashMap<MessageId, Sink, RandomState>,
    /// Invariant: both have the same requests; at most [`MAX_ABANDONED`].
    abandoned: HashMap<MessageId, Abandoned, RandomState>,
    by_age: BTreeMap<u64, MessageId>,
    next_number: u64,
    /// How many of the abandoned still have their `cancel`.
    untold: usize,
}

impl Asking {
    // --- items -----------------------------------------------------------------------------------

    /// Expects items, at most `window` of which are granted and not read at any time.
    pub(crate) fn begin_stream(&mut self, id: MessageId, window: u32) -> mpsc::Receiver<Item> {
        let (items, receiver) = mpsc::channel(usize::try_from(window).unwrap_or(1).max(1));
        let sink = Sink {
            number: self.next_number,
            items,
            last: 0,
            granted: window.into(),
        };
        self.next_number += 1;
        self.streams.insert(id, sink);
        receiver
    }

    /// Expects no more items; the reader sees the end behind those that are there.
    pub(crate) fn end_stream(&mut self, id: &MessageId) {
        if !self.streams.is_empty() {
            self.streams.remove(id);
        }
    }

    /// Ends the streams of requests that are over, in the order in which they were made: their
    /// readers are woken in no order of hashes.
    pub(crate) fn end_streams(&mut self, is_over: impl Fn(&MessageId) -> bool) {
        let over = self.streams.extract_if(|id, _| is_over(id));
        let mut over: Vec<Sink> = over.map(|(_, sink)| sink).collect();
        over.sort_unstable_by_key(|sink| sink.number);
        over.into_iter().for_each(drop);
    }

    /// `false` when no items are expected any more.
    pub(crate) fn grant(&mut self, id: &MessageId, items: u32) -> bool {
        let Some(sink) = self.streams.get_mut(id) else {
            return false;
        };
        sink.granted = sink.granted.saturating_add(items.into());
        true
    }

    /// `None` when the request has no stream.
    pub(crate) fn take_item(
        &mut self,
        id: &MessageId,
        number: u64,
        item: impl FnOnce() -> Item,
    ) -> Option<Result<ItemFate, BadItem>> {
        let sink = self.streams.get_mut(id)?;
        if number != sink.last + 1 {
            return Some(Err(BadItem("an item out of order")));
        }
        if number > sink.granted {
            return Some(Err(BadItem("an item beyond what was granted")));
        }
        sink.last = number;
        // There is room for what was granted; a reader that is gone is about to say so.
        Some(Ok(match sink.items.try_send(item()) {
            Ok(()) => ItemFate::Taken,
            Err(_) => ItemFate::Dropped,
        }))
    }

    // --- given up --------------------------------------------------------------------------------

    /// Remembers a request that was given up.
    pub(crate) fn abandon(&mut self, id: MessageId, place: Place, cancel: Option<Box<[u8]>>) {
        if self.abandoned.len() >= MAX_ABANDONED
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.forget(&oldest);
        }
        let number = self.next_number;
        self.next_number += 1;
        self.untold += usize::from(cancel.is_some());
        self.by_age.insert(number, id.clone());
        let abandoned = Abandoned {
            number,
            place,
            cancel,
        };
        self.abandoned.insert(id, abandoned);
    }

    /// The late answer to a request has come; `false` when none of the id was given up.
    pub(crate) fn take_late(&mut self, id: &MessageId) -> bool {
        !self.abandoned.is_empty() && self.forget(id)
    }

    fn forget(&mut self, id: &MessageId) -> bool {
        let Some(abandoned) = self.abandoned.remove(id) else {
            return false;
        };
        self.by_age.remove(&abandoned.number);
        self.untold -= usize::from(abandoned.cancel.is_some());
        if self.abandoned.is_empty() {
            self.abandoned.shrink_to(8);
        }
        true
    }

    /// Takes out what tells the peer of requests that were given up and have left their lane.
    pub(crate) fn take_cancels(&mut self, has_left: impl Fn(Place) -> bool) -> Vec<Box<[u8]>> {
        let mut cancels = Vec::new();
        if self.untold == 0 {
            return cancels;
        }
        for id in self.by_age.values() {
            if let Some(abandoned) = self.abandoned.get_mut(id)
                && has_left(abandoned.place)
                && let Some(cancel) = abandoned.cancel.take()
            {
                self.untold -= 1;
                cancels.push(cancel);
            }
        }
        cancels
    }
}
