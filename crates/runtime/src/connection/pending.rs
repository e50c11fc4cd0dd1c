//! Before a connection has an identity: nothing is dispatched, nothing is sent.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use migration_ipc_protocol::FrameDecoder;
use migration_ipc_transport::{IdentifyWhen, PeerIdentity, Stream};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::reason::DisconnectReason;
use crate::config::ConnectionTimeouts;

/// The most bytes read before the operating system is asked who sent them; what is behind them
/// is read afterwards.
const FIRST_READ: usize = 4096;

/// A connection whose peer is known, and what was read on the way there.
pub(crate) struct Identified {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) identity: PeerIdentity,
    pub(crate) decoder: FrameDecoder,
    /// Until when the peer must have sent its first byte, or its first frame if it has begun one.
    pub(crate) handshake_deadline: Instant,
}

impl Identified {
    /// Whoever was named at once, before anything was read.
    pub(crate) fn at_once(
        stream: Box<dyn Stream>,
        identity: PeerIdentity,
        timeouts: &ConnectionTimeouts,
    ) -> Self {
        Self {
            stream,
            identity,
            decoder: FrameDecoder::new(),
            handshake_deadline: Instant::now() + timeouts.first_byte,
        }
    }
}

/// Whoever keeps a place for the peer while it is not known.
pub(crate) trait Waiting {
    /// The peer has sent something.
    fn heard(&self);
}

/// Asks the operating system who the peer is, after the first bytes where it needs them. So many
/// ask at once as `questions` allows.
pub(crate) async fn identify(
    mut stream: Box<dyn Stream>,
    timeouts: &ConnectionTimeouts,
    waiting: &impl Waiting,
    questions: &Semaphore,
) -> Result<Identified, DisconnectReason> {
    let mut deadline = Instant::now() + timeouts.first_byte;
    let mut decoder = FrameDecoder::new();
    if stream.identify_when() == IdentifyWhen::AfterFirstRead {
        // The buffer lives in the poll alone, so that a connection does not carry it all its life.
        let reading = poll_fn(|cx| {
            let mut first = [0; FIRST_READ];
            let mut read = ReadBuf::new(&mut first);
            ready!(Pin::new(&mut stream).poll_read(cx, &mut read))?;
            decoder.retain(read.filled());
            Poll::Ready(io::Result::Ok(()))
        });
        timeout_at(deadline, reading)
            .await
            .map_err(|_| DisconnectReason::HandshakeTimeout)??;
        if decoder.buffered() == 0 {
            return Err(DisconnectReason::ClosedByPeer);
        }
        waiting.heard();
        deadline = Instant::now() + timeouts.frame;
    }
    let question = stream.identify();
    let asking = async {
        // Never closed: an error would only mean that nobody limits the questions.
        let _turn = questions.acquire().await;
        question.await
    };
    let identity = timeout_at(deadline, asking)
        .await
        .map_err(|_| DisconnectReason::HandshakeTimeout)??;
    Ok(Identified {
        stream,
        identity,
        decoder,
        handshake_deadline: deadline,
    })
}
