//! The write under way: whole frames that have left their lanes, on their way to the operating
//! system.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use migration_ipc_transport::Stream;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Write {
    /// `bytes[taken..]` is still to go.
    bytes: Vec<u8>,
    taken: usize,
    /// How many messages of senders are in it. If it is cut short, all of them count as unsent.
    messages: usize,
    /// Since when the peer has taken nothing of it.
    stalled_since: Option<Instant>,
}

impl Write {
    pub(super) fn is_done(&self) -> bool {
        self.taken >= self.bytes.len()
    }

    /// Begins the next write: `fill` puts frames into the empty buffer, and says how many messages
    /// of senders they are.
    pub(super) fn begin(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> usize) {
        self.bytes.clear();
        self.taken = 0;
        self.messages = fill(&mut self.bytes);
    }

    /// Bytes that are still to go.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Hands over as much as is taken at once. `Ready` when it was anything.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut dyn Stream,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(stream).poll_write(cx, &self.bytes[self.taken..]);
        if polled.is_pending() {
            self.stalled_since.get_or_insert_with(Instant::now);
        }
        match ready!(polled)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            taken => {
                self.taken += taken;
                self.stalled_since = None;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Nothing more of it will go. Its messages still count as unsent.
    pub(super) fn give_up(&mut self) {
        self.bytes.clear();
        self.taken = 0;
        self.stalled_since = None;
    }

    /// Gives back the memory of a write that is done.
    pub(super) fn trim(&mut self) {
        if self.is_done() {
            self.bytes = Vec::new();
            self.taken = 0;
        }
    }
}
