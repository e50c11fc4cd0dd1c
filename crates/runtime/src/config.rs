//! Every limit and timeout of a connection and of a server, with its default and its reason.

use std::time::Duration;

use migration_ipc_protocol::hello::CapabilitySet;
use migration_ipc_protocol::limits::{MAX_BODY, MAX_CHUNKED_BODY, MAX_JSON_DEPTH, MAX_JSON_VALUES};
use migration_ipc_protocol::{JsonLimits, SchemaFingerprint};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::connection::Compression;

/// The longest timeout: far beyond use, and far from where adding it to a time could overflow.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What one connection may hold, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Messages received and not yet handled. To new peers this is their credit; a plain peer
    /// that fills it is not read from until a handler finishes. Too low stalls bursts; too high
    /// delays the moment in which a peer feels that handlers are slow.
    pub inbox_messages: usize,
    /// Bytes of messages received and not yet handled, whatever their number.
    pub inbox_bytes: usize,
    /// Messages of each [priority](migration_ipc_protocol::Priority) accepted for sending and not yet
    /// handed to the operating system. Each has a lane and a bound of its own, so that one that is
    /// full keeps no more urgent message out.
    pub outbound_messages: usize,
    /// Bytes of each priority accepted for sending and not yet handed to the operating system. A lane
    /// takes one more message whenever it is below this, so it may exceed it by one message.
    pub outbound_bytes: usize,
    /// Bytes of acknowledgments and replies that the peer has not taken; beyond this it is not
    /// read from, so that somebody who only asks and never reads costs no more.
    pub control_bytes: usize,
    /// Messages that wait for the peer's answer. Sending with an answer waits beyond it.
    pub in_flight: usize,
    /// Handlers registered as concurrent that run at once for one connection.
    pub concurrent_handlers: usize,
    /// Bodies without a readable id that are tolerated before the connection is closed.
    pub malformed_messages: u32,
    /// Messages that name another account that are refused before the connection is closed.
    pub foreign_accounts: u32,
    /// How deep the JSON of a message may be nested; at most and by default
    /// [`MAX_JSON_DEPTH`].
    pub json_depth: usize,
    /// How many values a message may hold, members of objects and elements of arrays alike; at most
    /// and by default [`MAX_JSON_VALUES`]. Too low refuses lists of many files; what is beyond the
    /// usual costs memory while it is read.
    pub json_values: usize,
    /// The longest body in bytes that is taken in chunks: from 1 MiB to 1 GiB, or 0 for none at all. It
    /// is held whole in memory, until its handler has ended; twice as much may be held of a connection
    /// in such bodies. Too low refuses large messages; too high lets each connection of an account
    /// without limits hold that much.
    pub chunked_bytes: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            // Some five reads of 64 KiB, at about 190 messages of the usual 330 bytes each: enough
            // for a sender not to wait for credit, which comes back half an inbox at a time.
            inbox_messages: 1024,
            inbox_bytes: 4 * 1024 * 1024,
            outbound_messages: 4096,
            outbound_bytes: 512 * 1024,
            control_bytes: 256 * 1024,
            in_flight: 4096,
            concurrent_handlers: 64,
            malformed_messages: 3,
            foreign_accounts: 3,
            json_depth: MAX_JSON_DEPTH,
            json_values: MAX_JSON_VALUES,
            // A report with the logs of a day, or the list of half a million files.
            chunked_bytes: 16 * 1024 * 1024,
        }
    }
}

impl ConnectionLimits {
    /// The limits of JSON. Once validated, they are those that were asked for.
    pub(crate) fn json(&self) -> JsonLimits {
        JsonLimits::new(self.json_depth, self.json_values).unwrap_or_default()
    }
}

/// How long a connection waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionTimeouts {
    /// Heartbeats: to plain peers one each interval, to new peers after one without sending.
    pub heartbeat_interval: Duration,
    /// Intervals of silence after which a peer is stale; at least 2.
    pub stale_intervals: u32,
    /// How long a client may be silent before its first byte.
    pub first_byte: Duration,
    /// How long a frame may take from its first byte to its last.
    pub frame: Duration,
    /// How long a client waits for the answer to its hello before it treats the service as plain.
    pub hello: Duration,
    /// How long the peer may refuse to take any byte of what waits for it.
    pub write_stall: Duration,
    /// How long the messages that wait for the peer may fill their lane, without it ever being half
    /// empty, before the peer is disconnected. Too low parts with peers that have a long task at
    /// hand; too high makes senders wait longer for one whose handlers are stuck. Time in which
    /// we do not read, or are closing, or give the peer messages of other priorities instead, does
    /// not count.
    pub slow_peer: Duration,
    /// In which time a body that is sent in chunks has to come on by another 64 KiB, while we read,
    /// before it is given up: by its receiver, and by its sender when it may not go on for so long.
    /// Too low parts with senders that have much else to send; too high lets a sender that does
    /// nothing take the room of others.
    pub chunk_stall: Duration,
    /// How long what has arrived of such a body is kept when the connection ends, for a sender that
    /// comes again. Zero keeps nothing.
    pub chunks_kept: Duration,
    /// How long a sent message waits for its answer before it resolves as unanswered.
    pub answer: Duration,
    /// How long a request waits for its reply unless it says so itself; the peer is told. Too low
    /// gives up on handlers that are merely busy; too high keeps callers waiting for those that are
    /// stuck.
    pub request: Duration,
    /// How long handlers may finish after their connection has ended, before they are dropped.
    pub handler_grace: Duration,
    /// How long a connection that was asked to close may take to drain.
    pub drain: Duration,
}

impl Default for ConnectionTimeouts {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(30),
            stale_intervals: 3,
            first_byte: Duration::from_secs(60),
            frame: Duration::from_secs(30),
            hello: Duration::from_secs(2),
            write_stall: Duration::from_secs(30),
            slow_peer: Duration::from_secs(30),
            chunk_stall: Duration::from_secs(60),
            // A service that was restarted, and a client that waits between its tries, are back by
            // then.
            chunks_kept: Duration::from_secs(300),
            answer: Duration::from_secs(30),
            request: Duration::from_secs(30),
            handler_grace: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// What becomes of sensitive messages: those of types that are
/// [`SENSITIVE`](migration_ipc_protocol::MessagePayload::SENSITIVE), as far as that is known. Of a
/// message that was made before, and of mail, it is when the type has a handler here, or was sent
/// with its payload before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SensitivePolicy {
    /// They go over any connection.
    #[default]
    AsTheyAre,
    /// They go over encrypted connections alone, once the peer has confirmed that it hears the same.
    /// Until that is known they wait; over a connection that is not encrypted they are refused with
    /// [`SendError::NotEncrypted`](crate::SendError::NotEncrypted). In a
    /// [`ReconnectingIpcClient`](crate::ReconnectingIpcClient) they wait for a connection that is. A
    /// sensitive reply over a connection that is not becomes an error.
    Encrypted,
}

/// Limits, timeouts and clock of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// What the connection may hold.
    pub limits: ConnectionLimits,
    /// How long it waits.
    pub timeouts: ConnectionTimeouts,
    /// What this end offers to peers that negotiate: everything, unless something is left out here.
    /// What takes more than a program ([`Durable`](migration_ipc_protocol::hello::Capability::Durable) a store,
    /// [`Encryption`](migration_ipc_protocol::hello::Capability::Encryption) a key) is offered only with that.
    pub capabilities: CapabilitySet,
    /// What this end's payload types are. A peer that was built with others is noted in the log.
    pub schema: SchemaFingerprint,
    /// What this end compresses for peers that negotiated it. What they compress is read in any case.
    pub compression: Compression,
    /// What becomes of sensitive messages.
    pub sensitive: SensitivePolicy,
    /// What dates its messages.
    pub clock: Clock,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            limits: ConnectionLimits::default(),
            timeouts: ConnectionTimeouts::default(),
            capabilities: CapabilitySet::all(),
            schema: SchemaFingerprint::BUILT_IN,
            compression: Compression::default(),
            sensitive: SensitivePolicy::default(),
            clock: Clock::default(),
        }
    }
}

/// How much of something may come each second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rate {
    /// As much as can be handled.
    #[default]
    Unlimited,
    /// So much on average; at least 1.
    PerSecond(u64),
}

/// What one ordinary account may take of a server, over all of its connections. Administrators and
/// the service's own account are held to none of it but the lines of the log: they could do worse
/// to the service than to send much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountLimits {
    /// Connections at once. Too low refuses users with many sessions or pools with many lanes; too
    /// high lets a few users take all that is not reserved.
    pub connections: usize,
    /// Messages each second, of whatever kind. Beyond it the account's connections are not read
    /// from for a while. Unlimited unless set: what is too much depends on what handlers do.
    pub messages: Rate,
    /// Bytes each second, with the length of each frame. Unlimited unless set.
    pub bytes: Rate,
    /// How much may come at once after a time of quiet: what the rates allow in this time. Too low
    /// makes bursts wait; too high lets a burst take that much from others.
    pub burst: Duration,
    /// Bytes that the connections hold together: messages received and not yet handled, frames that
    /// have arrived in part, and what waits to be written. Beyond it nothing is read from, and nothing
    /// is queued for, a connection that holds more than a few KiB. A connection's own limits are
    /// usually met first; this one bounds their sum.
    pub memory: usize,
    /// Bytes of bodies in chunks that its connections may send together, from their beginning to the
    /// end of their handlers, with what is kept of those whose connection has ended. At most half of
    /// [`memory`](Self::memory) counts. Beyond it a sender is told to try again later.
    pub chunks: usize,
    /// For how long an account may be over its rates without a pause, and a connection may wait for
    /// its account's memory, before the connection ends.
    pub patience: Duration,
    /// Lines of the log about an account's misdeeds, and as many about its connections, in each
    /// interval. What is beyond them is counted, and the count is written.
    pub log_lines: u32,
    /// The interval of these lines.
    pub log_interval: Duration,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self {
            // A user has an agent for each session, each with a few lanes.
            connections: 256,
            messages: Rate::Unlimited,
            bytes: Rate::Unlimited,
            burst: Duration::from_secs(2),
            // Sixteen full inboxes of the default size.
            memory: 64 * 1024 * 1024,
            // Two of the longest bodies of the default size.
            chunks: 32 * 1024 * 1024,
            patience: Duration::from_secs(60),
            log_lines: 20,
            log_interval: Duration::from_secs(60),
        }
    }
}

/// Limits of a server as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at once, without those that are pending; one more is closed at accept and
    /// counted.
    pub connections: usize,
    /// How many of these are kept for accounts that have few.
    pub reserved_connections: usize,
    /// Fewer connections than this are few.
    pub few_connections: usize,
    /// How many of the connections are kept for operators (administrators and the service's own
    /// account), so that they get in whatever users do.
    pub operator_connections: usize,
    /// Connections at once whose peer the operating system has not named yet. When there are more,
    /// the oldest that has sent nothing gives way, so that silence holds no place; on Unix the
    /// operating system names a peer at accept, and there are none.
    pub pending_connections: usize,
    /// Peers that the operating system is asked about at once; each costs a thread for a moment on
    /// Windows.
    pub identifications: usize,
    /// What one account may take of all of it.
    pub account: AccountLimits,
    /// Messages and events that an observer may lag behind before it misses some (and is told).
    pub observer_backlog: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            // An eighth: 64 accounts that come when everything else is taken.
            reserved_connections: 512,
            few_connections: 8,
            operator_connections: 16,
            pending_connections: 256,
            identifications: 16,
            account: AccountLimits::default(),
            // An item may hold a message of a mebibyte.
            observer_backlog: 256,
        }
    }
}

/// A configuration value that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name} must be {expected}")]
pub struct ConfigError {
    name: &'static str,
    expected: &'static str,
}

impl ConfigError {
    pub(crate) fn new(name: &'static str, expected: &'static str) -> Self {
        Self { name, expected }
    }
}

impl ConnectionConfig {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// Names the first value that cannot work, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (name, value) in [
            ("inbox_messages", limits.inbox_messages),
            ("inbox_bytes", limits.inbox_bytes),
            ("outbound_messages", limits.outbound_messages),
            ("outbound_bytes", limits.outbound_bytes),
            ("control_bytes", limits.control_bytes),
            ("in_flight", limits.in_flight),
            ("concurrent_handlers", limits.concurrent_handlers),
        ] {
            positive(name, value)?;
        }
        if u32::try_from(limits.inbox_messages).is_err() {
            return Err(ConfigError {
                name: "inbox_messages",
                expected: "at most 4294967295",
            });
        }
        if JsonLimits::new(limits.json_depth, limits.json_values).is_none() {
            return Err(
                if JsonLimits::new(limits.json_depth, MAX_JSON_VALUES).is_none() {
                    ConfigError::new("json_depth", "from 8 to 64")
                } else {
                    ConfigError::new("json_values", "from 64 to 65536")
                },
            );
        }
        if limits.chunked_bytes != 0
            && !(MAX_BODY..=MAX_CHUNKED_BODY).contains(&limits.chunked_bytes)
        {
            return Err(ConfigError::new(
                "chunked_bytes",
                "0, or from 1048576 to 1073741824",
            ));
        }
        self.compression.validate()?;
        let timeouts = &self.timeouts;
        for (name, value) in [
            ("heartbeat_interval", timeouts.heartbeat_interval),
            ("first_byte", timeouts.first_byte),
            ("frame", timeouts.frame),
            ("hello", timeouts.hello),
            ("write_stall", timeouts.write_stall),
            ("slow_peer", timeouts.slow_peer),
            ("chunk_stall", timeouts.chunk_stall),
            ("answer", timeouts.answer),
            ("request", timeouts.request),
        ] {
            if value.is_zero() {
                return Err(ConfigError {
                    name,
                    expected: "longer than zero",
                });
            }
            bounded(name, value)?;
        }
        bounded("handler_grace", timeouts.handler_grace)?;
        bounded("drain", timeouts.drain)?;
        bounded("chunks_kept", timeouts.chunks_kept)?;
        if !(2..=1000).contains(&timeouts.stale_intervals) {
            return Err(ConfigError {
                name: "stale_intervals",
                expected: "from 2 to 1000",
            });
        }
        Ok(())
    }
}

impl ServerLimits {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// Names the first value that cannot work, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("connections", self.connections),
            ("pending_connections", self.pending_connections),
            ("identifications", self.identifications),
            ("observer_backlog", self.observer_backlog),
        ] {
            positive(name, value)?;
        }
        let reserved = self
            .reserved_connections
            .saturating_add(self.operator_connections);
        if reserved >= self.connections {
            return Err(ConfigError::new(
                "reserved_connections",
                "together with operator_connections less than connections",
            ));
        }
        if self.identifications > Semaphore::MAX_PERMITS {
            return Err(ConfigError::new("identifications", "less"));
        }
        self.account.validate()
    }
}

impl AccountLimits {
    /// Checks what the types cannot express. [`ServerLimits::validate`] does so too.
    ///
    /// # Errors
    /// Names the first value that cannot work, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        positive("account.connections", self.connections)?;
        positive("account.memory", self.memory)?;
        for (name, rate) in [
            ("account.messages", self.messages),
            ("account.bytes", self.bytes),
        ] {
            if rate == Rate::PerSecond(0) {
                return Err(ConfigError::new(name, "at least 1 per second"));
            }
        }
        for (name, value) in [
            ("account.burst", self.burst),
            ("account.patience", self.patience),
            ("account.log_interval", self.log_interval),
        ] {
            if value.is_zero() {
                return Err(ConfigError::new(name, "longer than zero"));
            }
            bounded(name, value)?;
        }
        if self.log_lines == 0 {
            return Err(ConfigError::new("account.log_lines", "at least 1"));
        }
        Ok(())
    }
}

fn bounded(name: &'static str, value: Duration) -> Result<(), ConfigError> {
    if value <= MAX_TIMEOUT {
        return Ok(());
    }
    Err(ConfigError {
        name,
        expected: "at most a year",
    })
}

fn positive(name: &'static str, value: usize) -> Result<(), ConfigError> {
    if value == 0 {
        Err(ConfigError {
            name,
            expected: "at least 1",
        })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        ConnectionConfig::default().validate().unwrap();
        ServerLimits::default().validate().unwrap();
    }

    /// The texts of the errors name them.
    #[test]
    fn the_bounds_of_json_are_those_of_the_protocol() {
        use migration_ipc_protocol::limits::{MIN_JSON_DEPTH, MIN_JSON_VALUES};
        let bounds = (
            MIN_JSON_DEPTH,
            MAX_JSON_DEPTH,
            MIN_JSON_VALUES,
            MAX_JSON_VALUES,
        );
        assert_eq!(bounds, (8, 64, 64, 65_536));
    }

    #[test]
    fn a_value_that_cannot_work_is_named() {
        let mut config = ConnectionConfig::default();
        config.limits.in_flight = 0;
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "in_flight must be at least 1"
        );
        let mut config = ConnectionConfig::default();
        config.timeouts.stale_intervals = 1;
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "stale_intervals must be from 2 to 1000"
        );
        let mut config = ConnectionConfig::default();
        config.limits.json_depth = 65;
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "json_depth must be from 8 to 64"
        );
        let mut config = ConnectionConfig::default();
        config.limits.json_values = 63;
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "json_values must be from 64 to 65536"
        );
        for bytes in [1, MAX_BODY - 1, MAX_CHUNKED_BODY + 1] {
            let mut config = ConnectionConfig::default();
            config.limits.chunked_bytes = bytes;
            assert_eq!(
                config.validate().unwrap_err().to_string(),
                "chunked_bytes must be 0, or from 1048576 to 1073741824"
            );
        }
        let mut config = ConnectionConfig::default();
        config.limits.chunked_bytes = 0;
        config.validate().unwrap();
        for bytes in [0, 63, 1_048_577] {
            let config = ConnectionConfig {
                compression: Compression::From(bytes),
                ..ConnectionConfig::default()
            };
            assert_eq!(
                config.validate().unwrap_err().to_string(),
                "compression must be off, or from 64 to 1048576"
            );
        }
        for bytes in [Compression::MIN_THRESHOLD, Compression::USUAL_THRESHOLD] {
            let config = ConnectionConfig {
                compression: Compression::From(bytes),
                ..ConnectionConfig::default()
            };
            config.validate().unwrap();
        }
        let mut limits = ServerLimits {
            connections: 528,
            ..ServerLimits::default()
        };
        assert_eq!(
            limits.validate().unwrap_err().to_string(),
            "reserved_connections must be together with operator_connections less than connections"
        );
        limits.connections = 529;
        limits.validate().unwrap();
        limits.account.messages = Rate::PerSecond(0);
        assert_eq!(
            limits.validate().unwrap_err().to_string(),
            "account.messages must be at least 1 per second"
        );
    }
}
