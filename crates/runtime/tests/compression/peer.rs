//! A peer that speaks bytes, and sees them as they come.

use std::collections::VecDeque;

use migration_ipc::protocol::FrameDecoder;
use migration_ipc::protocol::extensions::{BodyKind, Decompressor, compress_frame};
use migration_ipc::transport::Stream;
use migration_ipc::transport::memory::{self, MemoryConnector};
use migration_ipc::{ConnectionConfig, IpcClient};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::*;

pub(crate) struct RawPeer {
    stream: Box<dyn Stream>,
    decoder: FrameDecoder,
    received: VecDeque<Vec<u8>>,
    sent: u32,
}

impl RawPeer {
    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            decoder: FrameDecoder::new(),
            received: VecDeque::new(),
            sent: 0,
        }
    }

    pub(crate) async fn connect(connector: &MemoryConnector, name: &str) -> Self {
        Self::over(connector.connect(user(name)).await.unwrap())
    }

    /// Says hello as an agent that can do this, and takes the answer.
    pub(crate) async fn hello(&mut self, capabilities: &[&str]) {
        let hello = json!({"protocol": {"min": 1, "max": 1}, "role": "agent",
                           "capabilities": capabilities});
        self.send("HELLO", hello).await;
        let answer = self.receive().await;
        assert_eq!(answer["payload"]["capabilities"], json!(capabilities));
    }

    pub(crate) fn body(&mut self, message_type: &str, payload: &impl Serialize) -> Vec<u8> {
        self.sent += 1;
        let id = format!("m{}", self.sent);
        let payload = serde_json::to_string(payload).unwrap();
        // The usual form, as this crate writes it.
        format!(
            r#"{{"id":"{id}","type":"{message_type}","timestamp":"2024-01-01T12:00:00Z","payload":{payload}}}"#
        )
        .into_bytes()
    }

    pub(crate) async fn send(&mut self, message_type: &str, payload: impl Serialize) {
        let body = self.body(message_type, &payload);
        self.write(&frame_of_bytes(&body)).await;
    }

    pub(crate) async fn send_compressed(&mut self, message_type: &str, payload: impl Serialize) {
        let body = self.body(message_type, &payload);
        self.write(&compressed(&body)).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // Whoever broke a rule may have been cut off already.
        let _gone = self.stream.write_all(bytes).await;
        let _gone = self.stream.flush().await;
    }

    /// The next body as it is on the wire, or `None` at the end.
    pub(crate) async fn receive_body(&mut self) -> Option<Vec<u8>> {
        let reading = async {
            loop {
                if let Some(body) = self.received.pop_front() {
                    return Some(body);
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    return None;
                }
                let mut input = &buffer[..count];
                while let Some(body) = self.decoder.decode(&mut input).unwrap() {
                    self.received.push_back(body.to_vec());
                }
            }
        };
        tokio::time::timeout(LONG_PATIENCE, reading)
            .await
            .expect("nothing to receive")
    }

    /// The next message, which is not compressed.
    pub(crate) async fn receive(&mut self) -> Value {
        let body = self.receive_body().await.expect("the connection ended");
        assert_eq!(BodyKind::of(&body), BodyKind::Json, "{body:?}");
        serde_json::from_slice(&body).unwrap()
    }

    /// The next message, which is compressed.
    pub(crate) async fn receive_compressed(&mut self) -> Value {
        let body = self.receive_body().await.expect("the connection ended");
        assert_eq!(BodyKind::of(&body), BodyKind::Compressed, "{body:?}");
        let mut decompressor = Decompressor::new();
        let original = decompressor.open(&body).unwrap();
        assert!(body.len() < original.len());
        serde_json::from_slice(original).unwrap()
    }
}

/// A body as a compressed frame.
pub(crate) fn compressed(body: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    assert!(compress_frame(&frame_of_bytes(body), &mut wire));
    wire
}

/// Another service, whose `lz4` is a matter of its hello.
pub(crate) async fn answer_hello(service: &mut RawPeer, capabilities: &[&str]) {
    let hello = service.receive().await;
    assert_eq!(hello["type"], "HELLO");
    let offered = hello["payload"]["capabilities"].as_array().unwrap();
    assert!(offered.contains(&json!("lz4")));
    let answer = json!({"id": "h", "type": "HELLO", "timestamp": "2024-01-01T12:00:00Z",
                        "payload": {"protocol": {"min": 1, "max": 1}, "role": "agent",
                                    "capabilities": capabilities},
                        "inReplyTo": hello["id"]});
    service.write(&frame(&answer.to_string())).await;
}

/// A client with this configuration, and the service that it talks to.
pub(crate) async fn client_of(
    config: ConnectionConfig,
    capabilities: &[&str],
) -> (IpcClient, RawPeer) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = RawPeer::over(at_service);
    let client = client().connection_config(config);
    let connecting = tokio::spawn(client.connect_over(at_client));
    answer_hello(&mut service, capabilities).await;
    (within(connecting).await.unwrap().unwrap(), service)
}
