//! What the tests of chunks share.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, ErrorReport, UserAction};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    Announcement, ConnectionState, IpcConnection, IpcServer, IpcServerBuilder, MessageDispatcher,
    State,
};
use migration_ipc_protocol::extensions::{Chunk, Sha256};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::common::*;

pub(crate) const MIB: usize = 1024 * 1024;

/// What handlers were given.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn push(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub(crate) async fn on_report(report: ErrorReport, State(seen): State<Seen>) {
    seen.push(report.message);
}

/// A service whose handlers take reports and actions, and note the reports.
pub(crate) fn dispatcher(seen: &Seen) -> MessageDispatcher {
    MessageDispatcher::builder(seen.clone())
        .handle(|_: AgentStarted| async {})
        .handle(|_: UserAction| async {})
        .handle(on_report)
        .build()
        .unwrap()
}

pub(crate) async fn service(
    set_up: impl FnOnce(IpcServerBuilder) -> IpcServerBuilder,
) -> (IpcServer, MemoryConnector, Seen) {
    let seen = Seen::default();
    let (server, connector) = serve_with(dispatcher(&seen), set_up).await;
    (server, connector, seen)
}

/// An agent's dispatcher that notes the values of settings.
pub(crate) fn agent_dispatcher(seen: &Seen) -> MessageDispatcher {
    async fn on_update(update: ConfigurationUpdate, State(seen): State<Seen>) {
        seen.push(update.value.as_str().unwrap_or_default().to_owned());
    }
    MessageDispatcher::builder(seen.clone())
        .handle(on_update)
        .build()
        .unwrap()
}

/// A text that says where in it one is, so that what is mixed up shows.
pub(crate) fn long_text(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        text.push_str(&format!("{:08} ", text.len()));
    }
    text.truncate(bytes);
    text
}

pub(crate) fn report(bytes: usize) -> ErrorReport {
    ErrorReport::new("", "big", long_text(bytes))
}

pub(crate) fn setting(bytes: usize) -> ConfigurationUpdate {
    ConfigurationUpdate::new("key", Value::from(long_text(bytes)))
}

/// A body that the service's handler takes.
pub(crate) fn report_body(id: &str, bytes: usize) -> Vec<u8> {
    let payload = json!({"userId": "", "errorCode": "big", "message": long_text(bytes)});
    envelope(id, "ERROR_REPORT", payload)
        .to_string()
        .into_bytes()
}

/// A hello of a peer that takes so many bytes in chunks.
pub(crate) fn chunk_hello(payload: u64) -> Value {
    let mut hello = hello("agent", 1000);
    let capabilities = hello["capabilities"].as_array_mut().unwrap();
    capabilities.push("chunks".into());
    hello["limits"] = json!({"payload": payload});
    hello
}

/// A peer that speaks bytes, behind its hello, and the answer to that.
pub(crate) async fn peer_of(connector: &MemoryConnector, name: &str) -> (WirePeer, Value) {
    let mut peer = WirePeer::connect(connector, user(name)).await;
    peer.send("HELLO", chunk_hello(16 * MIB as u64)).await;
    let answer = peer.receive().await;
    assert_eq!(answer["type"], "HELLO");
    (peer, answer)
}

/// The same, announced, and the service's end of its connection.
pub(crate) async fn agent_of(
    server: &IpcServer,
    connector: &MemoryConnector,
) -> (WirePeer, IpcConnection) {
    let (mut peer, _) = peer_of(connector, "1000").await;
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    peer.receive_type("ACKNOWLEDGMENT").await;
    let connection = only_connection(server).await;
    assert!(
        connection
            .announcement()
            .is_some_and(|_: Announcement| true)
    );
    assert_eq!(connection.current_state(), ConnectionState::Announced);
    (peer, connection)
}

pub(crate) fn digest(body: &[u8]) -> String {
    Sha256(sha2::Sha256::digest(body).into()).to_string()
}

pub(crate) fn begin(transfer: u32, body: &[u8]) -> Value {
    json!({"transfer": transfer, "bytes": body.len(), "sha256": digest(body)})
}

/// A frame with a piece of a body.
pub(crate) fn piece(transfer: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let piece = Chunk {
        transfer,
        offset,
        data,
    };
    frame_of_bytes(&[&piece.head(), data].concat())
}

impl WirePeer {
    /// Begins a transfer, and takes the answer.
    pub(crate) async fn begin(&mut self, transfer: u32, body: &[u8]) -> Value {
        self.send("CHUNKS_BEGIN", begin(transfer, body)).await;
        self.receive_of_transfer().await
    }

    /// The next message about transfers.
    pub(crate) async fn receive_of_transfer(&mut self) -> Value {
        loop {
            let message = self.receive().await;
            let message_type = message["type"].as_str().unwrap().to_owned();
            if message_type.starts_with("CHUNKS_") {
                return message;
            }
        }
    }

    /// Lets the other side send so much of a body.
    pub(crate) async fn take(&mut self, transfer: u32, from: usize, to: usize) {
        let take = json!({"transfer": transfer, "from": from, "to": to});
        self.send("CHUNKS_TAKE", take).await;
    }

    pub(crate) async fn end(&mut self, transfer: u32, code: &str) {
        let end = json!({"transfer": transfer, "code": code, "error": "because"});
        self.send("CHUNKS_END", end).await;
    }

    /// Sends the bytes of a body from `from` to `to`, obeying the windows that it is told, the first
    /// of which ends at `window`.
    pub(crate) async fn send_pieces(
        &mut self,
        transfer: u32,
        body: &[u8],
        (from, to): (usize, usize),
        mut window: usize,
    ) {
        let mut at = from;
        while at < to {
            if at == window {
                let take = self.receive_type("CHUNKS_TAKE").await;
                assert_eq!(take["payload"]["transfer"], transfer);
                window = usize::try_from(take["payload"]["to"].as_u64().unwrap()).unwrap();
                continue;
            }
            let end = to.min(window).min(at + Chunk::MAX_DATA);
            self.write(&piece(transfer, at as u64, &body[at..end]))
                .await;
            at = end;
        }
    }

    /// Sends a whole body in pieces.
    pub(crate) async fn send_chunked(&mut self, transfer: u32, body: &[u8]) {
        let take = self.begin(transfer, body).await;
        assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
        let [from, window] = ["from", "to"]
            .map(|name| usize::try_from(take["payload"][name].as_u64().unwrap()).unwrap());
        self.send_pieces(transfer, body, (from, body.len()), window)
            .await;
    }

    /// Takes pieces up to this offset; whatever else comes is returned.
    pub(crate) async fn receive_pieces(&mut self, to: usize, body: &mut String) -> Vec<Value> {
        let mut others = Vec::new();
        while body.len() < to {
            let message = self.receive().await;
            if message["type"] == "piece" {
                assert_eq!(message["offset"], body.len());
                body.push_str(message["data"].as_str().unwrap());
            } else {
                others.push(message);
            }
        }
        assert_eq!(body.len(), to);
        others
    }
}

/// Somebody else is served, soon.
pub(crate) async fn a_bystander_is_served(connector: &MemoryConnector) {
    let mut bystander = WirePeer::connect(connector, user("bystander")).await;
    bystander.send("USER_ACTION", action("x")).await;
    let answer = tokio::time::timeout(Duration::from_secs(1), bystander.receive_acknowledgment());
    assert_eq!(answer.await.unwrap()["success"], true);
}
