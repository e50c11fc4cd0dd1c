//! What peers that negotiate add to the wire: `HELLO`, `CREDIT` and `GOODBYE`.
//!
//! A client that negotiates says [`Hello`] first. A service that does so too answers with a
//! [`HelloAnswer`]; one that does not answers with an error acknowledgment, or not at all. What
//! both can do holds from then on.

use std::fmt;

use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::delivery::OutboxId;
use crate::message_type::message_types;
use crate::messages::open_enum;
use crate::payload::{MessagePayload, Sender};
use crate::schema::Schema;

/// The version of the negotiated part of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// An addition to the plain protocol. A later one is one more variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Envelopes of replies name the message that they answer.
    InReplyTo,
    /// Each side says how many more messages it takes.
    Credit,
    /// Error acknowledgments carry an [`ErrorCode`](crate::messages::ErrorCode).
    ErrorCodes,
    /// A side that is about to close says so.
    Goodbye,
    /// Heartbeats say for how long the oldest unhandled message has been waiting.
    Backlog,
    /// Messages of an outbox carry their number, and the receiver recognises repetitions.
    Durable,
    /// Requests have a deadline, can be cancelled, and can have a streaming reply.
    Requests,
    /// A sender may decline the acknowledgment of a message.
    NoAck,
    /// One acknowledgment may be for many messages.
    AckRanges,
    /// A frame may hold many messages.
    Batch,
    /// Bodies may be compressed with LZ4.
    Lz4,
    /// Bodies longer than a frame are sent in pieces.
    Chunks,
    /// What follows the hello is encrypted.
    Encryption,
}

impl Capability {
    /// Everything that this version can do.
    pub const ALL: [Self; 13] = [
        Self::InReplyTo,
        Self::Credit,
        Self::ErrorCodes,
        Self::Goodbye,
        Self::Backlog,
        Self::Durable,
        Self::Requests,
        Self::NoAck,
        Self::AckRanges,
        Self::Batch,
        Self::Lz4,
        Self::Chunks,
        Self::Encryption,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InReplyTo => "inReplyTo",
            Self::Credit => "credit",
            Self::ErrorCodes => "errorCodes",
            Self::Goodbye => "goodbye",
            Self::Backlog => "backlog",
            Self::Durable => "durable",
            Self::Requests => "requests",
            Self::NoAck => "noAck",
            Self::AckRanges => "ackRanges",
            Self::Batch => "batch",
            Self::Lz4 => "lz4",
            Self::Chunks => "chunks",
            Self::Encryption => "encryption",
        }
    }

    /// What a peer must be able to do as well for this to be of use.
    #[must_use]
    pub const fn needs(self) -> &'static [Self] {
        match self {
            Self::Durable | Self::Requests => &[Self::InReplyTo, Self::ErrorCodes],
            Self::Batch => &[Self::InReplyTo],
            Self::InReplyTo
            | Self::Credit
            | Self::ErrorCodes
            | Self::Goodbye
            | Self::Backlog
            | Self::NoAck
            | Self::AckRanges
            | Self::Lz4
            | Self::Chunks
            | Self::Encryption => &[],
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|capability| capability.as_str() == name)
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A set of capabilities: on the wire a list of names, of which unknown ones are ignored.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapabilitySet(u32);

impl CapabilitySet {
    /// None: what a plain peer can do.
    pub const EMPTY: Self = Self(0);

    /// Everything that this version can do.
    #[must_use]
    pub fn all() -> Self {
        Capability::ALL.into_iter().collect()
    }

    /// Whether the set has this one.
    #[must_use]
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bit() != 0
    }

    /// The set with this one too.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | capability.bit())
    }

    /// The set without this one.
    #[must_use]
    pub const fn without(self, capability: Capability) -> Self {
        Self(self.0 & !capability.bit())
    }

    /// What both sets have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The set without what misses something that it [needs](Capability::needs).
    #[must_use]
    pub fn complete(self) -> Self {
        self.iter()
            .filter(|capability| {
                capability
                    .needs()
                    .iter()
                    .all(|needed| self.contains(*needed))
            })
            .collect()
    }

    /// The capabilities of the set.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL
            .into_iter()
            .filter(move |capability| self.contains(*capability))
    }
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        capabilities.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for CapabilitySet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Capability::as_str))
    }
}

impl<'de> Deserialize<'de> for CapabilitySet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CapabilitySet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CapabilitySet, A::Error> {
                let mut set = CapabilitySet::EMPTY;
                while let Some(name) = seq.next_element::<String>()? {
                    if let Some(capability) = Capability::from_name(&name) {
                        set = set.with(capability);
                    }
                }
                Ok(set)
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}

/// The versions of the negotiated part that a peer speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

impl ProtocolRange {
    /// What this crate speaks.
    pub const SUPPORTED: Self = Self {
        min: PROTOCOL_VERSION,
        max: PROTOCOL_VERSION,
    };

    /// The newest version that both speak.
    #[must_use]
    pub fn newest_common(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

open_enum! {
    /// What a client wants to be.
    pub enum Role {
        /// An agent of one user.
        Agent = "agent",
        /// An administrator of the service.
        Operator = "operator",
    }
}

/// What a side takes beyond the limits of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLimits {
    /// The longest body in bytes that it takes in chunks.
    #[serde(default)]
    pub payload: u64,
}

/// A side's part of the handshake that encryption begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// The name of the Noise protocol; only of a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The name of the key; only of a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The message of the handshake, in hexadecimal digits.
    pub message: String,
}

/// `HELLO` of a client, and what an accepted one is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The versions that the client speaks; in the answer the one that both will speak.
    pub protocol: ProtocolRange,
    /// What the client wants to be; in the answer what it is.
    pub role: Role,
    /// What the client can do; in the answer what both can.
    #[serde(default)]
    pub capabilities: CapabilitySet,
    /// How many messages the other side may send before it gets more [`Credit`]; see
    /// [`uses_credit`].
    #[serde(default)]
    pub credit: u32,
    /// The outbox that the client's durable messages come from; in the answer the one that the
    /// service's durable messages to this account come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<OutboxId>,
    /// In the answer: the highest number of the client's outbox that the service has seen. The
    /// client numbers on from there, should its own memory fall short of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
    /// What the sender takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PeerLimits>,
    /// What the sender's payload types are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// The sender's part of the handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Handshake>,
}

impl Hello {
    /// The hello of a client that can do everything that this version can, but for what takes more
    /// than a program: it has no outbox and no key.
    #[must_use]
    pub fn new(role: Role, credit: u32) -> Self {
        Self {
            protocol: ProtocolRange::SUPPORTED,
            role,
            capabilities: CapabilitySet::all()
                .without(Capability::Durable)
                .without(Capability::Encryption),
            credit,
            outbox: None,
            seen: None,
            limits: None,
            schema: None,
            encryption: None,
        }
    }

    /// The same of a client with an outbox.
    #[must_use]
    pub fn with_outbox(self, outbox: OutboxId) -> Self {
        Self {
            capabilities: self.capabilities.with(Capability::Durable),
            outbox: Some(outbox),
            ..self
        }
    }

    /// The answer to this hello from a service that can do `capabilities` and takes `credit`
    /// messages. Whether the client may have the role is for the caller to decide.
    #[must_use]
    pub fn answer(&self, capabilities: CapabilitySet, credit: u32) -> HelloAnswer {
        let ours = ProtocolRange::SUPPORTED;
        match self.protocol.newest_common(ours) {
            Some(version) => HelloAnswer::Accepted(Self {
                protocol: ProtocolRange {
                    min: version,
                    max: version,
                },
                role: self.role.clone(),
                capabilities: self.capabilities.intersection(capabilities).complete(),
                credit,
                outbox: None,
                seen: None,
                limits: None,
                schema: None,
                encryption: None,
            }),
            None => HelloAnswer::Refused(Refusal::new(
                RefusalCode::Version,
                format!(
                    "the service speaks versions {} to {}, the client {} to {}",
                    ours.min, ours.max, self.protocol.min, self.protocol.max
                ),
            )),
        }
    }
}

impl MessagePayload for Hello {
    const TYPE: &'static str = message_types::HELLO;
    const SENDER: Sender = Sender::Any;
}

open_enum! {
    /// Why a hello was refused, for programs.
    pub enum RefusalCode {
        /// No common version of the protocol.
        Version = "version",
        /// The client may not have the role that it asks for.
        Role = "role",
        /// The service demands encryption, and the client offers none.
        Encryption = "encryption",
        /// The service does not know the key, or cannot read the message of the handshake.
        Key = "key",
    }
}

/// Why a hello was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    #[serde(default)]
    pub message: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// `HELLO` of a service: the answer to a client's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AnswerMembers", into = "AnswerMembers")]
pub enum HelloAnswer {
    /// What holds from now on.
    Accepted(Hello),
    /// The service closes the connection after this.
    Refused(Refusal),
}

impl MessagePayload for HelloAnswer {
    const TYPE: &'static str = message_types::HELLO;
    const SENDER: Sender = Sender::Service;
}

/// An answer as the wire has it: `refused` alone, or the members of a hello.
#[derive(Default, Serialize, Deserialize)]
struct AnswerMembers {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<Refusal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<ProtocolRange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capabilities: Option<CapabilitySet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outbox: Option<OutboxId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<PeerLimits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema: Option<Schema>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<Handshake>,
}

impl From<HelloAnswer> for AnswerMembers {
    fn from(answer: HelloAnswer) -> Self {
        match answer {
            HelloAnswer::Accepted(Hello {
                protocol,
                role,
                capabilities,
                credit,
                outbox,
                seen,
                limits,
                schema,
                encryption,
            }) => Self {
                refused: None,
                protocol: Some(protocol),
                role: Some(role),
                capabilities: Some(capabilities),
                credit: Some(credit),
                outbox,
                seen,
                limits,
                schema,
                encryption,
            },
            HelloAnswer::Refused(refusal) => Self {
                refused: Some(refusal),
                ..Self::default()
            },
        }
    }
}

impl TryFrom<AnswerMembers> for HelloAnswer {
    type Error = &'static str;

    fn try_from(members: AnswerMembers) -> Result<Self, &'static str> {
        match members {
            AnswerMembers {
                refused: Some(refusal),
                ..
            } => Ok(Self::Refused(refusal)),
            AnswerMembers {
                protocol: Some(protocol),
                role: Some(role),
                ..
            } => Ok(Self::Accepted(Hello {
                protocol,
                role,
                capabilities: members.capabilities.unwrap_or_default(),
                credit: members.credit.unwrap_or_default(),
                outbox: members.outbox,
                seen: members.seen,
                limits: members.limits,
                schema: members.schema,
                encryption: members.encryption,
            })),
            AnswerMembers { .. } => Err("an answer needs `refused`, or `protocol` and `role`"),
        }
    }
}

/// `CREDIT`: the sender takes this many more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// How many more; they add up.
    pub messages: u32,
}

impl Credit {
    /// Credit for `messages` more.
    #[must_use]
    pub const fn new(messages: u32) -> Self {
        Self { messages }
    }
}

impl MessagePayload for Credit {
    const TYPE: &'static str = message_types::CREDIT;
    const SENDER: Sender = Sender::Any;
}

open_enum! {
    /// Why a side closes.
    pub enum GoodbyeReason {
        /// It stops.
        Stopping = "stopping",
        /// It needs the connection no more.
        Done = "done",
    }
}

/// `GOODBYE`: the last message of its sender, which closes once the other side has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// Why.
    pub reason: GoodbyeReason,
}

impl Goodbye {
    /// The last message of a side that closes for this reason.
    #[must_use]
    pub const fn new(reason: GoodbyeReason) -> Self {
        Self { reason }
    }
}

impl MessagePayload for Goodbye {
    const TYPE: &'static str = message_types::GOODBYE;
    const SENDER: Sender = Sender::Any;
}

/// Whether a message uses up credit. Control messages do not, nor does a reply: it is bounded by
/// what it answers, and a handler may be waiting for it.
#[must_use]
pub fn uses_credit(message_type: &str, is_reply: bool) -> bool {
    !is_reply && !message_types::is_control(message_type)
}
