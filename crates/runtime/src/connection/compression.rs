//! What is compressed, and the buffers for it. A frame is compressed by its sender, in a buffer of its
//! thread, before it enters a lane, so lanes and their limits hold what goes over the wire.

use std::cell::Cell;

use migration_ipc_protocol::extensions::{Decompressor, compress_frame};
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::MAX_BODY;

use super::handle::IpcConnection;
use crate::config::ConfigError;

/// A buffer that grew beyond this is given back. It is enough for frames of 64 KiB, for which LZ4 wants
/// a tenth more than their length.
const PACKED_CAPACITY: usize = 80 * 1024;

/// Which messages are compressed for peers that negotiated
/// [`Lz4`](migration_ipc_protocol::hello::Capability::Lz4). One that would not become shorter never is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// None: on one machine moving bytes is cheaper than compressing them. `docs/compression.md` has
    /// the figures.
    #[default]
    Off,
    /// Those of at least so many bytes on the wire, from [`MIN_THRESHOLD`](Self::MIN_THRESHOLD) to
    /// 1 MiB. Too low spends time on what gains nothing; too high leaves alone what would shrink to a
    /// half or a fifth.
    From(usize),
}

impl Compression {
    /// The least threshold in bytes. Below it there is next to nothing to find in a message by itself.
    pub const MIN_THRESHOLD: usize = 64;

    /// The threshold for those who want compression and have no figures of their own, in bytes: here a
    /// list of files shrinks to six tenths, and further the longer it is.
    pub const USUAL_THRESHOLD: usize = 4096;

    pub(crate) fn validate(self) -> Result<(), ConfigError> {
        match self {
            Self::From(bytes) if !(Self::MIN_THRESHOLD..=MAX_BODY).contains(&bytes) => Err(
                ConfigError::new("compression", "off, or from 64 to 1048576"),
            ),
            Self::Off | Self::From(_) => Ok(()),
        }
    }

    fn wants(self, frame: usize) -> bool {
        match self {
            Self::Off => false,
            Self::From(bytes) => frame >= bytes,
        }
    }
}

/// A frame for one connection or for many, compressed at most once.
pub(crate) struct Packing<'a> {
    plain: &'a [u8],
    /// The frame in its compressed form; empty unless that was made, and is shorter.
    compressed: &'a mut Vec<u8>,
    tried: Tried,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    NotYet,
    Gained,
    InVain,
}

impl Packing<'_> {
    /// The frame as it was encoded.
    pub(crate) fn plain(&self) -> &[u8] {
        self.plain
    }

    /// The frame as it goes to this peer.
    pub(crate) fn frame_for(&mut self, connection: &IpcConnection) -> &[u8] {
        let wanted = connection.config().compression.wants(self.plain.len())
            && connection.has(Capability::Lz4);
        if !wanted {
            return self.plain;
        }
        if self.tried == Tried::NotYet {
            self.tried = if compress_frame(self.plain, self.compressed) {
                Tried::Gained
            } else {
                Tried::InVain
            };
        }
        match self.tried {
            Tried::Gained => self.compressed,
            Tried::NotYet | Tried::InVain => self.plain,
        }
    }
}

impl IpcConnection {
    /// Counts a frame that was accepted for sending: its length as it was encoded, and as it goes out.
    pub(super) fn note_sent(&self, message_type: &'static str, plain: usize, wire: usize) {
        let telemetry = self.telemetry();
        telemetry.sent(message_type, plain);
        if wire < plain {
            telemetry.sent_compressed(plain, wire);
        }
    }
}

thread_local! {
    static PACKED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static UNPACKED: Cell<Decompressor> = const { Cell::new(Decompressor::new()) };
}

/// Offers an encoded frame to one connection or many, with a buffer of this thread to compress it in.
pub(crate) fn pack<R>(plain: &[u8], offer: impl FnOnce(&mut Packing<'_>) -> R) -> R {
    let mut compressed = PACKED.take();
    let result = offer(&mut Packing {
        plain,
        compressed: &mut compressed,
        tried: Tried::NotYet,
    });
    compressed.clear();
    compressed.shrink_to(PACKED_CAPACITY);
    PACKED.set(compressed);
    result
}

/// Lends the decompressor of this thread: all of its connections share one, so one that waits holds
/// nothing. It is taken out meanwhile, since a payload's `Deserialize` is code of the user's.
pub(super) fn with_decompressor<R>(work: impl FnOnce(&mut Decompressor) -> R) -> R {
    let mut decompressor = UNPACKED.take();
    let result = work(&mut decompressor);
    decompressor.trim();
    UNPACKED.set(decompressor);
    result
}
