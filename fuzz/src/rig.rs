//! A service in memory, in virtual time, that lives from one run to the next; and peers of bytes.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use migration_ipc::transport::memory::{self, MemoryListener, MemoryStream};
use migration_ipc::transport::{BoxFuture, IdentifyError, IdentifyWhen, Listener, Stream};
use migration_ipc::{
    AccountId, Compression, ConnectionConfig, ConnectionEvent, Encryption, Endpoint, EventStream,
    IpcServer, IpcServerBuilder, Observed, PeerIdentity, Privilege,
};
use migration_ipc_protocol::extensions::{BodyKind, Chunk, Decompressor, compress_frame};
use migration_ipc_protocol::hello::{Capability, Hello};
use migration_ipc_protocol::{Envelope, FrameDecoder, message_types};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, EnterGuard, Runtime};
use tokio::sync::mpsc;

use crate::encrypted::{Offer, Session, of_service};

/// Bytes that each direction of a connection holds.
const CAPACITY: usize = 64 * 1024;

/// Connections that wait for the service to make progress.
const BACKLOG: usize = 16;

/// How the operating system says who a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identification {
    /// At once.
    Now,
    /// After the first bytes, as on Windows.
    AfterFirstRead,
    /// So many seconds later.
    Late(u8),
    /// It does not: there is an error.
    Refused,
    /// Nothing comes.
    Never,
}

/// The service's end of a connection.
#[derive(Debug)]
struct AcceptedStream {
    bytes: MemoryStream,
    how: Identification,
    /// Set once the operating system has said who the peer is.
    identified: Arc<AtomicBool>,
}

mod subject {
    use super::{IdentifyError, PeerIdentity};

    #[cfg(not(feature = "planted"))]
    pub(super) fn identity(
        answer: Result<PeerIdentity, IdentifyError>,
    ) -> Result<PeerIdentity, IdentifyError> {
        answer
    }

    /// Takes somebody whom the operating system does not know for an ordinary user.
    #[cfg(feature = "planted")]
    pub(super) fn identity(
        answer: Result<PeerIdentity, IdentifyError>,
    ) -> Result<PeerIdentity, IdentifyError> {
        answer.or_else(|_| Ok(super::user("nobody")))
    }
}

impl Stream for AcceptedStream {
    fn identify_when(&self) -> IdentifyWhen {
        match self.how {
            Identification::AfterFirstRead => IdentifyWhen::AfterFirstRead,
            Identification::Now
            | Identification::Late(_)
            | Identification::Refused
            | Identification::Never => IdentifyWhen::Now,
        }
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        let (how, identified) = (self.how, Arc::clone(&self.identified));
        let known = self.bytes.identify();
        Box::pin(async move {
            match how {
                Identification::Now | Identification::AfterFirstRead => {}
                Identification::Late(seconds) => {
                    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                }
                Identification::Refused => return subject::identity(Err(IdentifyError::Anonymous)),
                Identification::Never => std::future::pending().await,
            }
            let identity = known.await?;
            identified.store(true, Ordering::Relaxed);
            Ok(identity)
        })
    }
}

impl AsyncRead for AcceptedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(cx, buffer)
    }
}

impl AsyncWrite for AcceptedStream {
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
}

#[derive(Debug)]
struct Accepting {
    streams: mpsc::Receiver<AcceptedStream>,
    /// Lends its name.
    named: MemoryListener,
}

impl Listener for Accepting {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            match self.streams.recv().await {
                Some(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
                None => std::future::pending().await,
            }
        })
    }

    fn endpoint(&self) -> &Endpoint {
        self.named.endpoint()
    }
}

/// An ordinary user.
#[must_use]
pub fn user(name: &str) -> PeerIdentity {
    PeerIdentity::new(AccountId::new(name), Privilege::Ordinary)
}

/// root, SYSTEM.
#[must_use]
pub fn administrator() -> PeerIdentity {
    PeerIdentity::new(AccountId::new("0"), Privilege::Administrator)
}

/// The service, and the runtime on which it makes progress only when it is told to.
pub struct Rig {
    runtime: &'static Runtime,
    _entered: EnterGuard<'static>,
    pub server: IpcServer,
    events: EventStream,
    connections: mpsc::Sender<AcceptedStream>,
}

impl Rig {
    /// Starts the service that is built in the runtime. It ends with the process. It compresses what
    /// it can, and encrypts with those who offer it.
    pub fn start(build: impl FnOnce() -> IpcServerBuilder) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let runtime: &'static Runtime = Box::leak(Box::new(runtime));
        let (connections, streams) = mpsc::channel(BACKLOG);
        let (named, _) = memory::listen("fuzz", administrator(), 1);
        let accepting = Accepting { streams, named };
        let server = runtime
            .block_on(async {
                let config = ConnectionConfig {
                    compression: Compression::From(Compression::MIN_THRESHOLD),
                    ..ConnectionConfig::default()
                };
                let builder = build()
                    .connection_config(config)
                    .encryption(Encryption::offered(of_service()));
                builder.listener(accepting).start().await
            })
            .expect("a good configuration");
        Self {
            runtime,
            _entered: runtime.enter(),
            events: server.events(),
            server,
            connections,
        }
    }

    /// Lets everybody do what can be done without time passing.
    pub fn settle(&self) {
        self.pass(Duration::from_millis(1));
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.runtime.block_on(tokio::time::sleep(time));
    }

    /// Connects as somebody.
    pub fn connect(&self, identity: PeerIdentity, how: Identification) -> Peer {
        let (at_service, at_peer) = memory::pair(administrator(), identity, CAPACITY);
        let bytes = match how {
            Identification::AfterFirstRead => at_service.identifying(IdentifyWhen::AfterFirstRead),
            Identification::Now
            | Identification::Late(_)
            | Identification::Refused
            | Identification::Never => at_service,
        };
        let identified = Arc::new(AtomicBool::new(false));
        let stream = AcceptedStream {
            bytes,
            how,
            identified: Arc::clone(&identified),
        };
        self.connections
            .try_send(stream)
            .expect("the service accepts");
        Peer {
            bytes: at_peer,
            identified,
            sent: Vec::new(),
            received: Vec::new(),
            state: Reading::Open,
            compresses: false,
            offers: Vec::new(),
            session: None,
        }
    }

    /// Does something with the service, for as long as it takes.
    pub fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// What happened to connections since the last call.
    pub fn events(&mut self) -> Vec<ConnectionEvent> {
        let mut happened = Vec::new();
        loop {
            let next = pin!(self.events.recv());
            match next.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Observed::Item(event))) => happened.push(event),
                Poll::Ready(Some(Observed::Missed(missed))) => panic!("{missed} events missed"),
                Poll::Ready(None) => panic!("the service is gone"),
                Poll::Pending => return happened,
            }
        }
    }
}

/// Whether a peer's service still writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Open,
    Ended,
}

/// Somebody who talks to the service in bytes, and never waits.
pub struct Peer {
    bytes: MemoryStream,
    identified: Arc<AtomicBool>,
    /// Everything that was written, before it was encrypted.
    pub sent: Vec<u8>,
    /// Everything that came, as it was before it was encrypted.
    pub received: Vec<u8>,
    pub state: Reading,
    /// Whether its messages are compressed, where that makes them shorter.
    pub compresses: bool,
    /// The handshakes that it has begun.
    offers: Vec<Offer>,
    /// Its encryption, once the service has agreed.
    pub session: Option<Session>,
}

impl Peer {
    /// Whether the operating system has told the service who this is.
    #[must_use]
    pub fn identified(&self) -> bool {
        self.identified.load(Ordering::Relaxed)
    }

    /// A message in the form in which the peer sends it.
    #[must_use]
    pub fn squeezed(&self, message: Vec<u8>) -> Vec<u8> {
        let mut shorter = Vec::new();
        if self.compresses && compress_frame(&message, &mut shorter) {
            return shorter;
        }
        message
    }

    /// Writes a message.
    pub fn send(&mut self, message: Vec<u8>) {
        let message = self.squeezed(message);
        self.write(&message);
    }

    /// Begins a handshake with the hello that is returned, for the caller to write.
    pub fn offer(&mut self, offer: Offer) -> Vec<u8> {
        let hello = offer.hello().to_vec();
        self.offers.push(offer);
        hello
    }

    /// Says that it encrypts from now on, and does so if the service has agreed.
    pub fn mark(&mut self) {
        self.write(&message("e", "ENCRYPTED", None, "{}"));
        if let Some(session) = &mut self.session {
            session.sends = true;
        }
    }

    /// Does what is left to do for encryption, if the service has agreed.
    pub fn encrypt(&mut self) {
        if let Some(session) = self.session.as_ref().filter(|session| !session.sends) {
            let payload = format!(r#"{{"transcript":"{}"}}"#, session.transcript);
            self.mark();
            self.write(&message("f", "ENCRYPTION_CONFIRM", None, &payload));
        }
    }

    /// Writes as much as the service takes, encrypted once that has begun; what it does not take is
    /// lost, as is everything after its end.
    pub fn write(&mut self, bytes: &[u8]) {
        let Some(session) = self.session.as_mut().filter(|session| session.sends) else {
            return self.write_clear(bytes);
        };
        let mut records = Vec::new();
        let sealed = session.sealer.seal(bytes, &mut records);
        sealed.expect("there are numbers left");
        self.sent.extend_from_slice(bytes);
        let before = self.sent.len();
        self.write_clear(&records);
        self.sent.truncate(before);
    }

    /// Writes bytes as they are.
    pub fn write_clear(&mut self, mut bytes: &[u8]) {
        let cx = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(count @ 1..)) = Pin::new(&mut self.bytes).poll_write(cx, bytes) {
            self.sent.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if bytes.is_empty() {
                break;
            }
        }
    }

    /// Writes nothing more.
    pub fn shut_down(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self.bytes).poll_shutdown(cx);
    }

    /// Takes what is there.
    pub fn read(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut block = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut block);
            match Pin::new(&mut self.bytes).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.take(buffer.filled());
                }
                Poll::Ready(Ok(()) | Err(_)) => {
                    self.state = Reading::Ended;
                    return;
                }
                Poll::Pending => return,
            }
        }
    }

    /// Takes what came, and opens what is encrypted.
    fn take(&mut self, bytes: &[u8]) {
        if let Some(session) = &mut self.session {
            let opened = session.opener.open(bytes, &mut self.received);
            return opened.expect("a service writes records");
        }
        self.received.extend_from_slice(bytes);
        if !self.offers.is_empty() {
            self.agree();
        }
    }

    /// Looks for the answer to one of the offers: everything behind it is encrypted.
    fn agree(&mut self) {
        let mut at = 0;
        while let Some((length, rest)) = self.received[at..].split_first_chunk::<4>() {
            let length = i32::from_le_bytes(*length);
            let length = usize::try_from(length).expect("a service writes frames");
            let Some(body) = rest.get(..length) else {
                return;
            };
            let end = at + 4 + length;
            if let Some(message) = agreement(body) {
                let message = message.parse().expect("a message of the handshake");
                let frame = &self.received[at..end];
                let mut offers = self.offers.drain(..);
                let session = offers.find_map(|offer| offer.finish(&message, frame));
                drop(offers);
                self.session = Some(session.expect("the answer to an offer"));
                let behind = self.received.split_off(end);
                return self.take(&behind);
            }
            at = end;
        }
    }

    /// Checks that everything that came is frames, and hands out their bodies as they were before
    /// they were compressed. The last one may not be whole before the end.
    pub fn bodies(&self, mut take: impl FnMut(BodyKind, &[u8])) {
        let mut decoder = FrameDecoder::new();
        let mut decompressor = Decompressor::new();
        let mut input = self.received.as_slice();
        while let Some(body) = decoder.decode(&mut input).expect("a service writes frames") {
            match BodyKind::of(body) {
                kind @ (BodyKind::Json | BodyKind::Chunk) => take(kind, body),
                kind @ BodyKind::Compressed => {
                    let original = decompressor.open(body);
                    take(kind, original.expect("a service compresses well"));
                }
            }
        }
        assert!(!decoder.has_partial(), "a service writes whole frames");
        let buffered = self.session.as_ref().map(|it| it.opener.buffered());
        assert_eq!(buffered.unwrap_or(0), 0, "a service writes whole records");
    }

    /// Checks that everything that came is messages, and hands them out; pieces of longer ones are
    /// checked alone.
    pub fn messages(&self, mut take: impl FnMut(&Envelope<'_>)) {
        self.bodies(|_, body| {
            if BodyKind::of(body) == BodyKind::Chunk {
                Chunk::read(body).expect("a service writes pieces");
                return;
            }
            let envelope = Envelope::parse(body).expect("a service writes envelopes");
            take(&envelope);
        });
    }
}

/// The service's part of the handshake, if this is a hello that has it.
fn agreement(body: &[u8]) -> Option<String> {
    let envelope = Envelope::parse(body).ok()?;
    if envelope.message_type != message_types::HELLO {
        return None;
    }
    Some(envelope.payload::<Hello>().ok()?.encryption?.message)
}

/// A frame around a body.
#[must_use]
pub fn frame(body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len()).expect("a short body");
    [&length.to_le_bytes(), body].concat()
}

/// A message as a frame; the payload is JSON.
#[must_use]
pub fn message(id: &str, message_type: &str, in_reply_to: Option<&str>, payload: &str) -> Vec<u8> {
    let reply = match in_reply_to {
        Some(original) => format!(r#","inReplyTo":"{original}""#),
        None => String::new(),
    };
    frame(
        format!(
            r#"{{"id":"{id}","type":"{message_type}","timestamp":"2024-01-01T12:00:00Z","payload":{payload}{reply}}}"#
        )
        .as_bytes(),
    )
}

/// A message with these members before its payload, each with a comma behind it.
#[must_use]
pub fn message_with(id: &str, message_type: &str, members: &str, payload: &str) -> Vec<u8> {
    frame(
        format!(
            r#"{{"id":"{id}","type":"{message_type}","timestamp":"2024-01-01T12:00:00Z",{members}"payload":{payload}}}"#
        )
        .as_bytes(),
    )
}

/// A piece of a body, as a frame. It need not be a good one.
#[must_use]
pub fn piece(transfer: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let chunk = Chunk {
        transfer,
        offset,
        data,
    };
    frame(&[&chunk.head()[..], data].concat())
}

/// A hello that can do what the bits of `capabilities` say.
#[must_use]
pub fn hello(id: &str, role: &str, capabilities: usize, credit: u32) -> Vec<u8> {
    hello_with(id, role, capabilities, credit, "")
}

/// The bit of encryption.
pub const ENCRYPTION: usize = 1 << 12;

/// A hello with another member, with a comma before it.
#[must_use]
pub fn hello_with(id: &str, role: &str, capabilities: usize, credit: u32, member: &str) -> Vec<u8> {
    let known: Vec<_> = (0..)
        .zip(Capability::ALL)
        .filter(|(bit, _)| capabilities & (1 << bit) != 0)
        .map(|(_, capability)| format!(r#""{}""#, capability.as_str()))
        .collect();
    let payload = format!(
        r#"{{"protocol":{{"min":1,"max":1}},"role":"{role}","credit":{credit},"limits":{{"payload":1000000}},"capabilities":[{}]{member}}}"#,
        known.join(",")
    );
    message(id, "HELLO", None, &payload)
}
