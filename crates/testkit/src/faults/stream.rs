//! One end of a connection, as the runtime sees it.

use std::future::ready;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use migration_ipc_transport::{BoxFuture, IdentifyError, IdentifyWhen, PeerIdentity, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::wire::{End, Step, Wire};

/// One end of a connection over a [`SimNetwork`](super::SimNetwork).
#[derive(Debug)]
pub struct SimStream {
    wire: Arc<Mutex<Wire>>,
    end: End,
    peer: PeerIdentity,
    flavour: Flavour,
    has_read: bool,
    reading: Alarm,
    writing: Alarm,
}

/// What the connection pretends to be, where that makes a difference to its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Peers are known at once, and an end can say that it writes no more.
    Socket,
    /// A service knows its client after the first read, and shutting down changes nothing.
    Pipe,
}

impl SimStream {
    pub(super) fn new(
        wire: Arc<Mutex<Wire>>,
        end: End,
        peer: PeerIdentity,
        flavour: Flavour,
    ) -> Self {
        Self {
            wire,
            end,
            peer,
            flavour,
            has_read: false,
            reading: Alarm::default(),
            writing: Alarm::default(),
        }
    }
}

pub(super) fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for SimStream {
    fn drop(&mut self) {
        lock(&self.wire).close(self.end);
    }
}

impl Stream for SimStream {
    fn identify_when(&self) -> IdentifyWhen {
        match (self.flavour, self.end) {
            (Flavour::Pipe, End::Service) => IdentifyWhen::AfterFirstRead,
            (Flavour::Pipe, End::Client) | (Flavour::Socket, _) => IdentifyWhen::Now,
        }
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        let known = match self.identify_when() {
            IdentifyWhen::Now => true,
            IdentifyWhen::AfterFirstRead => self.has_read,
        };
        Box::pin(ready(if known {
            Ok(self.peer.clone())
        } else {
            Err(IdentifyError::TooEarly)
        }))
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let step = lock(&self.wire).read(self.end, buffer, Instant::now(), cx.waker());
            match step {
                Step::Done(count) => {
                    self.has_read |= count > 0;
                    return Poll::Ready(Ok(()));
                }
                Step::Wait(until) => {
                    if self.reading.poll(until, cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let step = lock(&self.wire).write(self.end, bytes, Instant::now(), cx.waker())?;
            match step {
                Step::Done(count) => return Poll::Ready(Ok(count)),
                Step::Wait(until) => {
                    if self.writing.poll(until, cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.flavour {
            Flavour::Socket => lock(&self.wire).shut_down(self.end),
            Flavour::Pipe => {}
        }
        Poll::Ready(Ok(()))
    }
}

/// Wakes its task at a time, if there is one.
#[derive(Debug, Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    fn poll(&mut self, until: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = until else {
            self.0 = None;
            return Poll::Pending;
        };
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }
}
