//! Bodies that the peer sends in pieces: what it may send, what has arrived, and what it comes to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use migration_ipc_protocol::extensions::{
    BodyKind, Chunk, ChunksBegin, ChunksEnd, ChunksEndCode, ChunksTake, Sha256,
};
use migration_ipc_protocol::hello::{Capability, CapabilitySet, PeerLimits};
use migration_ipc_protocol::limits::{MAX_BODY, MAX_TRANSFERS};
use migration_ipc_protocol::{Envelope, MessagePayload, message_types};
use sha2::Digest as _;
use tokio::time::Instant;

use super::{Accepting, Directive, Session};
use crate::config::ConnectionLimits;
use crate::connection::chunk_room::{ChunkRoom, Hold, Reservation};
use crate::connection::reason::DisconnectReason;
use crate::connection::shelf::{Part, Whole};
use crate::connection::transfers::violation;

/// How far a sender may be ahead of what has arrived: a few writes of 64 KiB, so that it need not wait
/// for each. It bounds what is under way of a transfer that is given up.
const WINDOW: u64 = 256 * 1024;

/// The step in which a body's buffer grows, beside an eighth of what it holds: it never has much more
/// memory than what has arrived.
const GROWTH: usize = 128 * 1024;

/// Transfers that are over of which pieces may still come. What is under way of them is bounded, and
/// comes before anything that their sender says after it has learned of their end.
const REMEMBERED: usize = 4 * MAX_TRANSFERS;

/// How many of the longest bodies a connection may have, arriving and waiting for their handlers:
/// one arrives while the one before it is handled.
const BODIES: usize = 2;

/// How a body came.
#[derive(Debug)]
pub(super) enum Carriage {
    Frame,
    /// In pieces, with the room that it takes until it is handled.
    Chunks(Option<Box<Reservation>>),
}

impl Carriage {
    /// The room goes with the message.
    pub(super) fn take_room(&mut self) -> Option<Box<Reservation>> {
        match self {
            Self::Frame => None,
            Self::Chunks(room) => room.take(),
        }
    }

    /// Whether it is one message in one frame, which uses credit and can be answered by its number.
    pub(super) fn is_one_frame(&self) -> bool {
        match self {
            Self::Frame => true,
            Self::Chunks(_) => false,
        }
    }
}

/// A body of which a part has arrived.
#[derive(Debug)]
struct Transfer {
    number: u32,
    whole: Whole,
    part: Part,
    /// From where on it is sent over this connection.
    from: u64,
    /// Up to where the peer may send.
    to: u64,
    room: Reservation,
    /// How much was there when it was last seen to come on, and when that was.
    seen: usize,
    seen_at: Instant,
}

impl Transfer {
    fn arrived(&self) -> u64 {
        self.part.body.len() as u64
    }

    /// The piece that comes next, at the end of what is there.
    fn take(&mut self, piece: Chunk<'_>) -> Result<(), DisconnectReason> {
        if piece.offset != self.arrived() {
            return Err(violation("a piece of a body in chunks is out of order"));
        }
        // No sum of these can overflow: both are within what was granted.
        let room = self.to.saturating_sub(self.arrived());
        if piece.data.len() as u64 > room {
            return Err(violation("a piece of a body is beyond what may be sent"));
        }
        let body = &mut self.part.body;
        if body.capacity() - body.len() < piece.data.len() {
            let whole = usize::try_from(self.whole.bytes).unwrap_or(usize::MAX);
            let growth = GROWTH.max(body.len() / 8).max(piece.data.len());
            body.reserve_exact(growth.min(whole - body.len()));
        }
        body.extend_from_slice(piece.data);
        self.part.hasher.update(piece.data);
        Ok(())
    }

    /// Up to where the peer may send now, if that is so much further that it should be told.
    fn next_window(&mut self) -> Option<ChunksTake> {
        let to = (self.arrived() + WINDOW).min(self.whole.bytes);
        let is_news = to > self.to && (to - self.to >= WINDOW / 2 || to == self.whole.bytes);
        if !is_news {
            return None;
        }
        self.to = to;
        Some(ChunksTake {
            transfer: self.number,
            from: self.from,
            to,
        })
    }

    /// Whether it has come on by so much that it is not given up. The last piece may be short.
    fn came_on(&self) -> bool {
        let since = self.part.body.len() - self.seen;
        since >= Chunk::MAX_DATA
    }
}

/// A transfer that ended early, of which so many bytes may be under way.
#[derive(Debug)]
struct Over {
    number: u32,
    under_way: u64,
}

/// The bodies that arrive over one connection.
#[derive(Debug)]
pub(super) struct Arriving {
    transfers: Vec<Transfer>,
    /// Begun, and not answered, because the peer leaves its answers untaken.
    undecided: VecDeque<ChunksBegin>,
    /// The highest number that was used.
    last: u32,
    over: VecDeque<Over>,
    room: Arc<ChunkRoom>,
    /// In which time each has to come on; kept here because it is that of the connection.
    next_look: Option<Instant>,
}

impl Arriving {
    fn new(limits: &ConnectionLimits) -> Self {
        Self {
            transfers: Vec::new(),
            undecided: VecDeque::new(),
            last: 0,
            over: VecDeque::new(),
            room: Arc::new(ChunkRoom::new(limits.chunked_bytes * BODIES)),
            next_look: None,
        }
    }

    /// What is held of bodies that are not whole.
    fn bytes(&self) -> usize {
        let parts = self.transfers.iter().map(|transfer| &transfer.part.body);
        parts.map(Vec::len).sum()
    }

    fn look_after(&mut self, stall: Duration) {
        let times = self.transfers.iter().map(|transfer| transfer.seen_at);
        self.next_look = times.min().map(|earliest| earliest + stall);
    }

    fn position(&self, number: u32) -> Option<usize> {
        let mut transfers = self.transfers.iter();
        transfers.position(|transfer| transfer.number == number)
    }

    /// Pieces of it that come from now on are dropped, as far as they were granted.
    fn remember(&mut self, transfer: &Transfer) {
        if self.over.len() >= REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back(Over {
            number: transfer.number,
            under_way: transfer.to.saturating_sub(transfer.arrived()),
        });
    }

    /// Drops a piece of a transfer that is over.
    fn drop_late(&mut self, piece: Chunk<'_>) -> Result<(), DisconnectReason> {
        let late = self
            .over
            .iter_mut()
            .find(|over| over.number == piece.transfer);
        let left = late
            .and_then(|over| Some((over.under_way.checked_sub(piece.data.len() as u64)?, over)));
        match left {
            Some((left, over)) => {
                over.under_way = left;
                Ok(())
            }
            None => Err(violation("a piece of a transfer that is not under way")),
        }
    }
}

impl Session {
    /// The longest body that is taken in chunks; 0 for none.
    pub(super) fn chunk_limit(&self) -> usize {
        let own = self.connection.config().limits.chunked_bytes;
        match self.connection.shared_account().chunk_room() {
            Some(account) => own.min(account.limit()),
            None => own,
        }
    }

    /// What arrives in pieces. Most connections never bring anything of the kind, and have no room
    /// for it.
    fn arriving(&mut self) -> &mut Arriving {
        let limits = &self.connection.config().limits;
        self.arriving
            .get_or_insert_with(|| Box::new(Arriving::new(limits)))
    }

    /// Bytes of bodies that are not whole.
    pub(super) fn arriving_bytes(&self) -> usize {
        self.arriving
            .as_ref()
            .map_or(0, |arriving| arriving.bytes())
    }

    /// When the transfers have to be looked at.
    pub(super) fn transfers_deadline(&self) -> Option<Instant> {
        self.arriving.as_ref()?.next_look
    }

    /// What this side takes, for the peer to know.
    pub(super) fn chunk_limits(&self, agreed: CapabilitySet) -> Option<PeerLimits> {
        let payload = self.chunk_limit() as u64;
        let has_chunks = agreed.contains(Capability::Chunks);
        has_chunks.then_some(PeerLimits { payload })
    }

    /// `CHUNKS_BEGIN`, `CHUNKS_TAKE` or `CHUNKS_END`.
    pub(super) fn handle_of_transfer(
        &mut self,
        envelope: &Envelope<'_>,
    ) -> Result<(), DisconnectReason> {
        match &*envelope.message_type {
            message_types::CHUNKS_BEGIN => self.handle_begin(read(envelope)?),
            message_types::CHUNKS_TAKE => {
                let outbound = self.connection.outbound();
                outbound.transfers().handle_take(read(envelope)?)
            }
            _ => self.handle_end(read(envelope)?),
        }
    }

    fn handle_begin(&mut self, begin: ChunksBegin) -> Result<(), DisconnectReason> {
        let arriving = self.arriving();
        if begin.transfer <= arriving.last {
            return Err(violation("a number of a transfer was used before"));
        }
        if begin.bytes == 0 {
            return Err(violation("a body in chunks without a byte"));
        }
        if arriving.transfers.len() + arriving.undecided.len() >= MAX_TRANSFERS {
            return Err(violation("too many transfers at once"));
        }
        arriving.last = begin.transfer;
        arriving.undecided.push_back(begin);
        self.decide_transfers();
        Ok(())
    }

    /// Answers what was begun, unless the peer leaves its answers untaken. Whether it was anything.
    pub(super) fn decide_transfers(&mut self) -> bool {
        let mut any = false;
        while let Some(arriving) = &mut self.arriving
            && !self.connection.outbound().control_is_full()
            && let Some(begin) = arriving.undecided.pop_front()
        {
            match self.decide_transfer(begin, Instant::now()) {
                Ok(take) => self.say(None, &take),
                Err((code, error)) => {
                    self.count_refused(&code);
                    self.end_transfer(begin.transfer, code, error);
                }
            }
            any = true;
        }
        any
    }

    fn decide_transfer(
        &mut self,
        begin: ChunksBegin,
        now: Instant,
    ) -> Result<ChunksTake, (ChunksEndCode, String)> {
        let limit = self.chunk_limit();
        let Some(bytes) = usize::try_from(begin.bytes)
            .ok()
            .filter(|bytes| *bytes <= limit)
        else {
            let error = format!(
                "a body of {} bytes is over the limit of {limit}",
                begin.bytes
            );
            return Err((ChunksEndCode::TooLarge, error));
        };
        if self.accepting == Accepting::Nothing {
            return Err((ChunksEndCode::Busy, "stopping".to_owned()));
        }
        let whole = Whole {
            bytes: begin.bytes,
            sha256: begin.sha256,
        };
        let account = self.connection.account();
        let part = self.connection.shelf().take(account, whole, now);
        let Some(room) = self.reserve(bytes) else {
            if let Some(part) = part {
                self.put_on_shelf(whole, part, None, now);
            }
            let error = "there is no room for it at the moment".to_owned();
            return Err((ChunksEndCode::Busy, error));
        };
        let part = part.unwrap_or_else(|| Part {
            body: Vec::new(),
            hasher: sha2::Sha256::new(),
        });
        let from = part.body.len() as u64;
        let to = (from + WINDOW).min(begin.bytes);
        self.arriving().transfers.push(Transfer {
            number: begin.transfer,
            whole,
            from,
            to,
            room,
            seen: part.body.len(),
            seen_at: now,
            part,
        });
        self.look_after_transfers();
        Ok(ChunksTake {
            transfer: begin.transfer,
            from,
            to,
        })
    }

    /// Room for a whole body. What the account has left on the shelf gives way to it.
    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        let connection = self.arriving().room.take(bytes)?;
        let account = match self.connection.shared_account().chunk_room() {
            None => None,
            Some(room) => Some(room.take(bytes).or_else(|| {
                self.connection.shelf().forget(self.connection.account());
                room.take(bytes)
            })?),
        };
        Some(Reservation::new(connection, account))
    }

    fn count_refused(&self, code: &ChunksEndCode) {
        let label = match code {
            ChunksEndCode::TooLarge => "chunks_too_large",
            ChunksEndCode::Busy => "chunks_busy",
            ChunksEndCode::Hash => "chunks_hash",
            ChunksEndCode::Abandoned | ChunksEndCode::Other(_) => "chunks",
        };
        self.connection.telemetry().refused(label);
    }

    fn end_transfer(&self, transfer: u32, code: ChunksEndCode, error: String) {
        let end = ChunksEnd {
            transfer,
            code,
            error,
        };
        self.say(None, &end);
    }

    /// Who sends a body says that it abandons it; any other code is that of a receiver.
    fn handle_end(&mut self, end: ChunksEnd) -> Result<(), DisconnectReason> {
        if end.code != ChunksEndCode::Abandoned {
            return self.connection.outbound().transfers().handle_end(end);
        }
        let arriving = self.arriving();
        if end.transfer == 0 || end.transfer > arriving.last {
            return Err(violation("the end of a transfer that was never begun"));
        }
        arriving
            .undecided
            .retain(|begin| begin.transfer != end.transfer);
        if let Some(found) = arriving.position(end.transfer) {
            // Pieces may come behind it: what is said of transfers overtakes them.
            let transfer = arriving.transfers.swap_remove(found);
            arriving.remember(&transfer);
            self.look_after_transfers();
        }
        Ok(())
    }

    /// Takes a frame that holds a piece of a body.
    pub(super) fn handle_piece(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        let piece = Chunk::read(body).map_err(|error| violation(&error.to_string()))?;
        let arriving = self.arriving();
        let Some(found) = arriving.position(piece.transfer) else {
            arriving.drop_late(piece)?;
            return Ok(Directive::Continue);
        };
        let transfer = &mut arriving.transfers[found];
        transfer.take(piece)?;
        if transfer.arrived() < transfer.whole.bytes {
            if let Some(take) = transfer.next_window() {
                self.say(None, &take);
            }
            return Ok(Directive::Continue);
        }
        let transfer = arriving.transfers.swap_remove(found);
        self.look_after_transfers();
        let digest = Sha256(transfer.part.hasher.finalize().into());
        if digest != transfer.whole.sha256 {
            self.count_refused(&ChunksEndCode::Hash);
            let error = "what arrived is not what was declared".to_owned();
            self.end_transfer(transfer.number, ChunksEndCode::Hash, error);
            return Ok(Directive::Continue);
        }
        self.handle_whole(&transfer.part.body, transfer.room, now)
    }

    /// Takes a body that has arrived whole, as if it had come in a frame.
    fn handle_whole(
        &mut self,
        body: &[u8],
        room: Reservation,
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        if BodyKind::of(body) != BodyKind::Json {
            return Err(violation("a body in chunks that is not JSON"));
        }
        self.carriage = Carriage::Chunks(Some(Box::new(room)));
        let directive = self.handle_body(body, now);
        self.carriage = Carriage::Frame;
        directive
    }

    /// Shows a message to those who observe. They may lag behind by many messages, so one that is
    /// longer than a frame is shown without its payload.
    pub(super) fn show(&self, envelope: &Envelope<'_>) {
        let payload = envelope.payload.map_or(0, |payload| payload.get().len());
        if payload <= MAX_BODY {
            return self.observer.received(&self.connection, envelope);
        }
        let mut shown = envelope.clone();
        shown.payload = None;
        self.observer.received(&self.connection, &shown);
    }

    // --- time ------------------------------------------------------------------------------------

    fn look_after_transfers(&mut self) {
        if let Some(arriving) = &mut self.arriving {
            arriving.look_after(self.connection.config().timeouts.chunk_stall);
        }
    }

    /// We did not read for a while: what did not come on is not to be blamed for it.
    pub(crate) fn excuse_transfers(&mut self, now: Instant) {
        if let Some(arriving) = &mut self.arriving {
            for transfer in &mut arriving.transfers {
                transfer.seen_at = now;
            }
            self.look_after_transfers();
        }
    }

    /// Gives up what does not come on: it would take the room of others for ever.
    pub(super) fn give_up_stalled(&mut self, now: Instant, reading_paused: bool) {
        if self.transfers_deadline().is_none_or(|next| next > now) {
            return;
        }
        let stall = self.connection.config().timeouts.chunk_stall;
        let is_due = |transfer: &mut Transfer| transfer.seen_at + stall <= now;
        let transfers = &mut self.arriving().transfers;
        let due: Vec<Transfer> = transfers.extract_if(.., is_due).collect();
        for mut transfer in due {
            if reading_paused || transfer.came_on() {
                transfer.seen = transfer.part.body.len();
                transfer.seen_at = now;
                self.arriving().transfers.push(transfer);
                continue;
            }
            self.connection.telemetry().refused("chunks_stalled");
            self.arriving().remember(&transfer);
            let error = format!("it did not come on for {stall:?}");
            self.end_transfer(transfer.number, ChunksEndCode::Busy, error);
            self.put_away(transfer, now);
        }
        self.look_after_transfers();
    }

    // --- the end ---------------------------------------------------------------------------------

    /// Keeps what has arrived for a sender that comes again.
    pub(crate) fn shelve(&mut self, now: Instant) {
        let Some(arriving) = &mut self.arriving else {
            return;
        };
        arriving.undecided.clear();
        arriving.next_look = None;
        for transfer in std::mem::take(&mut arriving.transfers) {
            self.put_away(transfer, now);
        }
    }

    fn put_away(&self, transfer: Transfer, now: Instant) {
        let Transfer {
            whole, part, room, ..
        } = transfer;
        self.put_on_shelf(whole, part, room.into_account(), now);
    }

    fn put_on_shelf(&self, whole: Whole, part: Part, room: Option<Hold>, now: Instant) {
        let bytes = part.body.len();
        let account = self.connection.shared_account();
        let room = match (room, account.chunk_room()) {
            (Some(mut room), _) => {
                room.shrink(bytes);
                Some(room)
            }
            (None, None) => None,
            // There is none left for it.
            (None, Some(room)) => match room.take(bytes) {
                Some(room) => Some(room),
                None => return,
            },
        };
        let shelf = self.connection.shelf();
        shelf.put(self.connection.account(), account, whole, part, room, now);
    }
}

/// Whoever negotiated these messages writes them right.
fn read<P: MessagePayload>(envelope: &Envelope<'_>) -> Result<P, DisconnectReason> {
    let read = envelope.payload();
    read.map_err(|error| violation(&format!("{} cannot be read: {error}", P::TYPE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn transfer(bytes: u64, to: u64) -> Transfer {
        let room = Arc::new(ChunkRoom::new(usize::MAX));
        Transfer {
            number: 1,
            whole: Whole {
                bytes,
                sha256: Sha256([0; 32]),
            },
            part: Part {
                body: Vec::new(),
                hasher: sha2::Sha256::new(),
            },
            from: 0,
            to,
            room: Reservation::new(room.take(0).unwrap(), None),
            seen: 0,
            seen_at: Instant::now(),
        }
    }

    fn take(transfer: &mut Transfer, offset: u64, bytes: usize) -> Result<(), DisconnectReason> {
        transfer.take(Chunk {
            transfer: 1,
            offset,
            data: &vec![0; bytes],
        })
    }

    #[test]
    fn nothing_is_taken_beyond_what_was_granted() {
        for offset in [0, 10] {
            let mut transfer = transfer(100, 20);
            take(&mut transfer, 0, 10).unwrap();
            let error = take(&mut transfer, offset, 11).unwrap_err();
            assert!(matches!(error, DisconnectReason::Violation(_)), "{error}");
            assert_eq!(transfer.arrived(), 10);
        }
        let mut transfer = transfer(100, 20);
        take(&mut transfer, 0, 20).unwrap();
        take(&mut transfer, 20, 1).unwrap_err();
    }

    /// What is declared is a claim.
    #[test]
    fn a_buffer_grows_with_what_arrives() {
        let mut transfer = transfer(u64::MAX, u64::MAX);
        let mut at = 0;
        while transfer.part.body.len() < 8 * MIB {
            take(&mut transfer, at as u64, Chunk::MAX_DATA).unwrap();
            at += Chunk::MAX_DATA;
            let most = at + at / 8 + GROWTH;
            let capacity = transfer.part.body.capacity();
            assert!(capacity <= most, "{capacity} for {at}");
        }
    }

    #[test]
    fn a_window_is_told_half_a_window_at_a_time_and_at_the_end() {
        let mut transfer = transfer(WINDOW * 2, WINDOW);
        assert_eq!(transfer.next_window(), None);
        take(&mut transfer, 0, Chunk::MAX_DATA).unwrap();
        assert_eq!(transfer.next_window(), None);
        let half = usize::try_from(WINDOW / 2).unwrap();
        take(
            &mut transfer,
            Chunk::MAX_DATA as u64,
            half - Chunk::MAX_DATA,
        )
        .unwrap();
        let to = transfer.next_window().map(|take| take.to);
        assert_eq!(to, Some(WINDOW + WINDOW / 2));
        assert_eq!(transfer.next_window(), None);
        take(&mut transfer, WINDOW / 2, half).unwrap();
        let to = transfer.next_window().map(|take| take.to);
        assert_eq!(to, Some(WINDOW * 2));
        take(&mut transfer, WINDOW, half).unwrap();
        assert_eq!(transfer.next_window(), None);
    }
}
