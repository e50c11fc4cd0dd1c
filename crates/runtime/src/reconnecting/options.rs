//! How messages are sent: by type, and one by one.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;
use migration_ipc_protocol::{Idempotence, MessagePayload, Priority, StreamName};

use super::queue::Overflow;

/// What a message survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Broken connections: it waits in memory, and is gone with the process.
    #[default]
    Memory,
    /// The crash of the process and of the machine: it is on disk before `send` returns.
    Disk,
}

/// How one message is sent; what is not set is as its type has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct SendOptions {
    pub(super) durability: Option<Durability>,
    pub(super) stream: Option<StreamName>,
    pub(super) time_to_live: Option<Duration>,
    pub(super) idempotence: Option<Idempotence>,
    pub(super) priority: Option<Priority>,
}

impl SendOptions {
    /// As the type has it: in the unnamed stream, and living for ever.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the message survives.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Keeps the message on disk: the same as [`Durability::Disk`].
    pub fn durable(self) -> Self {
        self.durability(Durability::Disk)
    }

    /// The order that the message belongs to. A message that the service puts off holds up those
    /// behind it in its stream, and no others.
    pub fn stream(mut self, stream: StreamName) -> Self {
        self.stream = Some(stream);
        self
    }

    /// For how long the message is worth sending. One that is not sent by then resolves as
    /// [`Fate::Expired`](crate::Fate::Expired).
    pub fn time_to_live(mut self, time: Duration) -> Self {
        self.time_to_live = Some(time);
        self
    }

    /// Whether a service that does not recognise repetitions may get the message twice.
    pub fn idempotence(mut self, idempotence: Idempotence) -> Self {
        self.idempotence = Some(idempotence);
        self
    }

    /// How urgent the message is once it is on its way to a service that negotiates. Messages that
    /// are kept on disk go in their order, whatever is said here.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }
}

/// How the messages of one type are sent, unless said otherwise for one of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Policy {
    pub(crate) durability: Durability,
    pub(crate) overflow: Overflow,
    /// Whether its payloads are sensitive, as far as the builder was told of the type.
    pub(crate) sensitive: bool,
}

impl Policy {
    /// How messages of both are sent together: none is lost for the sake of the other.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            durability: self.durability.max(other.durability),
            overflow: if self.overflow == other.overflow {
                self.overflow
            } else {
                Overflow::Wait
            },
            sensitive: self.sensitive || other.sensitive,
        }
    }
}

/// The policies of a client, by type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies(HashMap<&'static str, Policy, RandomState>);

impl Policies {
    pub(crate) fn of(&self, message_type: &str) -> Policy {
        self.0.get(message_type).copied().unwrap_or_default()
    }

    pub(crate) fn entry<P: MessagePayload>(&mut self) -> &mut Policy {
        let policy = self.0.entry(P::TYPE).or_default();
        policy.sensitive = P::SENSITIVE;
        policy
    }

    pub(crate) fn any_durable(&self) -> bool {
        self.0
            .values()
            .any(|policy| policy.durability == Durability::Disk)
    }
}
