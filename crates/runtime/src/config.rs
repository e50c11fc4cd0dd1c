//! Every limit and timeout of a connection and of a server, with its default and its reason.

use std::time::Duration;

use thiserror::Error;

use crate::clock::Clock;

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
    /// Messages accepted for sending and not yet handed to the operating system.
    pub outbound_messages: usize,
    /// Bytes accepted for sending and not yet handed to the operating system. A lane takes one
    /// more message whenever it is below this, so it may exceed it by one message.
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
        }
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
    /// we do not read, or are closing, does not count.
    pub slow_peer: Duration,
    /// How long a sent message waits for its answer before it resolves as unanswered.
    pub answer: Duration,
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
            answer: Duration::from_secs(30),
            handler_grace: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Limits, timeouts and clock of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// What the connection may hold.
    pub limits: ConnectionLimits,
    /// How long it waits.
    pub timeouts: ConnectionTimeouts,
    /// What dates its messages.
    pub clock: Clock,
}

/// Limits of a server as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at once; one more is closed at accept and counted.
    pub connections: usize,
    /// Connections at once whose peer the operating system has not named yet.
    pub pending_connections: usize,
    /// Messages and events that an observer may lag behind before it misses some (and is told).
    pub observer_backlog: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            pending_connections: 256,
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
        let timeouts = &self.timeouts;
        for (name, value) in [
            ("heartbeat_interval", timeouts.heartbeat_interval),
            ("first_byte", timeouts.first_byte),
            ("frame", timeouts.frame),
            ("hello", timeouts.hello),
            ("write_stall", timeouts.write_stall),
            ("slow_peer", timeouts.slow_peer),
            ("answer", timeouts.answer),
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
        positive("connections", self.connections)?;
        positive("pending_connections", self.pending_connections)?;
        positive("observer_backlog", self.observer_backlog)
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
    }
}
