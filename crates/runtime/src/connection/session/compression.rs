//! Compressed bodies of the peer.

use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::LENGTH_PREFIX;
use tokio::time::Instant;

use super::{Directive, Session};
use crate::connection::compression::with_decompressor;
use crate::connection::reason::DisconnectReason;

impl Session {
    /// Takes a compressed body of a peer that negotiated it.
    pub(super) fn handle_compressed(
        &mut self,
        body: &[u8],
        now: Instant,
    ) -> Result<Directive, DisconnectReason> {
        with_decompressor(|decompressor| {
            let original = decompressor
                .open(body)
                .map_err(|error| DisconnectReason::Violation(error.to_string()))?;
            self.unpacked += original.len().saturating_sub(body.len());
            self.connection
                .telemetry()
                .received_compressed(LENGTH_PREFIX + original.len(), LENGTH_PREFIX + body.len());
            self.handle_unpacked(original, now)
        })
    }

    /// Whether compressed bodies mean anything here.
    pub(crate) fn reads_compressed(&self) -> bool {
        self.has(Capability::Lz4)
    }

    /// Bytes that decompression has added to what was read, since they were last
    /// [taken](Self::take_unpacked).
    pub(crate) fn unpacked(&self) -> usize {
        self.unpacked
    }

    /// The same, for the peer's account: it has to answer for what its frames became.
    pub(crate) fn take_unpacked(&mut self) -> usize {
        std::mem::take(&mut self.unpacked)
    }
}
