//! Where the keys of an outbox come from: given, or a file that is made when it is needed first.

use std::path::PathBuf;

use super::log::OutboxFailure;
use super::sealing::{AtRest, Locked, LockedMessages, OutboxKey, Sealer};
use crate::keys::{
    KeyKind, KeyProtection, ParsedKey, generate_shared_key, read_key_file, write_key_file,
};

/// The name of a key that is made for a new file.
const FIRST_NAME: &str = "outbox";

/// What a client was told of the keys of its outbox.
#[derive(Debug, Default)]
pub(super) struct OutboxKeys {
    pub(super) key: Option<OutboxKey>,
    pub(super) former: Vec<OutboxKey>,
    pub(super) file: Option<PathBuf>,
    pub(super) at_rest: AtRest,
}

/// The keys that are there.
#[derive(Debug)]
pub(super) struct FoundKeys {
    pub(super) sealer: Sealer,
    /// The file that is to be made.
    missing: Option<PathBuf>,
}

impl OutboxKeys {
    /// Whether there is a key to encrypt with, or will be.
    pub(super) fn has_any(&self) -> bool {
        self.key.is_some() || self.file.is_some()
    }

    /// Reads the key file, if there is one. Blocks.
    pub(super) fn find(self) -> Result<FoundKeys, OutboxFailure> {
        let Self {
            mut key,
            mut former,
            file,
            at_rest,
        } = self;
        let mut missing = None;
        if let Some(path) = file {
            match read_key_file(&path) {
                Ok(keys) => {
                    let outbox = keys.iter().filter(|key| key.kind == KeyKind::Outbox);
                    let mut keys = outbox.map(|key| OutboxKey::new(&key.bytes)).peekable();
                    if keys.peek().is_none() {
                        return Err(OutboxFailure::NoKeyInFile(path));
                    }
                    if key.is_none() {
                        key = keys.next();
                    }
                    former.extend(keys);
                }
                Err(error) if error.is_missing() => missing = Some(path),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(FoundKeys {
            sealer: Sealer::new(key, former, at_rest),
            missing,
        })
    }
}

impl FoundKeys {
    /// Makes the key file that is missing, unless it held a key that is needed: with another one in
    /// its place nobody would notice until the old one is looked for. Blocks.
    pub(super) fn complete(
        self,
        locked: &[Locked],
        policy: LockedMessages,
    ) -> Result<Sealer, OutboxFailure> {
        let Self { sealer, missing } = self;
        let Some(path) = missing.filter(|_| !sealer.has_key()) else {
            return Ok(sealer);
        };
        if let (LockedMessages::Hold, Some(first)) = (policy, locked.first()) {
            return Err(OutboxFailure::KeyFileGone {
                path,
                key: first.key,
                messages: locked.iter().map(|locked| locked.messages).sum(),
            });
        }
        let bytes = generate_shared_key()?;
        let key = OutboxKey::new(&bytes);
        let parsed = ParsedKey {
            name: FIRST_NAME.to_owned(),
            kind: KeyKind::Outbox,
            bytes,
        };
        write_key_file(&path, &[parsed], KeyProtection::strongest())?;
        tracing::info!(path = %path.display(), key = %key.id(), "made a key for the outbox");
        sealer.add_key(key);
        Ok(sealer)
    }
}
