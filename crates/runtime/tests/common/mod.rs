//! What the suites share: identities, a server in memory, and a peer that speaks bytes.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::time::Duration;

use migration_ipc::transport::memory::{self, MemoryConnector, MemoryListener, MemoryStream};
use migration_ipc::{
    AccountId, IpcClient, IpcClientBuilder, IpcServer, IpcServerBuilder, MessageDispatcher,
    PeerIdentity, Privilege,
};
use migration_ipc_protocol::FrameDecoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes that each direction of a connection in memory holds.
pub const CAPACITY: usize = 64 * 1024;

/// Long enough for anything that a test waits for; never reached when the test passes.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn user(name: &str) -> PeerIdentity {
    PeerIdentity::new(AccountId::new(name), Privilege::Ordinary)
}

pub fn administrator() -> PeerIdentity {
    PeerIdentity::new(AccountId::new("0"), Privilege::Administrator)
}

pub fn listen() -> (MemoryListener, MemoryConnector) {
    memory::listen("test", administrator(), CAPACITY)
}

/// A server in memory with this dispatcher and everything else as usual.
pub async fn serve(dispatcher: MessageDispatcher) -> (IpcServer, MemoryConnector) {
    serve_with(dispatcher, |server| server).await
}

pub async fn serve_with(
    dispatcher: MessageDispatcher,
    set_up: impl FnOnce(IpcServerBuilder) -> IpcServerBuilder,
) -> (IpcServer, MemoryConnector) {
    let (listener, connector) = listen();
    let server = set_up(IpcServer::builder(dispatcher))
        .listener(listener)
        .start()
        .await
        .unwrap();
    (server, connector)
}

/// A client without handlers.
pub fn client() -> IpcClientBuilder {
    IpcClient::builder(MessageDispatcher::empty())
}

/// Waits for a condition, for as long as [`PATIENCE`] lasts.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "never happened: {what}"
    );
}

/// A peer that shares nothing with the runtime: it writes JSON and reads JSON.
pub struct WirePeer {
    stream: MemoryStream,
    decoder: FrameDecoder,
    received: std::collections::VecDeque<Value>,
    next_id: u32,
}

impl WirePeer {
    pub async fn connect(connector: &MemoryConnector, identity: PeerIdentity) -> Self {
        Self::over(connector.connect(identity).await.unwrap())
    }

    pub fn over(stream: MemoryStream) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::new(),
            received: Default::default(),
            next_id: 0,
        }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends a message under the next id (`m1`, `m2`, ...), which it returns.
    pub async fn send(&mut self, message_type: &str, payload: Value) -> String {
        let (id, bytes) = self.frame(message_type, payload);
        self.write(&bytes).await;
        id
    }

    pub fn frame(&mut self, message_type: &str, payload: Value) -> (String, Vec<u8>) {
        self.next_id += 1;
        let id = format!("m{}", self.next_id);
        let bytes = frame(&envelope(&id, message_type, payload).to_string());
        (id, bytes)
    }

    pub async fn hello(&mut self, role: &str, credit: u32) -> Value {
        let capabilities = ["inReplyTo", "credit", "errorCodes", "goodbye"];
        self.send(
            "HELLO",
            json!({"protocol": {"min": 1, "max": 1}, "role": role,
                   "capabilities": capabilities, "credit": credit}),
        )
        .await;
        self.receive().await
    }

    /// The next message, whatever it is.
    pub async fn receive(&mut self) -> Value {
        self.receive_or_end().await.expect("the connection ended")
    }

    /// The next message of this type; others are dropped.
    pub async fn receive_type(&mut self, message_type: &str) -> Value {
        loop {
            let message = self.receive().await;
            if message["type"] == message_type {
                return message;
            }
        }
    }

    /// The next message, or `None` at the end of the stream.
    pub async fn receive_or_end(&mut self) -> Option<Value> {
        let reading = async {
            loop {
                if let Some(message) = self.received.pop_front() {
                    return Some(message);
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap();
                if count == 0 {
                    return None;
                }
                let mut input = &buffer[..count];
                while let Some(body) = self.decoder.decode(&mut input).unwrap() {
                    self.received
                        .push_back(serde_json::from_slice(body).unwrap());
                }
            }
        };
        tokio::time::timeout(PATIENCE * 100, reading)
            .await
            .expect("nothing to receive")
    }

    /// Whether nothing at all comes within this time.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.receive_or_end())
            .await
            .is_err()
    }

    /// Reads to the end of the stream.
    pub async fn receive_to_end(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        while let Some(message) = self.receive_or_end().await {
            messages.push(message);
        }
        messages
    }
}

pub fn envelope(id: &str, message_type: &str, payload: Value) -> Value {
    json!({"id": id, "type": message_type, "timestamp": "2024-01-01T12:00:00Z", "payload": payload})
}

pub fn frame(body: &str) -> Vec<u8> {
    let length = i32::try_from(body.len()).unwrap();
    [&length.to_le_bytes(), body.as_bytes()].concat()
}

pub fn agent_started(user: &str, session: &str) -> Value {
    json!({"userId": user, "agentVersion": "1.0.0", "sessionId": session})
}

pub fn progress(done: u64) -> Value {
    json!({"userId": "", "category": "files", "progress": 10, "bytesTransferred": done,
           "bytesTotal": 1000})
}
