//! What lies between the stream and the frames: nothing, or encryption from a certain frame on.
//!
//! Each direction changes by itself, right behind a frame that says so: the last one in the clear.

use migration_ipc_crypto::{Channel, OpenError, Opener, SealError, Sealer};

use super::reason::DisconnectReason;

/// From where on what comes in is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opens {
    /// From behind the frame that was just taken.
    Here,
    /// From behind a later one.
    Later,
}

/// Both directions of a connection; without encryption they cost nothing.
#[derive(Debug, Default)]
pub(super) struct Layers(Option<Box<Encrypted>>);

#[derive(Debug)]
struct Encrypted {
    channel: Channel,
    incoming: Layering,
    outgoing: Layering,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layering {
    Clear,
    Sealed,
}

impl Layers {
    /// Encryption was agreed on. What goes out changes with [`seal_outgoing`](Self::seal_outgoing).
    pub(super) fn begin(&mut self, channel: Channel, opens: Opens) {
        self.0 = Some(Box::new(Encrypted {
            channel,
            incoming: match opens {
                Opens::Here => Layering::Sealed,
                Opens::Later => Layering::Clear,
            },
            outgoing: Layering::Clear,
        }));
    }

    /// What comes in is opened from here on.
    pub(super) fn open_incoming(&mut self) {
        if let Some(encrypted) = &mut self.0 {
            encrypted.incoming = Layering::Sealed;
        }
    }

    /// What goes out is sealed from here on.
    pub(super) fn seal_outgoing(&mut self) {
        if let Some(encrypted) = &mut self.0 {
            encrypted.outgoing = Layering::Sealed;
        }
    }

    /// What seals the next write, if anything does.
    pub(super) fn sealer(&mut self) -> Option<&mut Sealer> {
        self.0
            .as_mut()
            .filter(|encrypted| encrypted.outgoing == Layering::Sealed)
            .map(|encrypted| &mut encrypted.channel.sealer)
    }

    /// What opens the next bytes, if anything does.
    pub(super) fn opener(&mut self) -> Option<&mut Opener> {
        self.0
            .as_mut()
            .filter(|encrypted| encrypted.incoming == Layering::Sealed)
            .map(|encrypted| &mut encrypted.channel.opener)
    }

    /// Bytes that have arrived of a record that is not whole.
    pub(super) fn buffered(&self) -> usize {
        self.0
            .as_ref()
            .map_or(0, |encrypted| encrypted.channel.opener.buffered())
    }
}

impl From<OpenError> for DisconnectReason {
    fn from(error: OpenError) -> Self {
        Self::Violation(error.to_string())
    }
}

impl From<SealError> for DisconnectReason {
    fn from(error: SealError) -> Self {
        Self::NotEncrypted(error.to_string())
    }
}
