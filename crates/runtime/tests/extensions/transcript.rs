//! What passed over a connection, as frames.

use migration_ipc_protocol::FrameDecoder;
use serde_json::Value;

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
    /// What came behind the last frame in the clear: records of ciphertext.
    pub(crate) encrypted: Vec<u8>,
}

/// The body of a frame, of whatever kind.
#[derive(Debug)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Transcript {
    pub(crate) fn read(from_client: &[u8], from_service: &[u8]) -> Self {
        Self {
            // From here on each side encrypts, if that was negotiated.
            client: Direction::read(from_client, |body| body.is("ENCRYPTED")),
            service: Direction::read(from_service, |body| {
                body.is("HELLO") && body.json()["payload"].get("encryption").is_some()
            }),
        }
    }
}

impl Direction {
    fn read(bytes: &[u8], is_last_in_the_clear: impl Fn(&Body) -> bool) -> Self {
        let mut direction = Self::default();
        let mut decoder = FrameDecoder::new();
        let mut rest = bytes;
        loop {
            // A frame that the end of the connection cut counts as little as one that was not sent.
            let Some(body) = decoder.decode(&mut rest).expect("frames") else {
                return direction;
            };
            let body = Body(body.to_vec());
            let last = is_last_in_the_clear(&body);
            direction.bodies.push(body);
            if last {
                direction.encrypted = rest.to_vec();
                return direction;
            }
        }
    }

    /// The messages in JSON, in order; those in batches too, behind their batch.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Value> {
        self.bodies.iter().map(Body::json).flat_map(|message| {
            let enclosed = match message["type"] == "BATCH" {
                true => message["payload"]["messages"].as_array().cloned(),
                false => None,
            };
            [message].into_iter().chain(enclosed.unwrap_or_default())
        })
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
    /// `null` for what is no JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }

    pub(crate) fn is(&self, message_type: &str) -> bool {
        self.json()["type"] == message_type
    }
}
