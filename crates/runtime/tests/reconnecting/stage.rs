//! A service that comes and goes, and clients of it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::storage::disk::Disk;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::transport::Listener;
use migration_ipc::transport::memory::{MemoryConnector, MemoryListener, MemoryStream};
use migration_ipc::{
    Backoff, Execution, Fate, MessageDispatcher, Receipt, ReconnectState, ReconnectingIpcClient,
    ReconnectingIpcClientBuilder,
};
use migration_ipc_testkit::disk::SimDisk;
use serde_json::{Value, json};

use crate::common::*;

/// Where a service may or may not be.
#[derive(Clone, Default)]
pub(crate) struct Site(Arc<Mutex<Option<MemoryConnector>>>);

impl Site {
    /// A service begins to listen.
    pub(crate) fn open(&self) -> MemoryListener {
        let (listener, connector) = listen();
        *self.0.lock().unwrap() = Some(connector);
        listener
    }

    pub(crate) fn connect(&self) -> impl Future<Output = io::Result<MemoryStream>> + Send + use<> {
        let connector = self.0.lock().unwrap().clone();
        async move {
            match connector {
                Some(connector) => connector.connect(user("1000")).await,
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        }
    }

    /// A client of whatever is there, with the usual announcement and a seed that is printed.
    pub(crate) fn client(&self) -> ReconnectingIpcClientBuilder {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let site = self.clone();
        ReconnectingIpcClient::builder(MessageDispatcher::empty())
            .connector(move || site.connect())
            .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
            .backoff(Backoff::default().unlimited())
            .execution(Execution::Inline)
            .seed(seed)
    }

    /// The same with an outbox on this disk.
    pub(crate) fn durable_client(&self, disk: &SimDisk) -> ReconnectingIpcClientBuilder {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        self.client().outbox(disk, OutboxOptions::default())
    }
}

/// What a service of these tests can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It knows no hello.
    Plain,
    /// It recognises repetitions.
    Durable,
}

/// A client, and the service that it is connected to. The listener has to be kept for as long as the
/// client should find somebody there.
pub(crate) async fn connected_client(
    kind: Kind,
) -> (Site, ReconnectingIpcClient, MemoryListener, WirePeer) {
    let site = Site::default();
    let client = site.client().start().await.unwrap();
    let mut listener = site.open();
    let peer = accept(&mut listener, kind).await;
    (site, client, listener, peer)
}

/// The same with an outbox, and its disk.
pub(crate) async fn connected_durable_client(
    kind: Kind,
) -> (
    Site,
    SimDisk,
    ReconnectingIpcClient,
    MemoryListener,
    WirePeer,
) {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let mut listener = site.open();
    let peer = accept(&mut listener, kind).await;
    (site, disk, client, listener, peer)
}

/// Takes the next connection up to where messages come: hello and announcement are answered.
pub(crate) async fn accept(listener: &mut MemoryListener, kind: Kind) -> WirePeer {
    accept_seen(listener, kind, 0).await
}

pub(crate) async fn accept_seen(listener: &mut MemoryListener, kind: Kind, seen: u64) -> WirePeer {
    let answer = json!({"seen": seen, "credit": 10_000});
    accept_with(listener, kind, answer).await
}

/// A new service answers the hello with these members.
pub(crate) async fn accept_with(
    listener: &mut MemoryListener,
    kind: Kind,
    members: Value,
) -> WirePeer {
    let stream = tokio::time::timeout(LONG_PATIENCE, listener.accept());
    let mut peer = WirePeer::over_boxed(stream.await.expect("a connection").unwrap());
    let hello = peer.receive().await;
    assert_eq!(hello["type"], "HELLO");
    match kind {
        Kind::Plain => {
            let mut refusal = acknowledgment(&hello);
            refusal["success"] = false.into();
            refusal["error"] = "No handler registered for message type: HELLO".into();
            peer.send("ACKNOWLEDGMENT", refusal).await;
        }
        Kind::Durable => {
            let mut answer = crate::common::hello("agent", 0);
            // Everything but what would put several messages into one frame.
            let mut capabilities = hello["payload"]["capabilities"].clone();
            let list = capabilities.as_array_mut().unwrap();
            list.retain(|name| name != "batch");
            answer["capabilities"] = capabilities;
            for (name, value) in members.as_object().unwrap() {
                answer[name] = value.clone();
            }
            peer.reply(&hello, "HELLO", answer).await;
        }
    }
    let started = peer.receive().await;
    assert_eq!(started["type"], "AGENT_STARTED", "{started}");
    peer.acknowledge(&started).await;
    peer
}

/// Refuses a message.
pub(crate) async fn refuse(peer: &mut WirePeer, message: &Value, code: Option<&str>) {
    let mut refusal = acknowledgment(message);
    refusal["success"] = false.into();
    refusal["error"] = "refused".into();
    refusal["code"] = json!(code);
    peer.send("ACKNOWLEDGMENT", refusal).await;
}

pub(crate) fn act(name: impl std::fmt::Display) -> UserAction {
    UserAction::new("", format!("{name}"))
}

/// The names of the actions that come next.
pub(crate) async fn actions(peer: &mut WirePeer, count: usize) -> Vec<Value> {
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.push(peer.receive_type("USER_ACTION").await);
    }
    messages
}

pub(crate) fn names(messages: &[Value]) -> Vec<&str> {
    let name = |message: &'_ Value| message["payload"]["action"].as_str().map(str::to_owned);
    messages
        .iter()
        .map(|message| {
            assert!(name(message).is_some(), "{message}");
            message["payload"]["action"].as_str().unwrap()
        })
        .collect()
}

pub(crate) async fn fate(receipt: &Receipt) -> &Fate {
    tokio::time::timeout(LONG_PATIENCE, receipt.fate())
        .await
        .expect("the receipt resolves")
}

pub(crate) fn label(receipt: &Receipt) -> &'static str {
    receipt.try_fate().map_or("pending", Fate::label)
}

/// Waits until the client is where this says.
pub(crate) async fn until(
    client: &ReconnectingIpcClient,
    wanted: impl FnMut(&ReconnectState) -> bool,
) -> ReconnectState {
    let mut state = client.state();
    let reached = tokio::time::timeout(LONG_PATIENCE, state.wait_for(wanted));
    let reached = reached.await.expect("the state is reached");
    reached.expect("the client lives").clone()
}

pub(crate) const SOON: Duration = Duration::from_secs(2);
