//! A peer that shares nothing with the runtime but the cryptography, and may lie at any point.

use std::collections::VecDeque;

use migration_ipc::crypto::{Channel, Keyring, Provider, Suite};
use migration_ipc::transport::Stream;
use migration_ipc_protocol::FrameDecoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::*;

pub(crate) struct NoisePeer {
    stream: Box<dyn Stream>,
    decoder: FrameDecoder,
    received: VecDeque<Vec<u8>>,
    /// Once it is agreed on.
    channel: Option<Channel>,
    opens: bool,
    seals: bool,
    next_id: u32,
}

/// Both hellos as they were on the wire.
pub(crate) struct Hellos {
    pub(crate) client: Vec<u8>,
    pub(crate) service: Vec<u8>,
}

impl Hellos {
    pub(crate) fn confirm(&self) -> Value {
        let digest = Provider::default()
            .sha256(&[&self.client, &self.service])
            .unwrap();
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({"transcript": digits})
    }
}

impl NoisePeer {
    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            decoder: FrameDecoder::new(),
            received: VecDeque::new(),
            channel: None,
            opens: false,
            seals: false,
            next_id: 0,
        }
    }

    // --- bytes -----------------------------------------------------------------------------------

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // The other end may be gone already; what it does then is what the test looks at.
        drop(self.stream.write_all(bytes).await);
        drop(self.stream.flush().await);
    }

    /// A message as the present layering has it, unsent.
    pub(crate) fn message(&mut self, message_type: &str, payload: Value) -> Vec<u8> {
        self.next_id += 1;
        let id = format!("n{}", self.next_id);
        let bytes = frame(&envelope(&id, message_type, payload).to_string());
        self.layered(&bytes)
    }

    fn layered(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match &mut self.channel {
            Some(channel) if self.seals => channel.sealer.seal(bytes, &mut out).unwrap(),
            _ => out.extend_from_slice(bytes),
        }
        out
    }

    pub(crate) async fn send(&mut self, message_type: &str, payload: Value) {
        let bytes = self.message(message_type, payload);
        self.write(&bytes).await;
    }

    pub(crate) fn seal_from_here(&mut self) {
        self.seals = true;
    }

    /// The next frame, or `None` at the end.
    pub(crate) async fn frame_or_end(&mut self) -> Option<Vec<u8>> {
        let reading = async {
            loop {
                if let Some(frame) = self.received.pop_front() {
                    return Some(frame);
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    return None;
                }
                self.take(&buffer[..count]);
            }
        };
        tokio::time::timeout(LONG_PATIENCE, reading)
            .await
            .expect("nothing to receive")
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut plain = Vec::new();
        match &mut self.channel {
            Some(channel) if self.opens => channel.opener.open(bytes, &mut plain).unwrap(),
            _ => plain.extend_from_slice(bytes),
        }
        let mut input = plain.as_slice();
        // In the clear one at a time: what is behind it may be sealed.
        while let Some(body) = self.decoder.decode(&mut input).unwrap() {
            self.received.push_back(frame_of_bytes(body));
            if !self.opens {
                break;
            }
        }
        self.decoder.retain(input);
    }

    /// What came behind the frame that was taken last was sealed.
    fn open_from_here(&mut self) {
        self.opens = true;
        let rest = self.decoder.take_rest();
        if !rest.is_empty() {
            self.take(&rest);
        }
    }

    pub(crate) async fn receive_frame(&mut self) -> Vec<u8> {
        self.frame_or_end().await.expect("the connection ended")
    }

    pub(crate) async fn receive(&mut self) -> Value {
        json_of(&self.receive_frame().await)
    }

    pub(crate) async fn receive_type(&mut self, message_type: &str) -> Value {
        loop {
            let message = self.receive().await;
            if message["type"] == message_type {
                return message;
            }
        }
    }

    /// Reads to the end, whatever comes.
    pub(crate) async fn ends(&mut self) {
        let reading = async {
            let mut buffer = [0; 4096];
            while matches!(self.stream.read(&mut buffer).await, Ok(count) if count > 0) {}
        };
        tokio::time::timeout(LONG_PATIENCE, reading)
            .await
            .expect("the connection did not end");
    }

    // --- a client --------------------------------------------------------------------------------

    /// Says hello with a handshake, and takes the service's answer. What this end sends is in the clear
    /// still.
    pub(crate) async fn agree_as_client(&mut self, keyring: &Keyring, suite: Suite) -> Hellos {
        let (opening, initiator) = keyring.initiate(suite).unwrap();
        let client = frame(&envelope("h", "HELLO", hello_with(&opening)).to_string());
        self.write(&client).await;
        let service = self.receive_frame().await;
        let answer = json_of(&service);
        let message = answer["payload"]["encryption"]["message"].as_str();
        let message = message.unwrap_or_else(|| panic!("no handshake in {answer}"));
        self.channel = Some(initiator.finish(&message.parse().unwrap()).unwrap());
        self.open_from_here();
        Hellos { client, service }
    }

    /// A client that has done all that is needed.
    pub(crate) async fn as_client(stream: impl Stream + 'static, keyring: &Keyring) -> Self {
        let mut peer = Self::over(stream);
        let hellos = peer.agree_as_client(keyring, Suite::default()).await;
        peer.send("ENCRYPTED", json!({})).await;
        peer.seal_from_here();
        peer.send("ENCRYPTION_CONFIRM", hellos.confirm()).await;
        let theirs = peer.receive().await;
        assert_eq!(theirs["type"], "ENCRYPTION_CONFIRM");
        assert_eq!(theirs["payload"], hellos.confirm());
        peer
    }

    // --- a service -------------------------------------------------------------------------------

    /// Takes a client's hello, and gives it an answer that this changes before it is sent. What this
    /// end sends behind it is sealed; what it receives is in the clear up to the marker.
    pub(crate) async fn agree_as_service(
        &mut self,
        keyring: &Keyring,
        change: impl FnOnce(&mut Value),
    ) -> Hellos {
        let client = self.receive_frame().await;
        let offer = json_of(&client);
        let part = &offer["payload"]["encryption"];
        let text = |member: &str| part[member].as_str().unwrap().to_owned();
        let (message, channel) = keyring
            .respond(
                text("protocol").parse().unwrap(),
                &text("key"),
                &text("message").parse().unwrap(),
            )
            .unwrap();
        let mut payload = hello("agent", 100);
        payload["capabilities"]
            .as_array_mut()
            .unwrap()
            .push(json!("encryption"));
        payload["encryption"] = json!({"message": message.to_string()});
        change(&mut payload);
        let mut answer = envelope("a", "HELLO", payload);
        answer["inReplyTo"] = offer["id"].clone();
        let service = frame(&answer.to_string());
        self.write(&service).await;
        self.channel = Some(channel);
        self.seal_from_here();
        Hellos { client, service }
    }

    /// Takes what comes in the clear, up to the marker.
    pub(crate) async fn take_marker(&mut self) -> Vec<Value> {
        let mut before = Vec::new();
        loop {
            let message = self.receive().await;
            if message["type"] == "ENCRYPTED" {
                self.open_from_here();
                return before;
            }
            before.push(message);
        }
    }
}

pub(crate) fn json_of(frame: &[u8]) -> Value {
    serde_json::from_slice(&frame[4..]).unwrap()
}

pub(crate) fn hello_with(opening: &migration_ipc::crypto::Opening) -> Value {
    let mut payload = hello("agent", 100);
    payload["capabilities"]
        .as_array_mut()
        .unwrap()
        .push(json!("encryption"));
    payload["encryption"] = json!({
        "protocol": opening.protocol.to_string(),
        "key": opening.key.to_string(),
        "message": opening.message.to_string(),
    });
    payload
}
