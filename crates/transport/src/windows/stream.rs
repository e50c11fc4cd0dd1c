//! One end of a connected pipe.
//!
//! The pipe is of message type, which deployed .NET agents need, and is read as bytes: how the peer
//! grouped them means nothing. What this adds to tokio's pipes:
//!
//! * A peer's *empty message* (a write of zero bytes) completes a read with zero bytes, exactly as
//!   the end does. It is skipped here, so that zero bytes always mean the end. An empty write of
//!   our own writes nothing, where tokio would send an empty message.
//! * `flush` waits until the operating system has taken everything that was written. tokio's pipes
//!   copy what they are given and write in the background.
//! * Dropping the stream cancels such a background write. It would otherwise keep handle and
//!   buffer for as long as a peer that never reads lives. Whoever wants the last bytes to arrive
//!   flushes first, and waits for the peer to close.
//!
//! `FlushFileBuffers` is never called, since it blocks until the peer has read everything, and
//! neither is `DisconnectNamedPipe`, since it destroys what the peer has not yet read. After the
//! handle was closed the peer can still read that.

use std::io;
use std::os::windows::io::{AsHandle, BorrowedHandle};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::windows::named_pipe::{NamedPipeClient, NamedPipeServer};
use windows_sys::Win32::Foundation::{ERROR_BROKEN_PIPE, ERROR_PIPE_NOT_CONNECTED};

use super::rules::client::NetworkLogons;
use super::{identity, os_code, sys};
use crate::error::IdentifyError;
use crate::identity::PeerIdentity;
use crate::seam::{BoxFuture, IdentifyWhen, Stream};

#[derive(Debug)]
pub(super) struct PipeStream {
    end: End,
    /// Something was written that the operating system may not have taken yet.
    writing: bool,
}

#[derive(Debug)]
enum End {
    Server {
        pipe: NamedPipeServer,
        /// Before that there is nobody to impersonate.
        was_read: bool,
        /// Whether the client may have logged on over the network.
        network: NetworkLogons,
    },
    Client {
        pipe: NamedPipeClient,
        server: PeerIdentity,
    },
}

/// Calls a method that both of tokio's types have.
macro_rules! on_pipe {
    ($end:expr, $pipe:ident => $call:expr) => {
        match $end {
            End::Server { pipe: $pipe, .. } => $call,
            End::Client { pipe: $pipe, .. } => $call,
        }
    };
}

impl PipeStream {
    /// The service's end of an instance that a client has opened.
    pub(super) fn accepted(pipe: NamedPipeServer, network: NetworkLogons) -> Self {
        Self {
            end: End::Server {
                pipe,
                was_read: false,
                network,
            },
            writing: false,
        }
    }

    /// A client's end, whose server was checked.
    pub(super) fn connected(pipe: NamedPipeClient, server: PeerIdentity) -> Self {
        Self {
            end: End::Client { pipe, server },
            writing: false,
        }
    }

    fn handle(&self) -> BorrowedHandle<'_> {
        on_pipe!(&self.end, pipe => pipe.as_handle())
    }

    /// Hands bytes to tokio's pipe with `write`, and forgets that the pipe was ready to write, so
    /// that it becomes so again only when the operating system has taken the bytes.
    ///
    /// tokio forgets only the readiness that it knew before the closure ran. A write that ends
    /// while the closure runs is therefore not missed.
    fn start_write(
        &mut self,
        write: impl Fn(&End) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut outcome = Err(io::ErrorKind::WouldBlock.into());
        let end = &self.end;
        let attempt = || -> io::Result<()> {
            outcome = write(end);
            Err(io::ErrorKind::WouldBlock.into())
        };
        let forgotten = on_pipe!(end, pipe => pipe.try_io(Interest::WRITABLE, attempt));
        debug_assert!(forgotten.is_err(), "the closure succeeds never");
        match outcome {
            Ok(count) => {
                self.writing = true;
                Poll::Ready(Ok(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(gone_is_broken(error))),
        }
    }

    /// Waits until the pipe is ready for a write, which is when the last one has ended.
    fn poll_write_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(on_pipe!(&self.end, pipe => pipe.poll_write_ready(cx)))?;
        self.writing = false;
        Poll::Ready(Ok(()))
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&End) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ended(cx))?;
            // Not ready after all: that is known now, and waiting works.
            if let Poll::Ready(outcome) = self.start_write(&write) {
                return Poll::Ready(outcome);
            }
        }
    }
}

impl AsyncRead for PipeStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let mut ended = false;
        loop {
            let read = on_pipe!(&mut self.end, pipe => Pin::new(pipe).poll_read(cx, buf));
            match ready!(read) {
                Ok(()) if buf.filled().len() > before => break,
                // The other end was closed the hard way.
                Err(error) if is_gone(&error) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(()) if ended => return Poll::Ready(Ok(())),
                // Zero bytes are an empty message unless peeking says that the peer is gone and
                // everything was read. But tokio reads ahead, and may have more: only when it has
                // given zero bytes once more is this the end.
                Ok(()) => ended = sys::peek(self.handle()).is_err(),
            }
        }
        if let End::Server { was_read, .. } = &mut self.end {
            *was_read = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_write_with(cx, |end| on_pipe!(end, pipe => pipe.try_write(buf)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.poll_write_with(
            cx,
            |end| on_pipe!(end, pipe => pipe.try_write_vectored(bufs)),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Waits until the operating system has taken everything; the peer need not have read it.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writing {
            self.poll_write_ended(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// As a flush: a pipe has no half that could be closed alone.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl Stream for PipeStream {
    fn identify_when(&self) -> IdentifyWhen {
        match self.end {
            End::Server { .. } => IdentifyWhen::AfterFirstRead,
            End::Client { .. } => IdentifyWhen::Now,
        }
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        match &self.end {
            End::Server {
                was_read: false, ..
            } => Box::pin(async { Err(IdentifyError::TooEarly) }),
            End::Server { pipe, network, .. } => {
                let network = *network;
                let duplicate = pipe.as_handle().try_clone_to_owned();
                Box::pin(async move {
                    let action = "duplicating the pipe's handle";
                    let pipe = duplicate.map_err(|source| IdentifyError::Io { action, source })?;
                    identity::of_client(pipe, network).await
                })
            }
            End::Client { server, .. } => {
                let server = server.clone();
                Box::pin(async { Ok(server) })
            }
        }
    }
}

impl Drop for PipeStream {
    fn drop(&mut self) {
        if self.writing {
            // It fails when nothing is in flight any more.
            let _ = sys::cancel_io(self.handle());
        }
    }
}

/// Whether an error only says that the peer's end is closed or was disconnected.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        os_code(error),
        Some(ERROR_BROKEN_PIPE | ERROR_PIPE_NOT_CONNECTED)
    )
}

/// Gives "disconnected" the kind that it has for every other stream.
fn gone_is_broken(error: io::Error) -> io::Error {
    if is_gone(&error) {
        io::Error::new(io::ErrorKind::BrokenPipe, error)
    } else {
        error
    }
}
