//! The handshake: one message of the client, one of the service, and both have fresh keys.

use std::fmt;
use std::str::FromStr;

use snow::error::{Error, InitStage};
use snow::{Builder, HandshakeState, TransportState};

use crate::hex;
use crate::keys::Key;
use crate::protocol::{PROLOGUE, Protocol, Suite};
use crate::provider::Provider;
use crate::records::{Channel, Direction};

/// Bytes of each message: an ephemeral key of X25519, and the tag of an empty payload.
const MESSAGE_BYTES: usize = 32 + 16;

/// A message of the handshake, in the clear: as text hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeMessage([u8; MESSAGE_BYTES]);

/// A text is no [`HandshakeMessage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the handshake has {} hexadecimal digits", 2 * MESSAGE_BYTES)]
pub struct ParseMessageError;

impl HandshakeMessage {
    /// The message with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; MESSAGE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; MESSAGE_BYTES] {
        &self.0
    }
}

impl fmt::Display for HandshakeMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(f, &self.0)
    }
}

impl FromStr for HandshakeMessage {
    type Err = ParseMessageError;

    fn from_str(text: &str) -> Result<Self, ParseMessageError> {
        hex::read(text).map(Self).ok_or(ParseMessageError)
    }
}

/// Why there is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The other end made its message with another key, for another protocol or another handshake, or
    /// it was changed on the way.
    #[error("the message of the handshake cannot be read: both ends need the same key by its name")]
    Unreadable,
    /// The provider cannot compute what the protocol asks for.
    #[error("the provider of cryptography has not all that the protocol needs")]
    Unsupported,
    /// The operating system gave no random bytes.
    #[error("there are no random bytes to make keys of")]
    NoRandomness,
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        match error {
            Error::Decrypt | Error::Input | Error::Dh => Self::Unreadable,
            Error::Rng | Error::Init(InitStage::GetRngImpl) => Self::NoRandomness,
            // What remains is about the parameters, which are ours. The enumeration is open.
            _ => Self::Unsupported,
        }
    }
}

/// A client in the middle of its handshake.
pub struct Initiator(HandshakeState);

impl Initiator {
    /// Begins: the message is for the service.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Unsupported`] and [`HandshakeError::NoRandomness`].
    pub fn begin(
        key: &Key,
        suite: Suite,
        provider: &Provider,
    ) -> Result<(HandshakeMessage, Self), HandshakeError> {
        let protocol = Protocol::new(key.pattern(), suite);
        let mut state = with_key(provider.builder(protocol), key)?.build_initiator()?;
        let message = write(&mut state)?;
        Ok((message, Self(state)))
    }

    /// Ends it with the service's answer.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Unreadable`].
    pub fn finish(self, answer: &HandshakeMessage) -> Result<Channel, HandshakeError> {
        let Self(mut state) = self;
        read(&mut state, answer)?;
        split(state, Direction::ToService)
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator")
    }
}

/// A service, whose part is a single step.
#[derive(Debug)]
pub struct Responder;

impl Responder {
    /// Answers a client's message.
    ///
    /// # Errors
    ///
    /// All of [`HandshakeError`].
    pub fn answer(
        key: &Key,
        suite: Suite,
        provider: &Provider,
        message: &HandshakeMessage,
    ) -> Result<(HandshakeMessage, Channel), HandshakeError> {
        let protocol = Protocol::new(key.pattern(), suite);
        let mut state = with_key(provider.builder(protocol), key)?.build_responder()?;
        read(&mut state, message)?;
        let answer = write(&mut state)?;
        Ok((answer, split(state, Direction::ToClient)?))
    }
}

fn with_key<'a>(builder: Builder<'a>, key: &'a Key) -> Result<Builder<'a>, Error> {
    let builder = builder.prologue(PROLOGUE)?;
    match key {
        Key::Shared(key) => builder.psk(0, key.expose()),
        Key::Static(keys) => builder
            .local_private_key(keys.private.expose())?
            .remote_public_key(keys.peer.as_bytes()),
    }
}

fn write(state: &mut HandshakeState) -> Result<HandshakeMessage, HandshakeError> {
    let mut message = HandshakeMessage([0; MESSAGE_BYTES]);
    match state.write_message(&[], &mut message.0)? {
        MESSAGE_BYTES => Ok(message),
        _ => Err(HandshakeError::Unsupported),
    }
}

fn read(state: &mut HandshakeState, message: &HandshakeMessage) -> Result<(), HandshakeError> {
    state.read_message(&message.0, &mut [])?;
    Ok(())
}

fn split(state: HandshakeState, sends: Direction) -> Result<Channel, HandshakeError> {
    let state: TransportState = state.into_transport_mode()?;
    Ok(Channel::new(state, sends))
}
