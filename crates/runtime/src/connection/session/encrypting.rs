//! The beginning of encryption: between the hello, which is in the clear, and the confirmations,
//! which are not.

use migration_ipc_crypto::{
    Channel, HandshakeMessage, Initiator, KeyName, Keyring, Protocol, RespondError,
};
use migration_ipc_protocol::extensions::{Encrypted, EncryptionConfirm, Sha256};
use migration_ipc_protocol::hello::{
    Capability, CapabilitySet, Handshake, Hello, Refusal, RefusalCode,
};
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, MessagePayload, MessageSerializer, message_types,
};
use tokio::time::Instant;

use super::{Directive, Session};
use crate::audit::{AuditEvent, AuditText};
use crate::connection::layers::Opens;
use crate::connection::reason::DisconnectReason;
use crate::connection::secrecy::Secrecy;
use crate::dispatch::HandlerError;

/// How far encryption has come on a connection.
#[derive(Debug)]
pub(super) enum Encrypting {
    /// There is nothing left to do: it is encrypted, or will never be.
    Settled,
    /// A service that demands it, whose client has not said hello.
    Demanded,
    /// A client whose hello is out, with its part of the handshake.
    Offered(Box<Offer>),
    /// A service that has answered with its part: its client goes on in the clear up to the marker.
    AwaitingMarker(Box<Confirmation>),
    /// The peer has to confirm what both said in the clear, before it says anything else. A client
    /// has agreed to this by then, and follows it once that is confirmed.
    AwaitingConfirmation(Box<Confirmation>, Option<Box<Hello>>),
}

/// What a client keeps of its hello.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) initiator: Initiator,
    pub(crate) key: KeyName,
    /// The whole frame.
    hello: Vec<u8>,
}

impl Offer {
    pub(crate) fn new(initiator: Initiator, key: KeyName) -> Self {
        Self {
            initiator,
            key,
            hello: Vec::new(),
        }
    }
}

/// What the peer has to say, and by when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confirmation {
    transcript: Sha256,
    until: Instant,
}

/// What a service needs to go on with a client that it shares a key with.
pub(super) struct Responded {
    pub(super) channel: Box<Channel>,
    pub(super) handshake: Handshake,
}

impl Encrypting {
    /// By when the peer has to have done its part.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Settled | Self::Demanded | Self::Offered(_) => None,
            Self::AwaitingMarker(confirmation) | Self::AwaitingConfirmation(confirmation, _) => {
                Some(confirmation.until)
            }
        }
    }
}

impl Session {
    /// Whether this side speaks with nobody in the clear.
    pub(super) fn demands_encryption(&self) -> bool {
        self.connection
            .encryption()
            .is_some_and(|encryption| encryption.is_required())
    }

    /// Takes a frame while encryption is begun. `None` when it is one like any other.
    pub(super) fn handle_while_encrypting(
        &mut self,
        body: &[u8],
    ) -> Result<Option<Directive>, DisconnectReason> {
        let envelope = Envelope::parse_within(body, self.json);
        let is_a = |message_type| {
            envelope
                .as_ref()
                .is_ok_and(|envelope| envelope.message_type == message_type)
        };
        match &self.encrypting {
            Encrypting::Settled => Ok(None),
            Encrypting::Demanded => match envelope {
                Ok(envelope) if envelope.message_type == message_types::HELLO => Ok(None),
                envelope => Ok(Some(self.turn_away(envelope.ok().as_ref()))),
            },
            Encrypting::Offered(_) if self.demands_encryption() && !is_a(message_types::HELLO) => {
                Err(DisconnectReason::NotEncrypted(
                    "the service speaks the plain protocol, and this client demands encryption"
                        .to_owned(),
                ))
            }
            Encrypting::Offered(_) => Ok(None),
            Encrypting::AwaitingMarker(confirmation) if is_a(message_types::ENCRYPTED) => {
                let confirmation = confirmation.clone();
                self.note_received(message_types::ENCRYPTED, LENGTH_PREFIX + body.len());
                self.encrypting = Encrypting::AwaitingConfirmation(confirmation, None);
                Ok(Some(Directive::Open))
            }
            Encrypting::AwaitingMarker(_) if self.demands_encryption() => {
                if let Ok(envelope) = envelope {
                    self.refuse_clear(
                        &envelope,
                        "this service demands encryption and takes nothing in the clear behind the \
                         hello: the client has to demand it too",
                    );
                }
                Ok(Some(Directive::Finish(DisconnectReason::Violation(
                    "a message in the clear behind the hello, where encryption is demanded"
                        .to_owned(),
                ))))
            }
            Encrypting::AwaitingMarker(_) => Ok(None),
            Encrypting::AwaitingConfirmation(confirmation, _) => {
                let transcript = confirmation.transcript;
                let confirmed = envelope.ok().filter(|envelope| {
                    envelope.message_type == message_types::ENCRYPTION_CONFIRM
                        && envelope
                            .payload::<EncryptionConfirm>()
                            .is_ok_and(|confirm| confirm.transcript == transcript)
                });
                if confirmed.is_none() {
                    return Err(DisconnectReason::Violation(
                        "the peer did not confirm the hellos: one of them was changed on the way, \
                         or what is encrypted does not begin with the confirmation"
                            .to_owned(),
                    ));
                }
                self.note_received(
                    message_types::ENCRYPTION_CONFIRM,
                    LENGTH_PREFIX + body.len(),
                );
                self.handle_confirmed();
                Ok(Some(Directive::Continue))
            }
        }
    }

    /// Both ends know now that they heard the same.
    fn handle_confirmed(&mut self) {
        self.connection.settle_secrecy(Secrecy::Encrypted);
        let settled = std::mem::replace(&mut self.encrypting, Encrypting::Settled);
        if let Encrypting::AwaitingConfirmation(_, Some(agreed)) = settled {
            self.announce_held();
            self.accept_answer(&agreed);
        }
        tracing::debug!(connection = %self.connection.id(), "encrypted");
    }

    pub(super) fn handle_encrypting_timeout(&self, now: Instant) -> Result<(), DisconnectReason> {
        match self.encrypting.deadline() {
            Some(until) if until <= now => Err(DisconnectReason::HandshakeTimeout),
            Some(_) | None => Ok(()),
        }
    }

    fn confirmation(
        &self,
        keyring: &Keyring,
        hello: &[u8],
        answer: &[u8],
        now: Instant,
    ) -> Result<Confirmation, DisconnectReason> {
        let digest = keyring.provider().sha256(&[hello, answer]);
        let digest = digest.map_err(|error| DisconnectReason::NotEncrypted(error.to_string()))?;
        Ok(Confirmation {
            transcript: Sha256(digest),
            until: now + self.connection.config().timeouts.frame,
        })
    }

    fn confirm(&self, confirmation: Confirmation) {
        let transcript = confirmation.transcript;
        self.say(None, &EncryptionConfirm { transcript });
    }

    // --- the client's side -----------------------------------------------------------------------

    /// The client's hello is out, as this frame.
    pub(super) fn offer_encryption(&mut self, offer: Option<Offer>, hello: &[u8]) {
        if let Some(offer) = offer {
            self.encrypting = Encrypting::Offered(Box::new(Offer {
                hello: hello.to_vec(),
                ..offer
            }));
        }
    }

    /// The service agreed to encrypt: from behind its answer it does, and from behind the marker this
    /// side does.
    pub(super) fn encrypt_as_client(
        &mut self,
        agreed: Hello,
        answer: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        let offer = match std::mem::replace(&mut self.encrypting, Encrypting::Settled) {
            Encrypting::Offered(offer) => offer,
            Encrypting::Settled
            | Encrypting::Demanded
            | Encrypting::AwaitingMarker(_)
            | Encrypting::AwaitingConfirmation(..) => {
                return Err(DisconnectReason::Violation(
                    "encryption that was not offered".to_owned(),
                ));
            }
        };
        let Offer {
            initiator,
            key,
            hello,
        } = *offer;
        let message = agreed.encryption.as_ref().map(|part| part.message.parse());
        let Some(Ok(message)) = message else {
            return Err(DisconnectReason::Violation(
                "encryption without a message of the handshake".to_owned(),
            ));
        };
        let channel = initiator.finish(&message).map_err(|error| {
            DisconnectReason::NotEncrypted(format!("the service's answer for key {key}: {error}"))
        })?;
        let Some(encryption) = self.connection.encryption().cloned() else {
            return Err(DisconnectReason::NotEncrypted("there is no key".to_owned()));
        };
        let confirmation = self.confirmation(&encryption.keyring, &hello, &framed(answer), now)?;
        let (id, timestamp) = self.stamp();
        let head = EnvelopeHead::new(&id, Encrypted::TYPE, timestamp);
        let mut marker = Vec::new();
        if let Err(error) = MessageSerializer::encode(&mut marker, head, &Encrypted {}) {
            return Err(DisconnectReason::NotEncrypted(error.to_string()));
        }
        self.connection
            .push_last_clear_frame(Encrypted::TYPE, &marker);
        self.confirm(confirmation);
        self.hello_deadline = None;
        self.encrypting =
            Encrypting::AwaitingConfirmation(Box::new(confirmation), Some(Box::new(agreed)));
        Ok(Directive::Encrypt(Box::new(channel), Opens::Here))
    }

    // --- the service's side ----------------------------------------------------------------------

    /// Answers the client's part of the handshake, or says why it is refused; `None` when the two do
    /// without.
    pub(super) fn respond(&self, hello: &Hello) -> Result<Option<Responded>, Refusal> {
        let can = |capabilities: CapabilitySet| capabilities.contains(Capability::Encryption);
        let ours = self.connection.config().capabilities;
        let encryption = self.connection.encryption().filter(|_| can(ours));
        let Some(encryption) = encryption else {
            return Ok(None);
        };
        let Some(offer) = hello
            .encryption
            .as_ref()
            .filter(|_| can(hello.capabilities))
        else {
            if !encryption.is_required() {
                return Ok(None);
            }
            self.note_unencrypted(None, "not_offered");
            return Err(Refusal::new(
                RefusalCode::Encryption,
                "this service demands encryption, and the client offers none: give it a key that \
                 the service has",
            ));
        };
        let name = offer.key.as_deref().unwrap_or_default();
        match respond_with(&encryption.keyring, name, offer) {
            Ok((message, channel)) => Ok(Some(Responded {
                channel: Box::new(channel),
                handshake: Handshake {
                    protocol: None,
                    key: None,
                    message: message.to_string(),
                },
            })),
            Err(reason) => {
                self.note_unencrypted(Some(name), reason);
                // Which of it is the case is nobody's business.
                Err(Refusal::new(
                    RefusalCode::Key,
                    "the service has no such key, or cannot read the handshake: both ends need the \
                     same key, of the same kind, under the same name, and a protocol that both know",
                ))
            }
        }
    }

    /// The service's answer is the last frame in the clear.
    pub(super) fn encrypt_as_service(
        &mut self,
        hello: &[u8],
        answer: &[u8],
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let Some(encryption) = self.connection.encryption().cloned() else {
            return Err(DisconnectReason::NotEncrypted("there is no key".to_owned()));
        };
        let confirmation = self.confirmation(&encryption.keyring, &framed(hello), answer, now)?;
        self.connection.push_last_clear_frame(Hello::TYPE, answer);
        self.confirm(confirmation);
        self.encrypting = Encrypting::AwaitingMarker(Box::new(confirmation));
        Ok(())
    }

    /// A plain client, where encryption is demanded.
    fn turn_away(&mut self, envelope: Option<&Envelope<'_>>) -> Directive {
        self.note_unencrypted(None, "not_offered");
        if let Some(envelope) = envelope {
            self.refuse_clear(envelope, "this service demands encryption");
        }
        Directive::Finish(DisconnectReason::NotEncrypted(
            "the client speaks the plain protocol, and this service demands encryption".to_owned(),
        ))
    }

    fn refuse_clear(&self, envelope: &Envelope<'_>, why: &str) {
        let refused = HandlerError::new(why).with_code(ErrorCode::NotPermitted);
        self.acknowledge(&envelope.id, Err(&refused));
    }

    fn note_unencrypted(&self, key: Option<&str>, reason: &'static str) {
        let key = key.map(AuditText::new);
        self.connection.telemetry().refused("encryption");
        self.connection.complain(|| {
            tracing::warn!(
                connection = %self.connection.id(),
                peer = %self.connection.peer(),
                key = key.as_ref().map(AuditText::as_str),
                reason,
                "encryption was refused",
            );
        });
        self.connection
            .audit(AuditEvent::EncryptionRefused { key, reason });
    }
}

/// The reason of a refusal is from a closed set.
fn respond_with(
    keyring: &Keyring,
    name: &str,
    offer: &Handshake,
) -> Result<(HandshakeMessage, Channel), &'static str> {
    let protocol = offer.protocol.as_deref().unwrap_or_default();
    let protocol: Protocol = protocol.parse().map_err(|_| "unknown_protocol")?;
    let message = offer.message.parse().map_err(|_| "unreadable")?;
    keyring
        .respond(protocol, name, &message)
        .map_err(|error| match error {
            RespondError::UnknownKey => "unknown_key",
            RespondError::OtherKind => "other_kind",
            RespondError::Handshake(error) => match error {
                migration_ipc_crypto::HandshakeError::Unreadable => "unreadable",
                migration_ipc_crypto::HandshakeError::Unsupported => "unsupported",
                migration_ipc_crypto::HandshakeError::NoRandomness => "no_randomness",
            },
        })
}

/// A body with its length, as it was on the wire.
fn framed(body: &[u8]) -> Vec<u8> {
    // A body that was read is within its limit.
    let length = i32::try_from(body.len()).unwrap_or(i32::MAX);
    [&length.to_le_bytes(), body].concat()
}
