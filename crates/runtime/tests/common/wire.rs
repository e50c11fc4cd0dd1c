//! A peer that shares nothing with the runtime: it writes JSON and reads JSON.

use std::collections::VecDeque;
use std::time::Duration;

use migration_ipc::PeerIdentity;
use migration_ipc::transport::Stream;
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc_protocol::FrameDecoder;
use migration_ipc_protocol::extensions::Chunk;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::LONG_PATIENCE;

pub(crate) struct WirePeer {
    stream: Box<dyn Stream>,
    decoder: FrameDecoder,
    received: VecDeque<Value>,
    next_id: u32,
}

impl WirePeer {
    pub(crate) async fn connect(connector: &MemoryConnector, identity: PeerIdentity) -> Self {
        Self::over(connector.connect(identity).await.unwrap())
    }

    /// The same without a borrow.
    pub(crate) async fn connect_owned(connector: MemoryConnector, identity: PeerIdentity) -> Self {
        Self::connect(&connector, identity).await
    }

    /// The two directions, for somebody who writes without looking at what comes back, and the
    /// message to do so with.
    pub(crate) fn split_for_flood(self) -> (FloodReader, FloodWriter, Vec<u8>) {
        let (reader, writer) = tokio::io::split(self.stream);
        (FloodReader(reader), FloodWriter(writer), flood_message())
    }

    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self::over_boxed(Box::new(stream))
    }

    pub(crate) fn over_boxed(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::new(),
            received: VecDeque::new(),
            next_id: 0,
        }
    }

    // --- writing ---------------------------------------------------------------------------------

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).await.unwrap();
    }

    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends a message under the next id (`m1`, `m2`, ...), which it returns.
    pub(crate) async fn send(&mut self, message_type: &str, payload: Value) -> String {
        let (id, bytes) = self.frame(message_type, payload);
        self.write(&bytes).await;
        id
    }

    /// The next message as a frame, unsent, and its id.
    pub(crate) fn frame(&mut self, message_type: &str, payload: Value) -> (String, Vec<u8>) {
        self.next_id += 1;
        let id = format!("m{}", self.next_id);
        let bytes = frame(&envelope(&id, message_type, payload).to_string());
        (id, bytes)
    }

    /// Sends a message that says which one it answers, as new peers do.
    pub(crate) async fn reply(&mut self, original: &Value, message_type: &str, payload: Value) {
        self.next_id += 1;
        let mut message = envelope(&format!("m{}", self.next_id), message_type, payload);
        message["inReplyTo"] = original["id"].clone();
        self.write(&frame(&message.to_string())).await;
    }

    pub(crate) async fn acknowledge(&mut self, original: &Value) {
        self.send("ACKNOWLEDGMENT", acknowledgment(original)).await;
    }

    /// Says hello as a client that can do everything, and takes the answer.
    pub(crate) async fn hello(&mut self, role: &str, credit: u32) -> Value {
        self.send("HELLO", hello(role, credit)).await;
        self.receive().await
    }

    /// Answers a client's hello as a service that can do everything.
    pub(crate) async fn answer_hello(&mut self, original: &Value, credit: u32) {
        self.reply(original, "HELLO", hello("agent", credit)).await;
    }

    /// Writes nothing more.
    pub(crate) async fn shut_down(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    // --- reading ---------------------------------------------------------------------------------

    /// The next message, whatever it is.
    pub(crate) async fn receive(&mut self) -> Value {
        self.receive_or_end().await.expect("the connection ended")
    }

    /// The next message of this type; others are dropped.
    pub(crate) async fn receive_type(&mut self, message_type: &str) -> Value {
        let reading = async {
            loop {
                let message = self.receive().await;
                if message["type"] == message_type {
                    return message;
                }
            }
        };
        tokio::time::timeout(LONG_PATIENCE, reading)
            .await
            .unwrap_or_else(|_| panic!("no {message_type} came"))
    }

    /// The payload of the next message, which is an acknowledgment.
    pub(crate) async fn receive_acknowledgment(&mut self) -> Value {
        let mut message = self.receive().await;
        assert_eq!(message["type"], "ACKNOWLEDGMENT", "{message}");
        message["payload"].take()
    }

    /// The next message, or `None` at the end of the stream.
    pub(crate) async fn receive_or_end(&mut self) -> Option<Value> {
        let reading = async {
            loop {
                if let Some(message) = self.received.pop_front() {
                    return Some(message);
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap();
                if count == 0 {
                    assert!(!self.decoder.has_partial(), "the end is between two frames");
                    return None;
                }
                let mut input = &buffer[..count];
                while let Some(body) = self.decoder.decode(&mut input).unwrap() {
                    let message = match Chunk::read(body) {
                        Ok(piece) => piece_as_json(piece),
                        Err(_) => serde_json::from_slice(body).unwrap(),
                    };
                    self.received.push_back(message);
                }
            }
        };
        tokio::time::timeout(LONG_PATIENCE, reading)
            .await
            .expect("nothing to receive")
    }

    /// Whether nothing at all comes within this time.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.receive_or_end())
            .await
            .is_err()
    }

    /// Reads to the end of the stream.
    pub(crate) async fn receive_to_end(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        let reading = async {
            while let Some(message) = self.receive_or_end().await {
                messages.push(message);
            }
        };
        let ended = tokio::time::timeout(LONG_PATIENCE, reading).await.is_ok();
        assert!(ended, "the connection did not end: {messages:?}");
        messages
    }
}

pub(crate) struct FloodReader(ReadHalf<Box<dyn Stream>>);

impl FloodReader {
    /// Throws away what has come; `false` at the end.
    pub(crate) async fn take_some(&mut self) -> bool {
        let mut buffer = [0; 4096];
        matches!(self.0.read(&mut buffer).await, Ok(count) if count > 0)
    }
}

pub(crate) struct FloodWriter(WriteHalf<Box<dyn Stream>>);

impl FloodWriter {
    /// `false` at the end.
    pub(crate) async fn put(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }
}

/// What floods consist of.
pub(crate) fn flood_message() -> Vec<u8> {
    frame(&envelope("a", "USER_ACTION", action("x")).to_string())
}

pub(crate) fn envelope(id: &str, message_type: &str, payload: Value) -> Value {
    let mut envelope = json!({"id": id, "type": message_type, "timestamp": "2024-01-01T12:00:00Z"});
    envelope["payload"] = payload;
    envelope
}

pub(crate) fn frame(body: &str) -> Vec<u8> {
    frame_of_bytes(body.as_bytes())
}

pub(crate) fn frame_of_bytes(body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len()).unwrap();
    [&length.to_le_bytes(), body].concat()
}

/// A piece of a body in chunks, to be looked at like a message.
fn piece_as_json(piece: Chunk<'_>) -> Value {
    json!({"type": "piece", "transfer": piece.transfer, "offset": piece.offset,
           "data": String::from_utf8_lossy(piece.data)})
}

pub(crate) fn hello(role: &str, credit: u32) -> Value {
    json!({"protocol": {"min": 1, "max": 1}, "role": role, "credit": credit,
           "capabilities": ["inReplyTo", "credit", "errorCodes", "goodbye"]})
}

pub(crate) fn acknowledgment(original: &Value) -> Value {
    json!({"originalMessageId": original["id"], "success": true,
           "timestamp": "2024-01-01T12:00:00Z"})
}

pub(crate) fn heartbeat(number: u64) -> Value {
    json!({"senderId": "peer", "timestamp": "2024-01-01T12:00:00Z", "sequenceNumber": number})
}

pub(crate) fn agent_started(user: &str, session: &str) -> Value {
    json!({"userId": user, "agentVersion": "1.0.0", "sessionId": session})
}

pub(crate) fn action(name: &str) -> Value {
    json!({"userId": "", "action": name, "details": {}})
}

pub(crate) fn progress(done: u64) -> Value {
    json!({"userId": "", "category": "files", "progress": 10, "bytesTransferred": done,
           "bytesTotal": 1000})
}
