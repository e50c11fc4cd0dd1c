//! The messages around the beginning of encryption.

use serde::{Deserialize, Serialize};

use super::chunks::Sha256;
use crate::message_type::message_types;
use crate::payload::{MessagePayload, Sender};

/// `ENCRYPTED`: the last frame of a client in the clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encrypted {}

impl MessagePayload for Encrypted {
    const TYPE: &'static str = message_types::ENCRYPTED;
    const SENDER: Sender = Sender::Any;
}

/// `ENCRYPTION_CONFIRM`: the first encrypted frame of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionConfirm {
    /// The digest of both hello frames, the client's and then the service's, with their lengths.
    pub transcript: Sha256,
}

impl MessagePayload for EncryptionConfirm {
    const TYPE: &'static str = message_types::ENCRYPTION_CONFIRM;
    const SENDER: Sender = Sender::Any;
}
