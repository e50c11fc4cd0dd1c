//! Connections inside this process, with identities of the caller's choice.
//!
//! They behave as the operating systems' do where it matters: bounded both ways, so that a peer that
//! does not read stops the writer; end of stream and `BrokenPipe` when the other end is dropped; and
//! an identity that, if so chosen, is known only after the first read. There is no timer in them, so
//! they work while tokio's time is paused.
//!
//! ```
//! use migration_ipc_transport::{AccountId, PeerIdentity, Privilege, Stream, memory};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let service = PeerIdentity::new(AccountId::new("0"), Privilege::Administrator);
//! let agent = PeerIdentity::new(AccountId::new("1000"), Privilege::Ordinary);
//! let (mut at_service, mut at_agent) = memory::pair(service, agent, 1024);
//!
//! at_agent.write_all(b"hello").await?;
//! let mut bytes = [0; 5];
//! at_service.read_exact(&mut bytes).await?;
//! assert_eq!(at_service.identify().await.unwrap().account().as_str(), "1000");
//! # Ok(())
//! # }
//! ```

use std::future::{pending, ready};
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

use crate::endpoint::Endpoint;
use crate::error::IdentifyError;
use crate::identity::PeerIdentity;
use crate::seam::{BoxFuture, IdentifyWhen, Listener, Stream};

/// How many connections wait to be accepted before a further client has to wait.
const BACKLOG: usize = 128;

/// Two connected streams: the first is the end of `a`, the second that of `b`, so the first one
/// identifies its peer as `b`.
///
/// `capacity` is how many bytes each direction holds before a write waits; 0 is taken as 1.
pub fn pair(a: PeerIdentity, b: PeerIdentity, capacity: usize) -> (MemoryStream, MemoryStream) {
    let (end_of_a, end_of_b) = tokio::io::duplex(capacity.max(1));
    (
        MemoryStream::new(end_of_a, b),
        MemoryStream::new(end_of_b, a),
    )
}

/// One end of a connection in memory.
#[derive(Debug)]
pub struct MemoryStream {
    bytes: DuplexStream,
    peer: PeerIdentity,
    identify_when: IdentifyWhen,
    has_read: bool,
}

impl MemoryStream {
    fn new(bytes: DuplexStream, peer: PeerIdentity) -> Self {
        Self {
            bytes,
            peer,
            identify_when: IdentifyWhen::Now,
            has_read: false,
        }
    }

    /// Sets when this end can say who its peer is; at once unless set.
    ///
    /// With [`IdentifyWhen::AfterFirstRead`] it does as the server's end of a Windows pipe:
    /// identifying fails with [`IdentifyError::TooEarly`] until a byte was read.
    #[must_use]
    pub fn identifying(mut self, when: IdentifyWhen) -> Self {
        self.identify_when = when;
        self
    }
}

impl Stream for MemoryStream {
    fn identify_when(&self) -> IdentifyWhen {
        self.identify_when
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        let known = match self.identify_when {
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

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.bytes).poll_read(cx, buffer);
        self.has_read |= buffer.filled().len() > before;
        result
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }
}

/// A listener in memory, and the means to connect to it.
///
/// `name` is for logs; two listeners of one name do not meet. `service` is the identity that clients
/// see, `capacity` as for [`pair`].
pub fn listen(
    name: &str,
    service: PeerIdentity,
    capacity: usize,
) -> (MemoryListener, MemoryConnector) {
    let (connections, accepted) = mpsc::channel(BACKLOG);
    let listener = MemoryListener {
        endpoint: Endpoint::from_address(PathBuf::from(format!("memory:{name}"))),
        accepted,
        identify_when: IdentifyWhen::Now,
    };
    (
        listener,
        MemoryConnector {
            connections,
            service,
            capacity,
        },
    )
}

/// The service's side of [`listen`].
#[derive(Debug)]
pub struct MemoryListener {
    endpoint: Endpoint,
    accepted: mpsc::Receiver<MemoryStream>,
    identify_when: IdentifyWhen,
}

impl MemoryListener {
    /// Sets when accepted streams can say who their peers are; at once unless set. See
    /// [`MemoryStream::identifying`].
    #[must_use]
    pub fn identifying(mut self, when: IdentifyWhen) -> Self {
        self.identify_when = when;
        self
    }
}

impl Listener for MemoryListener {
    /// Waits for ever once every connector is gone, as a listener does to which nobody connects.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            match self.accepted.recv().await {
                Some(stream) => {
                    Ok(Box::new(stream.identifying(self.identify_when)) as Box<dyn Stream>)
                }
                None => pending().await,
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// The clients' side of [`listen`]: clone it for as many clients as needed.
#[derive(Clone, Debug)]
pub struct MemoryConnector {
    connections: mpsc::Sender<MemoryStream>,
    service: PeerIdentity,
    capacity: usize,
}

impl MemoryConnector {
    /// Connects as `client`. Waits while 128 connections wait to be accepted. Cancel safe.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` when the listener is gone.
    pub async fn connect(&self, client: PeerIdentity) -> io::Result<MemoryStream> {
        let (at_service, at_client) = pair(self.service.clone(), client, self.capacity);
        match self.connections.send(at_service).await {
            Ok(()) => Ok(at_client),
            Err(_gone) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}
