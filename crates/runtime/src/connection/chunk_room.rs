//! How many bytes of bodies in chunks may be held: those that arrive, those that wait for their
//! handlers, and parts on the shelf.
//!
//! Room is taken for a whole body when its transfer begins, and for nothing else does memory get
//! reserved: so a transfer that has begun can always come to its end, and transfers never wait for
//! each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room of a connection, or of all connections of an account.
#[derive(Debug)]
pub(crate) struct ChunkRoom {
    taken: AtomicUsize,
    limit: usize,
}

impl ChunkRoom {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            taken: AtomicUsize::new(0),
            limit,
        }
    }

    /// The longest body that there is room for when nothing is taken.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes room, if there is so much.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Hold> {
        let add = |taken: usize| {
            taken
                .checked_add(bytes)
                .filter(|taken| *taken <= self.limit)
        };
        // Only the number counts: it orders nothing else.
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .ok()?;
        Some(Hold {
            room: Arc::clone(self),
            bytes,
        })
    }
}

/// Room that is taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    room: Arc<ChunkRoom>,
    bytes: usize,
}

impl Hold {
    /// Gives back what is more than this.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let given = self.bytes.saturating_sub(bytes);
        self.room.taken.fetch_sub(given, Ordering::Relaxed);
        self.bytes -= given;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The room of one body: of its connection, and of its account if that has a limit.
#[derive(Debug)]
pub(crate) struct Reservation {
    _connection: Hold,
    account: Option<Hold>,
}

impl Reservation {
    pub(crate) fn new(connection: Hold, account: Option<Hold>) -> Self {
        Self {
            _connection: connection,
            account,
        }
    }

    /// What is left when the connection has ended.
    pub(crate) fn into_account(self) -> Option<Hold> {
        self.account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_up_to_its_limit_and_given_back() {
        let room = Arc::new(ChunkRoom::new(100));
        let mut first = room.take(60).unwrap();
        assert!(room.take(41).is_none());
        assert!(room.take(usize::MAX).is_none());
        let second = room.take(40).unwrap();
        assert!(room.take(1).is_none());
        first.shrink(10);
        first.shrink(20);
        assert!(room.take(51).is_none());
        drop((room.take(50).unwrap(), first, second));
        assert!(room.take(100).is_some());
    }
}
