//! The keys of one end, by their names.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::handshake::{HandshakeError, HandshakeMessage, Initiator, Responder};
use crate::keys::Key;
use crate::name::KeyName;
use crate::protocol::{Protocol, Suite};
use crate::provider::Provider;
use crate::records::Channel;

/// Keys by their names, and whose code computes with them. There is always at least one, and one of
/// them is the one that a client uses.
///
/// A key is replaced in three steps, none of which breaks a connection: the new one is added where
/// clients are answered, then it becomes the default where clients are, then the old one is taken
/// away. Sessions that exist keep the keys that they made for themselves.
///
/// Clones share the keys.
#[derive(Clone, Debug)]
pub struct Keyring {
    keys: BTreeMap<KeyName, Arc<Key>>,
    default: KeyName,
    provider: Provider,
}

/// Two keys have one name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the keyring has a key with the name {0} already")]
pub struct NameInUse(pub KeyName);

/// No key has the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the keyring has no key with the name {0}")]
pub struct NoSuchKey(pub KeyName);

/// What a client says first.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The Noise protocol.
    pub protocol: Protocol,
    /// The name of the key.
    pub key: KeyName,
    /// The first message of the handshake.
    pub message: HandshakeMessage,
}

/// Why a service does not answer a client's handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// It has no key with the name.
    #[error("the service has no key with this name")]
    UnknownKey,
    /// The key with the name is of another kind than the client's.
    #[error("the key with this name is of another kind")]
    OtherKind,
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl Keyring {
    /// A keyring with one key, which is the default.
    #[must_use]
    pub fn new(name: KeyName, key: Key) -> Self {
        Self {
            keys: BTreeMap::from([(name.clone(), Arc::new(key))]),
            default: name,
            provider: Provider::default(),
        }
    }

    /// Adds a key.
    ///
    /// # Errors
    ///
    /// [`NameInUse`]: a key with another content needs another name, since both ends tell keys by it.
    pub fn with(mut self, name: KeyName, key: Key) -> Result<Self, NameInUse> {
        if self.keys.contains_key(&name) {
            return Err(NameInUse(name));
        }
        self.keys.insert(name, Arc::new(key));
        Ok(self)
    }

    /// Makes the key with this name the one that a client uses.
    ///
    /// # Errors
    ///
    /// [`NoSuchKey`]: it has to be [added](Self::with) before.
    pub fn with_default(mut self, name: KeyName) -> Result<Self, NoSuchKey> {
        if !self.keys.contains_key(&name) {
            return Err(NoSuchKey(name));
        }
        self.default = name;
        Ok(self)
    }

    /// Computes with this provider.
    #[must_use]
    pub fn with_provider(mut self, provider: Provider) -> Self {
        self.provider = provider;
        self
    }

    /// The key with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Key>> {
        // A name from a peer need not be one.
        self.keys.get(&name.parse::<KeyName>().ok()?)
    }

    /// The names of the keys, in their order.
    pub fn names(&self) -> impl Iterator<Item = &KeyName> {
        self.keys.keys()
    }

    /// The name of the key that a client uses.
    #[must_use]
    pub const fn default_name(&self) -> &KeyName {
        &self.default
    }

    /// What the keyring computes with.
    #[must_use]
    pub const fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Begins a client's handshake with the default key.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Unsupported`] and [`HandshakeError::NoRandomness`].
    pub fn initiate(&self, suite: Suite) -> Result<(Opening, Initiator), HandshakeError> {
        let key = self.keys.get(&self.default);
        let key = key.ok_or(HandshakeError::Unsupported)?;
        let (message, initiator) = Initiator::begin(key, suite, &self.provider)?;
        let opening = Opening {
            protocol: Protocol::new(key.pattern(), suite),
            key: self.default.clone(),
            message,
        };
        Ok((opening, initiator))
    }

    /// Answers a client's handshake.
    ///
    /// # Errors
    ///
    /// [`RespondError`].
    pub fn respond(
        &self,
        protocol: Protocol,
        key: &str,
        message: &HandshakeMessage,
    ) -> Result<(HandshakeMessage, Channel), RespondError> {
        let key = self.get(key).ok_or(RespondError::UnknownKey)?;
        if key.pattern() != protocol.pattern {
            return Err(RespondError::OtherKind);
        }
        Ok(Responder::answer(
            key,
            protocol.suite,
            &self.provider,
            message,
        )?)
    }
}
