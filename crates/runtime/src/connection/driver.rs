//! The one task of a connection: it moves the bytes, and winds the connection up. How it reads is in
//! `reading`.

mod reading;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use migration_ipc_protocol::FrameDecoder;
use migration_ipc_transport::Stream;
use tokio::io::AsyncWrite;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use self::reading::{HeldBack, Incoming, Owed};
use super::account::Turn;
use super::handle::IpcConnection;
use super::layers::Layers;
use super::outbound::{CloseRequest, Wanted, Work};
use super::reason::{ConnectionState, DisconnectReason};
use super::secrecy::Secrecy;
use super::sending::with_scratch;
use super::session::{Directive, Session};
use super::write::Write;

/// How often there may be something to do before the time is looked at all the same. The streams of
/// tokio make a task yield by then; others may always have something to read.
const ROUNDS: u32 = 64;

/// Where a connection is on its way to the end.
#[derive(Debug)]
enum Phase {
    Open,
    /// This side ends it: what no handler has begun is refused, the rest finishes, everything is
    /// written, goodbye is said, and then the peer is waited for.
    Draining {
        reason: DisconnectReason,
        deadline: Instant,
        step: DrainStep,
    },
    /// The peer ended it: everything that it sent is handled and answered, as far as it listens.
    Finishing {
        reason: DisconnectReason,
        deadline: Instant,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DrainStep {
    Handlers,
    Flush,
    Goodbye,
    ShutDown,
    AwaitPeer,
}

/// Whether the peer still takes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outgoing {
    Open,
    Broken,
}

/// Whether a step got anything done, so that the others should be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Made,
    None,
}

/// How a connection ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) reason: DisconnectReason,
    /// Messages received whose handling did not come to its end.
    pub(crate) unhandled: usize,
    /// Messages accepted for sending and not written.
    pub(crate) unsent: usize,
}

pub(crate) struct Driver {
    stream: Box<dyn Stream>,
    /// Between the stream and the frames, once it was agreed on.
    layers: Layers,
    decoder: FrameDecoder,
    session: Session,
    connection: IpcConnection,
    phase: Phase,
    incoming: Incoming,
    held_back: HeldBack,
    /// Kept from when a frame goes on arriving although the account has no memory left, until its
    /// message is handled.
    turn: Option<Turn>,
    /// Bytes that were received and are held, as the account knows them.
    counted: usize,
    outgoing: Outgoing,
    write: Write,
    owed: Owed,
    work: Work,
    timer: Pin<Box<Sleep>>,
    /// When it fires: to ask the timer for that costs more than all else that is done with it.
    wakes_at: Instant,
}

/// A connection, until its end.
///
/// No `async fn`: that would have room for each place that the driver is moved to, or, were it
/// boxed, keep it farther from the task than need be.
pub(crate) struct Run {
    driver: Option<Driver>,
    ending: Option<Pin<Box<dyn Future<Output = Ended> + Send>>>,
}

impl Future for Run {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Some(driver) = &mut self.driver {
            let reason = ready!(driver.poll(cx));
            if let Some(driver) = self.driver.take() {
                self.ending = Some(Box::pin(driver.end(reason)));
            }
        }
        match &mut self.ending {
            Some(ending) => ending.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl Driver {
    /// `decoder` may hold bytes that were read before. `handshake_deadline` is that of the first
    /// byte, or of the first frame if a byte is there already.
    pub(crate) fn new(
        stream: Box<dyn Stream>,
        decoder: FrameDecoder,
        session: Session,
        connection: IpcConnection,
        handshake_deadline: Option<Instant>,
    ) -> Self {
        let now = Instant::now();
        let owed = match handshake_deadline {
            None => Owed::Nothing,
            Some(deadline) if decoder.buffered() > 0 => Owed::Frame(deadline),
            Some(deadline) => Owed::FirstByte(deadline),
        };
        Self {
            stream,
            layers: Layers::default(),
            decoder,
            session,
            connection,
            phase: Phase::Open,
            incoming: Incoming::Open,
            held_back: HeldBack::No,
            turn: None,
            counted: 0,
            outgoing: Outgoing::Open,
            write: Write::default(),
            owed,
            work: Work::default(),
            timer: Box::pin(sleep_until(now)),
            wakes_at: now,
        }
    }

    /// Runs the connection to its end.
    pub(crate) fn run(self) -> Run {
        Run {
            driver: Some(self),
            ending: None,
        }
    }

    /// Winds up what is over.
    async fn end(mut self, reason: DisconnectReason) -> Ended {
        self.turn = None;
        let grace = self.connection.config().timeouts.handler_grace;
        let until = match self.phase {
            Phase::Finishing { deadline, .. } => deadline,
            Phase::Open | Phase::Draining { .. } => Instant::now() + grace,
        };
        // The peer sees the end now, not when our handlers have come to theirs.
        drop(self.stream);
        self.connection.advance_state(ConnectionState::Closing);
        self.session.shelve(Instant::now());
        let queued = self.connection.outbound().finish(&reason);
        self.connection.cancellation().cancel();
        self.connection.settle_secrecy(Secrecy::Ended);
        let refused = self.session.refuse_waiting();
        finish_handlers(&mut self.session, &self.connection, until).await;
        let account = self.connection.shared_account();
        account.recount(&mut self.counted, 0);
        Ended {
            reason,
            unhandled: refused + self.session.unhandled(),
            unsent: queued + self.write.messages(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<DisconnectReason> {
        self.connection.outbound().register(cx.waker());
        let mut rounds = 0_u32;
        let polled = loop {
            match self.step(cx) {
                Ok(Progress::Made) => {}
                Ok(Progress::None) => break Poll::Pending,
                Err(reason) => break Poll::Ready(reason),
            }
            rounds += 1;
            if rounds.is_multiple_of(ROUNDS)
                && let Err(reason) = self.poll_timer(cx)
            {
                break Poll::Ready(reason);
            }
        };
        self.session.report_inbox();
        self.count_held();
        polled
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<Progress, DisconnectReason> {
        self.poll_write(cx)?;
        // What a write made room for goes on here.
        let read = self.poll_read(cx)?;
        let handled = self.poll_handlers(cx);
        if [read, handled].contains(&Progress::Made) {
            return Ok(Progress::Made);
        }
        if self.poll_timer(cx)? == Progress::Made {
            return Ok(Progress::Made);
        }
        // Only now is it sure that what the steps above queued has been written.
        self.poll_phase(cx)
    }

    fn poll_handlers(&mut self, cx: &mut Context<'_>) -> Progress {
        match self.session.poll_handlers(cx) {
            Poll::Pending => Progress::None,
            Poll::Ready(directive) => {
                self.follow(directive);
                Progress::Made
            }
        }
    }

    fn follow(&mut self, directive: Directive) {
        match directive {
            Directive::Continue => {}
            Directive::Finish(reason) => self.end_incoming(reason),
            Directive::Encrypt(channel, opens) => self.layers.begin(*channel, opens),
            Directive::Open => self.layers.open_incoming(),
        }
    }

    // --- writing ---------------------------------------------------------------------------------

    /// Writes as much as is there and is taken.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), DisconnectReason> {
        // Whether a write was completed that the lanes do not know of.
        let mut written = false;
        loop {
            if self.write.is_done() {
                self.session.flush_acknowledgments();
            }
            if self.connection.outbound().has_news() || std::mem::take(&mut written) {
                self.look_for_work()?;
            }
            if let Some(request) = self.work.close_request.take() {
                self.begin_drain(request);
                // It has refused what no handler had begun.
                continue;
            }
            if self.write.is_done() {
                return Ok(());
            }
            match self.write.poll(cx, &mut *self.stream) {
                Poll::Ready(Ok(())) => {
                    self.session.handle_sent(Instant::now());
                    written = self.write.is_done();
                }
                Poll::Ready(Err(error)) => self.break_outgoing(error),
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn look_for_work(&mut self) -> Result<(), DisconnectReason> {
        let outbound = self.connection.outbound();
        match self.outgoing {
            Outgoing::Open if self.write.is_done() => {
                self.fill_write()?;
                if self.write.messages() > 0 {
                    self.connection.telemetry().wrote(self.write.messages());
                }
            }
            Outgoing::Open => self.work = outbound.take_work(Wanted::Nothing),
            Outgoing::Broken => self.work = outbound.take_work(Wanted::Discard),
        }
        Ok(())
    }

    /// Begins the next write: whole frames, sealed once that was agreed on.
    fn fill_write(&mut self) -> Result<(), DisconnectReason> {
        let outbound = self.connection.outbound();
        match self.layers.sealer() {
            None => self.write.begin(|buffer| {
                self.work = outbound.take_work(Wanted::Write(buffer));
                self.work.filled
            }),
            Some(sealer) => with_scratch(|plain| {
                self.work = outbound.take_work(Wanted::Write(plain));
                let mut sealed = Ok(());
                self.write.begin(|buffer| {
                    sealed = sealer.seal(plain, buffer);
                    self.work.filled
                });
                sealed
            })?,
        }
        if self.work.boundary_left {
            self.layers.seal_outgoing();
        }
        Ok(())
    }

    /// The peer takes nothing more; what it sent before may still be there to be read.
    fn break_outgoing(&mut self, error: io::Error) {
        tracing::debug!(connection = %self.connection.id(), %error, "writing failed");
        self.outgoing = Outgoing::Broken;
        self.write.give_up();
        self.begin_finishing(error.into());
    }

    // --- the end ---------------------------------------------------------------------------------

    fn begin_drain(&mut self, CloseRequest { reason, deadline }: CloseRequest) {
        match &mut self.phase {
            Phase::Open => {
                self.connection.advance_state(ConnectionState::Closing);
                self.session.refuse_waiting();
                self.phase = Phase::Draining {
                    reason,
                    deadline,
                    step: DrainStep::Handlers,
                };
            }
            Phase::Draining {
                deadline: current, ..
            }
            | Phase::Finishing {
                deadline: current, ..
            } => *current = deadline.min(*current),
        }
    }

    /// Reads no further: finishes what was read before.
    fn end_incoming(&mut self, reason: DisconnectReason) {
        self.incoming = Incoming::Ended;
        self.owed = Owed::Nothing;
        // Its sender may be back before our handlers have come to their end.
        self.session.shelve(Instant::now());
        self.connection.outbound().fail_answers(&reason);
        self.begin_finishing(reason);
    }

    /// The peer is going or gone: what it sent is handled, and answered as far as it listens.
    fn begin_finishing(&mut self, reason: DisconnectReason) {
        self.connection.advance_state(ConnectionState::Closing);
        self.connection.outbound().close(&reason);
        self.connection.cancellation().cancel();
        self.connection.settle_secrecy(Secrecy::Ended);
        let grace = self.connection.config().timeouts.handler_grace;
        let phase = std::mem::replace(&mut self.phase, Phase::Open);
        self.phase = match phase {
            Phase::Open => Phase::Finishing {
                reason,
                deadline: Instant::now() + grace,
            },
            Phase::Draining {
                reason, deadline, ..
            } => Phase::Finishing { reason, deadline },
            Phase::Finishing { .. } => phase,
        };
    }

    /// Takes the next step to the end; an `Err` is the end.
    fn poll_phase(&mut self, cx: &mut Context<'_>) -> Result<Progress, DisconnectReason> {
        // What credit holds back can still go while draining; at the peer's end it never will.
        let sendable_written = self.write.is_done();
        let all_written =
            sendable_written && (self.work.lanes_are_empty || self.outgoing == Outgoing::Broken);
        let handled = self.session.inbox_is_empty();
        match &mut self.phase {
            Phase::Open => Ok(Progress::None),
            Phase::Finishing { reason, .. } => {
                let read = self.incoming == Incoming::Ended;
                if !(read && handled && sendable_written) {
                    return Ok(Progress::None);
                }
                // An error means that the peer is gone: there is nothing more to wait for.
                match Pin::new(&mut self.stream).poll_flush(cx) {
                    Poll::Ready(_) => Err(reason.clone()),
                    Poll::Pending => Ok(Progress::None),
                }
            }
            Phase::Draining { reason, step, .. } => match step {
                DrainStep::Handlers if handled => {
                    self.connection.outbound().close(reason);
                    self.connection.cancellation().cancel();
                    *step = DrainStep::Flush;
                    Ok(Progress::Made)
                }
                // It is the last message: in its lane it would overtake what waits for credit.
                DrainStep::Flush if all_written => {
                    *step = DrainStep::Goodbye;
                    self.session.say_goodbye(reason);
                    Ok(Progress::Made)
                }
                DrainStep::Goodbye if all_written => {
                    *step = DrainStep::ShutDown;
                    Ok(Progress::Made)
                }
                DrainStep::ShutDown => {
                    if Pin::new(&mut self.stream).poll_shutdown(cx).is_ready() {
                        *step = DrainStep::AwaitPeer;
                    }
                    Ok(Progress::None)
                }
                DrainStep::Handlers
                | DrainStep::Flush
                | DrainStep::Goodbye
                | DrainStep::AwaitPeer => Ok(Progress::None),
            },
        }
    }

    // --- time ------------------------------------------------------------------------------------

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<Progress, DisconnectReason> {
        let next = self.next_deadline();
        let now = Instant::now();
        if next <= now {
            self.handle_timeout(now)?;
            return Ok(Progress::Made);
        }
        if self.wakes_at <= now || next < self.wakes_at {
            self.timer.as_mut().reset(next);
            self.wakes_at = next;
            // Registers the task; a timer that is not reset stays registered. Without a budget,
            // because a poll that is refused for want of it would not register.
            let mut timer = pin!(unconstrained(self.timer.as_mut()));
            if timer.as_mut().poll(cx).is_ready() {
                return Ok(Progress::Made);
            }
        }
        Ok(Progress::None)
    }

    /// Gives back what a burst made us allocate. At every tick rather than at every empty queue:
    /// a stream fills and empties its queues all the time.
    fn trim(&mut self) {
        self.write.trim();
        self.connection.outbound().trim();
    }

    /// Until when the peer has to send something, while we read.
    fn owed_by(&self) -> Option<Instant> {
        match self.incoming {
            Incoming::Open => self.owed.deadline(),
            Incoming::Paused | Incoming::Ended => None,
        }
    }

    /// Until when the lane of a slow peer may stay full.
    fn full_until(&self) -> Option<Instant> {
        match (&self.phase, self.incoming) {
            (Phase::Open, Incoming::Open) => {
                let since = self.work.full_since?;
                Some(since + self.connection.config().timeouts.slow_peer)
            }
            (_, Incoming::Open | Incoming::Paused | Incoming::Ended) => None,
        }
    }

    /// When the wait for the account's memory has lasted long enough.
    fn starved_at(&self) -> Option<Instant> {
        match self.held_back {
            HeldBack::ByMemory(since) => Some(since + self.connection.shared_account().patience()),
            HeldBack::No | HeldBack::ByRate(_) => None,
        }
    }

    fn next_deadline(&self) -> Instant {
        let config = self.connection.config();
        let stalled = self
            .write
            .stalled_since()
            .map(|since| since + config.timeouts.write_stall);
        let end = match &self.phase {
            Phase::Open => None,
            Phase::Draining { deadline, .. } | Phase::Finishing { deadline, .. } => Some(*deadline),
        };
        let held_back = match self.held_back {
            HeldBack::No => None,
            HeldBack::ByRate(until) => Some(until),
            HeldBack::ByMemory(_) => self.starved_at(),
        };
        [stalled, end, held_back, self.owed_by(), self.full_until()]
            .into_iter()
            .flatten()
            .fold(
                self.session.deadline(self.work.answers_awaited),
                Instant::min,
            )
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DisconnectReason> {
        match &self.phase {
            Phase::Draining {
                deadline, reason, ..
            }
            | Phase::Finishing { deadline, reason }
                if *deadline <= now =>
            {
                return Err(reason.clone());
            }
            Phase::Open | Phase::Draining { .. } | Phase::Finishing { .. } => {}
        }
        self.trim();
        let timeouts = self.connection.config().timeouts;
        if self
            .write
            .stalled_since()
            .is_some_and(|since| since + timeouts.write_stall <= now)
        {
            return Err(DisconnectReason::SlowReader);
        }
        if self.full_until().is_some_and(|deadline| deadline <= now) {
            return Err(DisconnectReason::SlowPeer);
        }
        if self.starved_at().is_some_and(|deadline| deadline <= now) {
            return Err(DisconnectReason::OverMemory);
        }
        if self.owed_by().is_some_and(|deadline| deadline <= now) {
            return Err(if self.session.is_undecided() {
                DisconnectReason::HandshakeTimeout
            } else {
                DisconnectReason::FrameTimeout
            });
        }
        self.session
            .handle_timeout(now, self.incoming == Incoming::Paused)
    }
}

/// Handlers that are still at work get what is left of their grace.
async fn finish_handlers(session: &mut Session, connection: &IpcConnection, until: Instant) {
    let handlers = poll_fn(|cx| {
        while session.unhandled() > 0 {
            // Whatever it asks for, the end has come.
            ready!(session.poll_handlers(cx));
        }
        Poll::Ready(())
    });
    if timeout_at(until, handlers).await.is_err() {
        tracing::warn!(
            connection = %connection.id(),
            handlers = session.unhandled(),
            "handlers did not finish within their grace and were dropped",
        );
    }
}
