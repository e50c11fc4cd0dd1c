//! Long messages that outlive their connections: what has arrived is not sent again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ErrorReport};
use migration_ipc::transport::Stream;
use migration_ipc::transport::memory::{self, MemoryConnector, MemoryStream};
use migration_ipc::{
    Backoff, ConnectionConfig, Execution, Fate, IpcServer, MessageDispatcher, Receipt,
    ReconnectState, ReconnectingIpcClient, SendError,
};
use migration_ipc_protocol::FrameDecoder;
use migration_ipc_protocol::extensions::Chunk;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stage::*;
use crate::common::*;

/// Which way through a link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToService,
    ToAgent,
}

/// What went through one link in the direction of its cut: where pieces began, and how much of them
/// had gone through whole when it was cut.
#[derive(Clone, Copy, Default, Debug)]
struct Passed {
    first: Option<u64>,
    end: u64,
    pieces: u64,
}

/// Links between a client and a service that are cut after so many bytes of pieces.
#[derive(Clone)]
struct Links {
    way: Way,
    /// Whole pieces' bytes after which each of the next links is cut.
    cuts: Arc<Mutex<VecDeque<u64>>>,
    passed: Arc<Mutex<Vec<Passed>>>,
}

impl Links {
    fn new(way: Way, cuts: impl IntoIterator<Item = u64>) -> Self {
        Self {
            way,
            cuts: Arc::new(Mutex::new(cuts.into_iter().collect())),
            passed: Arc::default(),
        }
    }

    fn passed(&self) -> Vec<Passed> {
        self.passed.lock().unwrap().clone()
    }

    /// A stream of a client over a new link.
    async fn connect(self, connector: MemoryConnector) -> std::io::Result<MemoryStream> {
        let service = connector.connect(user("1000")).await?;
        let identity = service.identify().await.unwrap();
        let (at_client, near) = memory::pair(identity, user("1000"), CAPACITY);
        let cut = self.cuts.lock().unwrap().pop_front();
        tokio::spawn(async move {
            let (near_read, near_write) = tokio::io::split(near);
            let (far_read, far_write) = tokio::io::split(service);
            let (there, back) = match self.way {
                Way::ToService => (cut, None),
                Way::ToAgent => (None, cut),
            };
            let number = self.begin_link();
            // Either end of it is the end of both.
            tokio::select! {
                () = self.carry(near_read, far_write, Way::ToService, there, number) => {}
                () = self.carry(far_read, near_write, Way::ToAgent, back, number) => {}
            }
        });
        Ok(at_client)
    }

    fn begin_link(&self) -> usize {
        let mut passed = self.passed.lock().unwrap();
        passed.push(Passed::default());
        passed.len() - 1
    }

    /// Carries whole frames in one direction, up to its cut.
    async fn carry(
        &self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
        way: Way,
        cut: Option<u64>,
        number: usize,
    ) {
        let mut decoder = FrameDecoder::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Ok(count @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            let mut input = &buffer[..count];
            while let Ok(Some(body)) = decoder.decode(&mut input) {
                if let Ok(piece) = Chunk::read(body)
                    && way == self.way
                {
                    let passed = &mut self.passed.lock().unwrap()[number];
                    if cut.is_some_and(|cut| passed.pieces >= cut) {
                        return;
                    }
                    passed.first.get_or_insert(piece.offset);
                    passed.end = piece.offset + piece.data.len() as u64;
                    passed.pieces += piece.data.len() as u64;
                }
                let frame = frame_of_bytes(body);
                if to.write_all(&frame).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn client_over(
    links: &Links,
    connector: &MemoryConnector,
    dispatcher: MessageDispatcher,
) -> migration_ipc::ReconnectingIpcClientBuilder {
    let (links, connector) = (links.clone(), connector.clone());
    ReconnectingIpcClient::builder(dispatcher)
        .connector(move || links.clone().connect(connector.clone()))
        .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
        .backoff(Backoff::default().unlimited())
        .execution(Execution::Inline)
        .seed(7)
}

async fn fate(receipt: Receipt) -> Fate {
    tokio::time::timeout(LONG_PATIENCE, receipt.fate())
        .await
        .expect("not stuck")
        .clone()
}

/// Each link went on where the one before it was cut, to the byte.
fn assert_nothing_twice(links: &Links, total: usize) {
    let carrying: Vec<Passed> = links
        .passed()
        .into_iter()
        .filter(|passed| passed.first.is_some())
        .collect();
    for pair in carrying.windows(2) {
        assert_eq!(pair[1].first, Some(pair[0].end), "{carrying:?}");
    }
    let sum: u64 = carrying.iter().map(|passed| passed.pieces).sum();
    assert_eq!(sum, total as u64, "{carrying:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_goes_on_where_its_connection_was_lost() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..8 {
        let cuts: Vec<u64> = (0..rng.usize(1..5))
            .map(|_| rng.u64(32_000..1_000_000))
            .collect();
        let (_server, connector, seen) = service(|server| server).await;
        let links = Links::new(Way::ToService, cuts.clone());
        let client = client_over(&links, &connector, MessageDispatcher::empty())
            .start()
            .await
            .unwrap();
        let receipt = client.send_large(report(5 * MIB)).await.unwrap();
        let id = receipt.id().clone();
        let fate = fate(receipt).await;
        assert!(fate.is_handled(), "{fate}");
        assert!(
            seen.take() == [long_text(5 * MIB)],
            "as it was sent, and once"
        );
        let connections = links.passed().len();
        assert_eq!(connections, cuts.len() + 1, "{cuts:?}");
        let envelope = migration_ipc::IpcMessage::new(
            id,
            migration_ipc::Timestamp::from_unix_micros(1),
            &report(5 * MIB),
        );
        let text = envelope.unwrap().payload.unwrap().get().len();
        let total: u64 = links.passed().iter().map(|passed| passed.pieces).sum();
        let total = usize::try_from(total).unwrap();
        assert!(total > text && total < text + 300, "{total} for {text}");
        assert_nothing_twice(&links, total);
        client.stop(Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_goes_on_where_the_connection_of_its_agent_was_lost() {
    let (server, connector, _) = service(|server| server).await;
    let links = Links::new(Way::ToAgent, [500_000]);
    let seen = Seen::default();
    let client = client_over(&links, &connector, agent_dispatcher(&seen))
        .start()
        .await
        .unwrap();
    let connection = announced(&server).await;
    let mut sending = connection.send_large(setting(2 * MIB)).unwrap();
    let total = usize::try_from(sending.progress().total()).unwrap();
    let error = within(&mut sending).await.unwrap_err();
    assert!(matches!(error, SendError::Closed(_)), "{error}");
    let connected = async {
        let mut state = client.state();
        let _ = state
            .wait_for(|state| matches!(state, ReconnectState::Connected { .. }))
            .await;
    };
    within(connected).await;
    let connection = announced(&server).await;
    let again = sending.again_over(&connection);
    assert_eq!(again.id(), sending.id());
    within(again).await.unwrap();
    assert!(
        seen.take() == [long_text(2 * MIB)],
        "as it was sent, and once"
    );
    assert_nothing_twice(&links, total);
}

async fn announced(server: &IpcServer) -> migration_ipc::IpcConnection {
    eventually("an announced agent", || {
        server
            .connections()
            .all()
            .iter()
            .any(|connection| connection.announcement().is_some())
    })
    .await;
    only_connection(server).await
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_accepted_before_there_is_a_service_waits_for_it() {
    let (listener, connector) = listen();
    let links = Links::new(Way::ToService, []);
    let client = client_over(&links, &connector, MessageDispatcher::empty())
        .start()
        .await
        .unwrap();
    let receipt = client.send_large(report(3 * MIB)).await.unwrap();
    assert_eq!(client.outstanding(), 1);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(receipt.try_fate().is_none());
    let seen = Seen::default();
    let (_server, _) = serve_on((listener, connector), dispatcher(&seen), |server| server).await;
    assert!(fate(receipt).await.is_handled());
    assert_eq!(client.outstanding(), 0);
    assert_eq!(seen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_service_does_not_take_is_not_sent() {
    let mut config = ConnectionConfig::default();
    config.limits.chunked_bytes = MIB;
    let (_server, connector, seen) = service(|server| server.connection_config(config)).await;
    let links = Links::new(Way::ToService, []);
    let client = client_over(&links, &connector, MessageDispatcher::empty())
        .start()
        .await
        .unwrap();
    let receipt = client.send_large(report(3 * MIB)).await.unwrap();
    let told = fate(receipt).await;
    assert!(
        matches!(told, Fate::NotSent(SendError::TooLarge { .. })),
        "{told}"
    );
    let receipt = client.send_large(report(1000)).await.unwrap();
    assert!(fate(receipt).await.is_handled());
    assert_eq!(seen.len(), 1);
}

/// The last piece went out, and the answer did not come back.
#[tokio::test(start_paused = true)]
async fn what_may_have_been_handled_is_unknown_and_not_sent_again() {
    async fn on_report(_: ErrorReport) {
        std::future::pending::<()>().await;
    }
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(on_report)
        .build()
        .unwrap();
    let (server, connector) = serve(dispatcher).await;
    let links = Links::new(Way::ToService, []);
    let client = client_over(&links, &connector, MessageDispatcher::empty())
        .start()
        .await
        .unwrap();
    let receipt = client.send_large(report(3 * MIB)).await.unwrap();
    let total = 3 * MIB as u64;
    eventually("all of it went out", || {
        links.passed().iter().any(|passed| passed.end > total)
    })
    .await;
    settle().await;
    only_connection(&server).await.close();
    let told = fate(receipt).await;
    assert!(matches!(told, Fate::Unknown(_)), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_says_what_it_did_not_send() {
    let (_listener, connector) = listen();
    let links = Links::new(Way::ToService, []);
    let client = client_over(&links, &connector, MessageDispatcher::empty())
        .start()
        .await
        .unwrap();
    let receipt = client.send_large(report(3 * MIB)).await.unwrap();
    let remaining = client.stop(Duration::from_secs(1)).await;
    assert_eq!(remaining.dropped, 1);
    let told = fate(receipt).await;
    assert!(
        matches!(told, Fate::NotSent(SendError::Closed(_))),
        "{told}"
    );
    let error = client.send_large(report(10)).await.unwrap_err();
    assert!(matches!(error, SendError::Closed(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn senders_of_many_long_messages_wait_for_their_turn() {
    let (listener, connector) = listen();
    let links = Links::new(Way::ToService, []);
    let client = client_over(&links, &connector, MessageDispatcher::empty())
        .start()
        .await
        .unwrap();
    let mut receipts = Vec::new();
    for _ in 0..16 {
        receipts.push(client.send_large(report(1000)).await.unwrap());
    }
    let mut waiting = Box::pin(client.send_large(report(1000)));
    let waits = tokio::time::timeout(Duration::from_secs(10), &mut waiting);
    assert!(waits.await.is_err());
    let seen = Seen::default();
    let (_server, _) = serve_on((listener, connector), dispatcher(&seen), |server| server).await;
    receipts.push(within(waiting).await.unwrap());
    for receipt in receipts {
        assert!(fate(receipt).await.is_handled());
    }
    assert_eq!(seen.len(), 17);
}
