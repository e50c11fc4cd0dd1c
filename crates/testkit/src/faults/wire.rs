//! One connection: what is on its way in both directions, and what each end knows. Without I/O:
//! the time is an argument.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::counts::FaultKind;
use super::network::Weather;
use super::plan::{Cut, Learns, draw};
use super::seed::Seed;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The one that connected.
    Client,
    /// The one that accepted.
    Service,
}

impl End {
    pub(super) fn peer(self) -> Self {
        match self {
            Self::Client => Self::Service,
            Self::Service => Self::Client,
        }
    }
}

/// What an end may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Open,
    /// It said that it writes no more.
    ShutDown,
    /// The connection is broken and this end does not know; what it writes is lost.
    Unaware(Learns, Instant),
    /// It is broken, and this end knows: writes fail, reads end after what has arrived.
    Broken,
    /// It was dropped, or its process is no more.
    Closed,
}

#[derive(Debug)]
struct Piece {
    arrives: Instant,
    bytes: Vec<u8>,
    read: usize,
}

/// One end's state, and what is on its way to it.
#[derive(Debug)]
struct Side {
    health: Health,
    incoming: VecDeque<Piece>,
    /// Bytes in `incoming` that were not read.
    waiting: usize,
    /// Nothing will arrive after `incoming`.
    ended: bool,
    /// How many bytes this end has put on their way.
    written: u64,
    reader: Option<Waker>,
    writer: Option<Waker>,
    random: Rng,
}

/// What a read or write comes to; `Wait` until something changes, at the latest at this time.
#[derive(Debug)]
pub(super) enum Step {
    Done(usize),
    Wait(Option<Instant>),
}

/// A connection that both ends share.
#[derive(Debug)]
pub(super) struct Wire {
    number: u64,
    client: Side,
    service: Side,
    capacity: usize,
    cut: Option<Cut>,
    /// When the client is gone, if it goes before it is accepted.
    client_gone: Option<Instant>,
    weather: Arc<Mutex<Weather>>,
}

impl Wire {
    pub(super) fn new(
        number: u64,
        capacity: usize,
        cut: Option<Cut>,
        client_gone: Option<Instant>,
        seed: Seed,
        weather: Arc<Mutex<Weather>>,
    ) -> Self {
        let side = |name| Side {
            health: Health::Open,
            incoming: VecDeque::new(),
            waiting: 0,
            ended: false,
            written: 0,
            reader: None,
            writer: None,
            random: seed.split("wire", number).rng(name),
        };
        Self {
            number,
            client: side("client"),
            service: side("service"),
            capacity: capacity.max(1),
            cut,
            client_gone,
            weather,
        }
    }

    pub(super) fn write(
        &mut self,
        end: End,
        bytes: &[u8],
        now: Instant,
        waker: &Waker,
    ) -> io::Result<Step> {
        self.advance(now);
        let broken = || Err(io::ErrorKind::BrokenPipe.into());
        match self.side(end).health {
            Health::Open => {}
            Health::ShutDown | Health::Broken | Health::Closed => return broken(),
            Health::Unaware(Learns::After(_), _) => return Ok(Step::Done(bytes.len())),
            Health::Unaware(Learns::AtOnce | Learns::AtNextWrite, _) => {
                self.learn(end);
                return broken();
            }
        }
        if self.side(end.peer()).health == Health::Closed {
            return broken();
        }
        let room = self.capacity - self.side(end.peer()).waiting;
        if room == 0 && !bytes.is_empty() {
            let until = self.client_gone;
            self.side_mut(end).writer = Some(waker.clone());
            return Ok(Step::Wait(until));
        }
        let possible = self.split(end, bytes.len().min(room));
        let left = match self.armed_cut() {
            Some(cut) if cut.writer == end => cut.after.saturating_sub(self.side(end).written),
            Some(_) | None => u64::MAX,
        };
        let arriving = usize::try_from(left).map_or(possible, |left| left.min(possible));
        self.send(end, &bytes[..arriving], now);
        if arriving == possible {
            return Ok(Step::Done(possible));
        }
        let learns = self.break_down(now);
        match learns {
            Learns::AtOnce if arriving == 0 => broken(),
            Learns::AtOnce => Ok(Step::Done(arriving)),
            Learns::After(_) | Learns::AtNextWrite => Ok(Step::Done(possible)),
        }
    }

    pub(super) fn read(
        &mut self,
        end: End,
        buffer: &mut tokio::io::ReadBuf<'_>,
        now: Instant,
        waker: &Waker,
    ) -> Step {
        self.advance(now);
        let arrived: usize = {
            let side = self.side(end);
            let arrived = side
                .incoming
                .iter()
                .take_while(|piece| piece.arrives <= now);
            arrived.map(|piece| piece.bytes.len() - piece.read).sum()
        };
        let possible = self.split(end, arrived.min(buffer.remaining()));
        let side = self.side_mut(end);
        if possible == 0 && buffer.remaining() > 0 && !side.ended {
            side.reader = Some(waker.clone());
            let next = side.incoming.front().map(|piece| piece.arrives);
            let learns = match side.health {
                Health::Unaware(Learns::After(_), at) => Some(at),
                _ => None,
            };
            let wait = [next, learns, self.client_gone].into_iter().flatten().min();
            return Step::Wait(wait);
        }
        if possible == 0
            && let Some(piece) = side.incoming.front()
        {
            side.reader = Some(waker.clone());
            return Step::Wait(Some(piece.arrives));
        }
        side.take(possible, buffer);
        self.note(end, 1, possible, now);
        if let Some(writer) = self.side_mut(end.peer()).writer.take() {
            writer.wake();
        }
        Step::Done(possible)
    }

    /// The end writes no more. A pipe has no such thing: there it changes nothing.
    pub(super) fn shut_down(&mut self, end: End) {
        if self.side(end).health == Health::Open {
            self.side_mut(end).health = Health::ShutDown;
            self.end_reading(end.peer());
        }
    }

    /// The end is no more: it was dropped, or its process was.
    pub(super) fn close(&mut self, end: End) {
        if self.side(end).health == Health::Closed {
            return;
        }
        let had_reached_peer = !matches!(self.side(end).health, Health::Unaware(..));
        let side = self.side_mut(end);
        side.health = Health::Closed;
        side.incoming.clear();
        side.waiting = 0;
        self.end_reading(end);
        if self.side(end.peer()).waiting > 0 && self.strikes(end, FaultKind::UnflushedClose) {
            let peer = self.side_mut(end.peer());
            peer.incoming.clear();
            peer.waiting = 0;
        }
        // What a broken connection does not carry is not the news of its end either: the peer has
        // its own way of learning.
        if had_reached_peer && !matches!(self.side(end.peer()).health, Health::Unaware(..)) {
            self.end_reading(end.peer());
        }
    }

    /// What time alone has changed.
    fn advance(&mut self, now: Instant) {
        if self.client_gone.is_some_and(|at| at <= now) {
            self.client_gone = None;
            self.learn(End::Client);
            self.service.health = match self.service.health {
                Health::Closed => Health::Closed,
                _ => Health::Broken,
            };
            self.end_reading(End::Service);
        }
        for end in [End::Client, End::Service] {
            if let Health::Unaware(Learns::After(_), at) = self.side(end).health
                && at <= now
            {
                self.learn(end);
            }
        }
    }

    /// Breaks the connection where the cut says.
    fn break_down(&mut self, now: Instant) -> Learns {
        let Some(Cut { writer, learns, .. }) = self.cut.take() else {
            return Learns::AtOnce;
        };
        self.weather().counts.record(FaultKind::Cut);
        let delay = match learns {
            Learns::After(delay) => delay,
            Learns::AtOnce | Learns::AtNextWrite => Duration::ZERO,
        };
        self.side_mut(writer).health = Health::Unaware(learns, now + delay);
        if learns == Learns::AtOnce {
            self.learn(writer);
        }
        let peer = self.side_mut(writer.peer());
        if peer.health != Health::Closed {
            peer.health = Health::Broken;
        }
        self.end_reading(writer.peer());
        learns
    }

    /// The end learns that the connection is broken.
    fn learn(&mut self, end: End) {
        if self.side(end).health != Health::Closed {
            self.side_mut(end).health = Health::Broken;
        }
        self.end_reading(end);
    }

    /// Nothing more will arrive at this end; whoever waits there looks again.
    fn end_reading(&mut self, end: End) {
        let side = self.side_mut(end);
        side.ended = true;
        for waker in [side.reader.take(), side.writer.take()] {
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Puts bytes on their way, after everything that is on its way already.
    fn send(&mut self, end: End, bytes: &[u8], now: Instant) {
        if bytes.is_empty() {
            return;
        }
        let plan = self.weather().plan.clone();
        let mut arrives = now;
        for (kind, limits) in [
            (FaultKind::Delay, &plan.delay),
            (FaultKind::Stall, &plan.stall),
        ] {
            if self.strikes(end, kind) {
                arrives += draw(limits, &mut self.side_mut(end).random);
            }
        }
        self.side_mut(end).written += bytes.len() as u64;
        self.note(end, 0, bytes.len(), arrives);
        self.weather().trace.note_bytes(bytes);
        let peer = self.side_mut(end.peer());
        if let Some(last) = peer.incoming.back() {
            arrives = arrives.max(last.arrives);
        }
        peer.waiting += bytes.len();
        peer.incoming.push_back(Piece {
            arrives,
            bytes: bytes.to_vec(),
            read: 0,
        });
        if let Some(reader) = peer.reader.take() {
            reader.wake();
        }
    }

    fn split(&mut self, end: End, possible: usize) -> usize {
        if possible > 1 && self.strikes(end, FaultKind::Split) {
            self.side_mut(end).random.usize(1..possible)
        } else {
            possible
        }
    }

    fn strikes(&mut self, end: End, kind: FaultKind) -> bool {
        let side = match end {
            End::Client => &mut self.client,
            End::Service => &mut self.service,
        };
        let mut weather = Weather::lock(&self.weather);
        let strikes = weather.plan.strikes(kind, &mut side.random);
        if strikes {
            weather.counts.record(kind);
        }
        strikes
    }

    /// A cut that is to come; none once the network was calmed.
    fn armed_cut(&self) -> Option<Cut> {
        self.cut.filter(|_| !self.weather().is_calm)
    }

    fn note(&self, end: End, what: u64, bytes: usize, at: Instant) {
        let mut weather = self.weather();
        let at = at.duration_since(weather.began).as_millis();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        let numbers = [self.number, end as u64, what, bytes as u64, at];
        weather.trace.note(&numbers);
    }

    fn weather(&self) -> std::sync::MutexGuard<'_, Weather> {
        Weather::lock(&self.weather)
    }

    fn side(&self, end: End) -> &Side {
        match end {
            End::Client => &self.client,
            End::Service => &self.service,
        }
    }

    fn side_mut(&mut self, end: End) -> &mut Side {
        match end {
            End::Client => &mut self.client,
            End::Service => &mut self.service,
        }
    }
}

impl Side {
    fn take(&mut self, mut count: usize, buffer: &mut tokio::io::ReadBuf<'_>) {
        self.waiting -= count;
        while count > 0
            && let Some(piece) = self.incoming.front_mut()
        {
            let unread = &piece.bytes[piece.read..];
            let taken = count.min(unread.len());
            buffer.put_slice(&unread[..taken]);
            piece.read += taken;
            count -= taken;
            if piece.read == piece.bytes.len() {
                self.incoming.pop_front();
            }
        }
    }
}
