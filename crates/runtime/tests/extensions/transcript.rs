//! What passed over a connection, as frames.

use std::collections::BTreeMap;

use migration_ipc::crypto::Opener;
use migration_ipc_protocol::FrameDecoder;
use migration_ipc_protocol::extensions::{BodyKind, Chunk, Decompressor};
use serde_json::Value;

use crate::keys::openers;

/// The two directions of a connection.
#[derive(Debug)]
pub(crate) struct Transcript {
    pub(crate) client: Direction,
    pub(crate) service: Direction,
}

/// What one side sent.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    /// The bodies of its frames, in order.
    pub(crate) bodies: Vec<Body>,
    /// How many of them were in the clear.
    pub(crate) in_the_clear: usize,
    /// What came behind the last frame in the clear: records of ciphertext.
    pub(crate) encrypted: Vec<u8>,
    /// The messages that came in pieces.
    whole: Vec<Value>,
}

/// The body of a frame, of whatever kind.
#[derive(Debug)]
pub(crate) struct Body {
    /// What was on the wire.
    pub(crate) kind: BodyKind,
    /// What it was before it was compressed.
    original: Vec<u8>,
    /// `null` for what is no JSON.
    json: Value,
}

impl Transcript {
    pub(crate) fn read(from_client: &[u8], from_service: &[u8]) -> Self {
        // From here on each side encrypts, if that was negotiated.
        let mut client = Direction::read(from_client, |body| body.is("ENCRYPTED"));
        let mut service = Direction::read(from_service, |body| {
            body.is("HELLO") && body.json["payload"].get("encryption").is_some()
        });
        let answer = &service.bodies[..service.in_the_clear].last();
        if let Some(answer) = answer.filter(|_| !service.encrypted.is_empty()) {
            let [of_client, of_service] = openers(&client.bodies[0].json, &answer.json);
            client.open(of_client);
            service.open(of_service);
        }
        client.join();
        service.join();
        Self { client, service }
    }
}

impl Direction {
    fn read(bytes: &[u8], is_last_in_the_clear: impl Fn(&Body) -> bool) -> Self {
        let mut direction = Self::default();
        direction.encrypted = direction.take(bytes, is_last_in_the_clear).to_vec();
        direction.in_the_clear = direction.bodies.len();
        direction
    }

    /// Takes frames up to one that is the last, and returns what is behind that.
    fn take<'a>(&mut self, mut bytes: &'a [u8], is_last: impl Fn(&Body) -> bool) -> &'a [u8] {
        let mut decoder = FrameDecoder::new();
        // A frame that the end of the connection cut counts as little as one that was not sent.
        while let Some(body) = decoder.decode(&mut bytes).expect("frames") {
            self.bodies.push(Body::read(body));
            if self.bodies.last().is_some_and(&is_last) {
                return bytes;
            }
        }
        &[]
    }

    fn open(&mut self, mut opener: Opener) {
        let mut plain = Vec::new();
        opener.open(&self.encrypted, &mut plain).expect("records");
        self.take(&plain, |_| false);
    }

    /// Puts together what came in pieces.
    fn join(&mut self) {
        let mut whole = BTreeMap::<_, Vec<u8>>::new();
        for body in &self.bodies {
            if let Ok(piece) = Chunk::read(&body.original) {
                whole
                    .entry(piece.transfer)
                    .or_default()
                    .extend_from_slice(piece.data);
            }
        }
        self.whole = whole.values().map(|body| json(body)).collect();
    }

    /// The messages in JSON, in order; those in batches too, behind their batch, and those in pieces,
    /// behind everything else.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Value> {
        let bodies = self.bodies.iter().map(|body| &body.json);
        bodies.chain(&self.whole).flat_map(|message| {
            let enclosed = match message["type"] == "BATCH" {
                true => message["payload"]["messages"].as_array(),
                false => None,
            };
            [message].into_iter().chain(enclosed.into_iter().flatten())
        })
    }

    /// The payloads of the messages of this type.
    pub(crate) fn payloads(&self, message_type: &str) -> impl Iterator<Item = &Value> {
        self.messages()
            .filter(move |message| message["type"] == message_type)
            .map(|message| &message["payload"])
    }

    /// Whether there is a message of this type.
    pub(crate) fn has(&self, message_type: &str) -> bool {
        self.bodies.iter().any(|body| body.is(message_type))
    }

    /// Whether a message has this member in its envelope.
    pub(crate) fn has_member(&self, name: &str) -> bool {
        self.messages().any(|message| message.get(name).is_some())
    }
}

impl Body {
    fn read(body: &[u8]) -> Self {
        let kind = BodyKind::of(body);
        let original = match kind {
            BodyKind::Compressed => Decompressor::new().open(body).unwrap().to_vec(),
            BodyKind::Json | BodyKind::Chunk => body.to_vec(),
        };
        let json = json(&original);
        Self {
            kind,
            original,
            json,
        }
    }

    pub(crate) fn is(&self, message_type: &str) -> bool {
        self.json["type"] == message_type
    }

    /// Whether it is a piece, compressed or not.
    pub(crate) fn is_piece(&self) -> bool {
        BodyKind::of(&self.original) == BodyKind::Chunk
    }
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}
