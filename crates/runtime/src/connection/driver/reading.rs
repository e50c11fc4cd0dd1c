//! Reading: when, how much, and what becomes of it on its way to the session.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use migration_ipc_protocol::extensions::promised_length;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::{Driver, Progress};
use crate::connection::account::{Holds, MEMORY_FLOOR, Room};
use crate::connection::reason::DisconnectReason;
use crate::connection::session::Directive;

/// Bytes of one read. Measurements show that more saves nothing; all connections of a thread
/// share one buffer of this size, so a connection that waits costs none.
const READ_BUFFER: usize = 64 * 1024;

/// Whether the peer's bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Incoming {
    Open,
    /// We do not read at present: the peer's silence is ours.
    Paused,
    Ended,
}

/// Whether the peer's account has used up what all of its connections share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldBack {
    No,
    /// Its rate allows no more until then.
    ByRate(Instant),
    /// Its connections hold as much as they may; when the wait for that began.
    ByMemory(Instant),
}

/// What the peer has to send, and by when.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owed {
    Nothing,
    FirstByte(Instant),
    /// The rest of a frame that has begun; more bytes of it do not prolong its time.
    Frame(Instant),
}

impl Owed {
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Nothing => None,
            Self::FirstByte(deadline) | Self::Frame(deadline) => Some(deadline),
        }
    }
}

impl Driver {
    fn reading_paused(&self) -> bool {
        self.session.is_full(self.work.answers_awaited)
    }

    /// Lets the account know what this connection holds of what was received, and of the write.
    pub(super) fn count_held(&mut self) {
        let account = self.connection.shared_account();
        if account.is_limited() {
            let held = self.session.inbox_bytes()
                + self.connection.outbound().held_items()
                + self.decoder.buffered()
                + self.layers.buffered()
                + self.write.remaining();
            account.recount(&mut self.counted, held);
        }
    }

    /// Looks whether the account has used up what its connections share. All of them are held back
    /// by its rate; by its memory those that hold some of it.
    fn look_at_account(&mut self, cx: &mut Context<'_>) -> HeldBack {
        if !self.connection.shared_account().is_limited() {
            return HeldBack::No;
        }
        self.count_held();
        let account = self.connection.shared_account();
        let now = Instant::now();
        if let Some(until) = account.blocked_until(now) {
            return HeldBack::ByRate(until);
        }
        // A frame that was kept back whole gives nothing back either, until it is taken.
        let nothing_whole =
            self.session.inbox_is_empty() && self.connection.outbound().held_items() == 0;
        let arrives = self.decoder.buffered() > 0 || self.layers.buffered() > 0;
        let holds = if nothing_whole && arrives {
            Holds::APartialFrame
        } else {
            Holds::Messages
        };
        let next = self.counted.saturating_add(self.promised(&[]));
        if next < MEMORY_FLOOR || !account.is_out_of_memory() {
            self.turn = None;
            return HeldBack::No;
        }
        if self.turn.is_some() && holds == Holds::APartialFrame {
            return HeldBack::No;
        }
        match account.ask_for_memory(cx.waker(), holds) {
            Room::Enough => HeldBack::No,
            Room::Turn(turn) => {
                self.turn = Some(turn);
                HeldBack::No
            }
            Room::Wait => match self.held_back {
                HeldBack::ByMemory(since) => HeldBack::ByMemory(since),
                HeldBack::No | HeldBack::ByRate(_) => HeldBack::ByMemory(now),
            },
        }
    }

    /// What the next frame becomes when it is taken, in bytes, as far as it is a compressed one.
    fn promised(&self, input: &[u8]) -> usize {
        if !self.session.reads_compressed() {
            return 0;
        }
        let start = self.decoder.peek(input);
        start.and_then(|start| promised_length(&start)).unwrap_or(0)
    }

    /// Whether the next frame has to wait for memory of the account: a few bytes could become more of
    /// it than a connection may hold on top.
    fn is_too_large_by_now(&self, input: &[u8]) -> bool {
        if self.turn.is_some() || !self.connection.shared_account().is_out_of_memory() {
            return false;
        }
        let promised = self.promised(input);
        promised > 0 && self.counted.saturating_add(promised) >= MEMORY_FLOOR
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Progress, DisconnectReason> {
        let full = self.reading_paused();
        self.held_back = match self.incoming {
            Incoming::Open | Incoming::Paused if !full => self.look_at_account(cx),
            Incoming::Open | Incoming::Paused | Incoming::Ended => HeldBack::No,
        };
        match self.incoming {
            Incoming::Ended => return Ok(Progress::None),
            Incoming::Open | Incoming::Paused if full || self.held_back != HeldBack::No => {
                self.incoming = Incoming::Paused;
                return Ok(Progress::None);
            }
            Incoming::Open => {}
            Incoming::Paused => {
                self.incoming = Incoming::Open;
                self.session.excuse_transfers(Instant::now());
                if let Some(since) = &mut self.work.full_since {
                    // What the peer granted meanwhile has not been read yet.
                    *since = Instant::now();
                    self.connection.outbound().excuse_full(*since);
                }
                match self.owed {
                    Owed::Nothing => {}
                    Owed::Frame(_) => self.owed = self.owe_frame(Instant::now()),
                    // It may have come meanwhile.
                    Owed::FirstByte(deadline) => {
                        let least = Instant::now() + self.connection.config().timeouts.frame;
                        self.owed = Owed::FirstByte(deadline.max(least));
                    }
                }
            }
        }
        if self.decoder.buffered() > 0 && !self.decoder.has_partial() {
            // Whole frames were kept back while the inbox was full.
            self.take_frames(cx, &[], 0, Instant::now())?;
            return Ok(Progress::Made);
        }
        let mut buffer = READ.take();
        buffer.reserve_exact(READ_BUFFER);
        let result = self.poll_read_into(cx, &mut buffer);
        READ.set(buffer);
        result
    }

    fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<Progress, DisconnectReason> {
        let mut read = ReadBuf::uninit(buffer.spare_capacity_mut());
        match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
            Poll::Pending => Ok(Progress::None),
            Poll::Ready(Err(error)) => {
                self.end_incoming(error.into());
                Ok(Progress::Made)
            }
            Poll::Ready(Ok(())) if read.filled().is_empty() => {
                self.end_incoming(if self.has_partial() {
                    DisconnectReason::TruncatedFrame
                } else {
                    DisconnectReason::ClosedByPeer
                });
                Ok(Progress::Made)
            }
            Poll::Ready(Ok(())) => {
                let now = Instant::now();
                self.session.handle_received(now);
                self.take_bytes(cx, read.filled(), now)?;
                Ok(Progress::Made)
            }
        }
    }

    /// Whether something has begun to arrive, and is not complete yet.
    fn has_partial(&self) -> bool {
        self.decoder.has_partial() || self.layers.buffered() > 0
    }

    /// Takes bytes as they came from the stream.
    fn take_bytes(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        match self.layers.opener() {
            None => self.take_frames(cx, bytes, bytes.len(), now),
            Some(_) => self.take_records(cx, bytes, bytes.len(), now),
        }
    }

    /// Opens what the peer sealed. `arrived` is how many bytes are to be charged for it.
    fn take_records(
        &mut self,
        cx: &mut Context<'_>,
        records: &[u8],
        arrived: usize,
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let Some(opener) = self.layers.opener() else {
            return Ok(());
        };
        let mut plain = OPENED.take();
        // What was right before a record that is not is not handled either: the connection is over.
        let taken = match opener.open(records, &mut plain) {
            Ok(()) => self.take_frames(cx, &plain, arrived, now),
            Err(error) => Err(error.into()),
        };
        plain.clear();
        plain.shrink_to(READ_BUFFER);
        OPENED.set(plain);
        taken
    }

    /// Hands whole frames to the session until the inbox is full, and keeps the rest. `arrived` is
    /// how many bytes are to be charged for them.
    ///
    /// Each handler that can begin does so at once: most end there and then, with everything that
    /// they touch still in the cache, and the inbox never fills for want of being looked at.
    ///
    /// Once decompression has made as much of the input as a whole read could have brought, the rest
    /// is kept too: what the account holds is looked at again, and everything else has its turn. So is
    /// what would become more than the account has room for.
    fn take_frames(
        &mut self,
        cx: &mut Context<'_>,
        mut input: &[u8],
        arrived: usize,
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let in_the_clear = self.layers.opener().is_none();
        let mut frames = 0;
        while !self.reading_paused()
            && self.session.unpacked() < READ_BUFFER
            && !self.is_too_large_by_now(input)
        {
            let Some(body) = self.decoder.decode(&mut input)? else {
                break;
            };
            frames += 1;
            let directive = self.session.handle_frame(body, now)?;
            frames += self.session.take_batched().saturating_sub(1);
            match directive {
                Directive::Continue => {}
                directive => self.follow(directive),
            }
            if self.session.can_start() {
                self.poll_handlers(cx);
            }
            if self.incoming == Incoming::Ended {
                return Ok(());
            }
            if in_the_clear && self.layers.opener().is_some() {
                // That was the last frame in the clear; what was kept behind it came sealed.
                let mut records = self.decoder.take_rest();
                records.extend_from_slice(input);
                self.connection
                    .shared_account()
                    .charge(frames, arrived, now)?;
                self.owed = Owed::Nothing;
                return self.take_records(cx, &records, 0, now);
            }
        }
        let arrived = arrived + self.session.take_unpacked();
        self.connection
            .shared_account()
            .charge(frames, arrived, now)?;
        self.decoder.retain(input);
        self.owed = match self.owed {
            _ if !self.has_partial() => Owed::Nothing,
            Owed::Frame(_) if frames == 0 => self.owed,
            Owed::Frame(_) | Owed::FirstByte(_) | Owed::Nothing => self.owe_frame(now),
        };
        Ok(())
    }

    fn owe_frame(&self, now: Instant) -> Owed {
        Owed::Frame(now + self.connection.config().timeouts.frame)
    }
}

thread_local! {
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static OPENED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}
