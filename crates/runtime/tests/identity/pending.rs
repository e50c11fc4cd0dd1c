//! Before the operating system has said who a peer is: nothing is dispatched, nothing is sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use migration_ipc::messages::{OverallStatus, StatusUpdate, UserAction};
use migration_ipc::transport::memory::{self, MemoryConnector, MemoryStream};
use migration_ipc::transport::{BoxFuture, IdentifyError, IdentifyWhen, Stream};
use migration_ipc::{
    ConnectionEvent, IpcServer, MessageDispatcher, Observed, Peer, PeerIdentity, ServerLimits,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::common::*;

/// What the operating system says of a peer, and when.
#[derive(Debug, Clone)]
enum Verdict {
    /// The truth, once the gate lets it pass.
    Truth(Gate),
    Anonymous,
    Never,
}

/// A connection in memory that is identified as a test says.
#[derive(Debug)]
struct Judged {
    stream: MemoryStream,
    verdict: Verdict,
}

impl Stream for Judged {
    fn identify_when(&self) -> IdentifyWhen {
        self.stream.identify_when()
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        let truth = self.stream.identify();
        let verdict = self.verdict.clone();
        Box::pin(async move {
            match verdict {
                Verdict::Truth(gate) => {
                    gate.pass().await;
                    truth.await
                }
                Verdict::Anonymous => Err(IdentifyError::Anonymous),
                Verdict::Never => std::future::pending().await,
            }
        })
    }
}

impl AsyncRead for Judged {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Judged {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn on_action(_: UserAction, _: Peer) {}

fn dispatcher() -> MessageDispatcher {
    MessageDispatcher::builder(())
        .handle(on_action)
        .build()
        .unwrap()
}

/// A server that identifies its only client as the verdict says, after the first byte.
async fn judging(verdict: Verdict) -> (IpcServer, WirePeer) {
    let (listener, hand_over) = handed();
    let server = IpcServer::builder(dispatcher())
        .listener(listener)
        .start()
        .await
        .unwrap();
    let (at_service, at_client) = memory::pair(administrator(), user("1000"), CAPACITY);
    let stream = at_service.identifying(IdentifyWhen::AfterFirstRead);
    hand_over
        .send(Box::new(Judged { stream, verdict }))
        .await
        .unwrap();
    settle().await;
    (server, WirePeer::over(at_client))
}

async fn serve_after_first_read(limits: ServerLimits) -> (IpcServer, MemoryConnector) {
    let (listener, connector) = listen();
    let listening = (
        listener.identifying(IdentifyWhen::AfterFirstRead),
        connector,
    );
    serve_on(listening, dispatcher(), |server| server.limits(limits)).await
}

#[tokio::test(start_paused = true)]
async fn a_pending_connection_is_counted_and_otherwise_unknown() {
    let (server, connector) = serve_after_first_read(ServerLimits::default()).await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    eventually("it is pending", || {
        server.connections().counts().pending == 1
    })
    .await;
    assert!(server.connections().all().is_empty());
    let status = StatusUpdate::new(OverallStatus::Ready, vec![], vec![], 0);
    assert!(server.broadcast(&status).unwrap().had_no_recipient());
    // Heartbeats neither.
    assert!(peer.is_silent_for(Duration::from_secs(55)).await);
    let nothing = tokio::time::timeout(Duration::from_millis(1), events.recv()).await;
    assert!(nothing.is_err(), "{nothing:?}");

    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    let counts = server.connections().counts();
    assert_eq!((counts.pending, counts.identified), (0, 1));
    match events.recv().await.unwrap() {
        Observed::Item(ConnectionEvent::Connected { connection }) => {
            assert_eq!(connection.peer().account().as_str(), "1000");
        }
        other => panic!("{other:?}"),
    }
}

/// Whatever the read that came before the identity took in, in which pieces ever, is kept.
#[tokio::test(start_paused = true)]
async fn bytes_read_before_the_identity_are_kept() {
    let mut peer_of_no_server = WirePeer::over(memory::pair(user("1"), user("2"), 1).0);
    let mut bytes = Vec::new();
    for _ in 0..100 {
        bytes.extend(peer_of_no_server.frame("USER_ACTION", action("x")).1);
    }
    for first in [1, 3, 4, 5, 200, 4096, 5000, bytes.len()] {
        let (_server, connector) = serve_after_first_read(ServerLimits::default()).await;
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        peer.write(&bytes[..first]).await;
        settle().await;
        peer.write(&bytes[first..]).await;
        for number in 1..=100 {
            let answer = peer.receive_acknowledgment().await;
            assert_eq!(
                answer["originalMessageId"],
                format!("m{number}"),
                "after {first} bytes"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_dispatched_or_sent_before_the_identity_is_known() {
    let gate = Gate::closed();
    let (server, mut peer) = judging(Verdict::Truth(gate.clone())).await;
    let mut messages = server.messages();
    peer.send("USER_ACTION", action("x")).await;
    peer.send("HEARTBEAT", heartbeat(1)).await;
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
    let nothing = tokio::time::timeout(Duration::from_millis(1), messages.recv()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(server.connections().counts().pending, 1);
    gate.open();
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    assert_eq!(server.connections().counts().identified, 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_the_system_does_not_name_is_closed() {
    let watch = Watch::begin();
    let (server, mut peer) = judging(Verdict::Anonymous).await;
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_or_end().await, None);
    assert_eq!(server.connections().counts().total(), 0);
    assert_eq!(watch.counter("ipc_refusals_total", "unidentified"), 1);
    let warnings = watch.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("anonymous"), "{}", warnings[0]);
}

#[tokio::test(start_paused = true)]
async fn pending_has_a_deadline_of_its_own() {
    let start = tokio::time::Instant::now();
    let (server, mut peer) = judging(Verdict::Never).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_or_end().await, None);
    assert_eq!(start.elapsed().as_secs(), 80, "30 s from the first byte");
    assert_eq!(server.connections().counts().total(), 0);

    let start = tokio::time::Instant::now();
    let (server, mut peer) = judging(Verdict::Never).await;
    assert_eq!(peer.receive_or_end().await, None);
    assert_eq!(
        start.elapsed().as_secs(),
        60,
        "silence before the first byte"
    );
    assert_eq!(server.connections().counts().total(), 0);
}

/// Silence holds no place: whoever connects and says nothing cannot keep others out.
#[tokio::test(start_paused = true)]
async fn the_oldest_silent_pending_connection_gives_way_to_a_newcomer() {
    let watch = Watch::begin();
    let limits = ServerLimits {
        pending_connections: 2,
        ..ServerLimits::default()
    };
    let (server, connector) = serve_after_first_read(limits).await;
    let mut first = WirePeer::connect(&connector, user("1000")).await;
    let mut second = WirePeer::connect(&connector, user("1000")).await;
    let mut third = WirePeer::connect(&connector, user("2000")).await;
    assert_eq!(first.receive_or_end().await, None);
    assert_eq!(watch.counter("ipc_refusals_total", "gave_way"), 1);
    assert_eq!(server.connections().counts().pending, 2);
    // The others are unhurt, and who they are makes room.
    for peer in [&mut second, &mut third] {
        peer.send("USER_ACTION", action("x")).await;
        assert_eq!(peer.receive_acknowledgment().await["success"], true);
    }
    let counts = server.connections().counts();
    assert_eq!((counts.pending, counts.identified), (0, 2));
}

/// A thousand silent connections of somebody, and between any two of them somebody else's agent.
#[tokio::test(start_paused = true)]
async fn silent_connections_keep_nobody_out_who_speaks() {
    let (server, connector) = serve_after_first_read(ServerLimits::default()).await;
    let mut flood = Vec::new();
    for number in 0..1000 {
        flood.push(connector.connect(user("mallory")).await.unwrap());
        if number % 100 == 99 {
            let mut peer = WirePeer::connect(&connector, user("1000")).await;
            peer.send("USER_ACTION", action("x")).await;
            assert_eq!(peer.receive_acknowledgment().await["success"], true);
        }
    }
    let cap = ServerLimits::default().pending_connections;
    eventually("the flood is within its cap", || {
        server.connections().counts().pending <= cap
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pending_connections_that_have_spoken_have_a_cap() {
    let watch = Watch::begin();
    let (listener, hand_over) = handed();
    let server = IpcServer::builder(dispatcher())
        .listener(listener)
        .limits(ServerLimits {
            pending_connections: 2,
            ..ServerLimits::default()
        })
        .start()
        .await
        .unwrap();
    let gate = Gate::closed();
    let mut peers = Vec::new();
    for _ in 0..3 {
        let (at_service, at_client) = memory::pair(administrator(), user("1000"), CAPACITY);
        let stream = at_service.identifying(IdentifyWhen::AfterFirstRead);
        let verdict = Verdict::Truth(gate.clone());
        let judged = Judged { stream, verdict };
        hand_over.send(Box::new(judged)).await.unwrap();
        let mut peer = WirePeer::over(at_client);
        // The third is turned away before it can say anything.
        drop(peer.try_write(&[0]).await);
        settle().await;
        peers.push(peer);
    }
    assert_eq!(watch.counter("ipc_refusals_total", "pending_limit"), 1);
    assert_eq!(server.connections().counts().pending, 2);
    gate.open();
    eventually("who they are makes room", || {
        server.connections().counts().identified == 2
    })
    .await;
}

/// Each question costs a thread where the operating system is asked by one.
#[tokio::test(start_paused = true)]
async fn so_many_peers_are_asked_about_at_once_and_no_more() {
    const AT_ONCE: usize = 3;
    let (listener, hand_over) = handed();
    let server = IpcServer::builder(dispatcher())
        .listener(listener)
        .limits(ServerLimits {
            identifications: AT_ONCE,
            ..ServerLimits::default()
        })
        .start()
        .await
        .unwrap();
    let gate = Gate::closed();
    let mut peers = Vec::new();
    for _ in 0..10 {
        let (at_service, at_client) = memory::pair(administrator(), user("1000"), CAPACITY);
        let stream = at_service.identifying(IdentifyWhen::AfterFirstRead);
        let verdict = Verdict::Truth(gate.clone());
        let judged = Judged { stream, verdict };
        hand_over.send(Box::new(judged)).await.unwrap();
        let mut peer = WirePeer::over(at_client);
        peer.send("USER_ACTION", action("x")).await;
        peers.push(peer);
    }
    settle().await;
    // A gate that lets one pass is met by those who ask.
    assert_eq!(gate.waiting(), AT_ONCE);
    gate.admit(1);
    settle().await;
    assert_eq!(server.connections().counts().identified, 1);
    assert_eq!(gate.waiting(), AT_ONCE);
    gate.open();
    for peer in &mut peers {
        assert_eq!(peer.receive_acknowledgment().await["success"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn connections_have_a_cap() {
    let watch = Watch::begin();
    let limits = ServerLimits {
        connections: 2,
        reserved_connections: 0,
        operator_connections: 0,
        ..ServerLimits::default()
    };
    let (listener, connector) = listen();
    let (server, connector) = serve_on((listener, connector), dispatcher(), |server| {
        server.limits(limits)
    })
    .await;
    let mut first = WirePeer::connect(&connector, user("1000")).await;
    let second = WirePeer::connect(&connector, user("1000")).await;
    let mut third = WirePeer::connect(&connector, user("1000")).await;
    assert_eq!(third.receive_or_end().await, None);
    assert_eq!(watch.counter("ipc_refusals_total", "connection_limit"), 1);
    first.send("USER_ACTION", action("x")).await;
    assert_eq!(
        first.receive_acknowledgment().await["success"],
        true,
        "the others go on"
    );
    drop(second);
    eventually("its place is free", || {
        server.connections().counts().total() == 1
    })
    .await;
    let mut fourth = WirePeer::connect(&connector, user("1000")).await;
    fourth.send("USER_ACTION", action("x")).await;
    assert_eq!(fourth.receive_acknowledgment().await["success"], true);
}
