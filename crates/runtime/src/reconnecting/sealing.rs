//! Payloads that are encrypted in the outbox: which, with what key, and how they are opened again.
//!
//! The payload of a sealed record is encrypted with XChaCha20-Poly1305, under a random nonce of its
//! own (24 bytes are enough for that, draft-irtf-cfrg-xchacha). Everything in front of it in the
//! record, its id, type and stream among them, is authenticated with it: a payload in the record of
//! another message does not open.

use std::fmt;
use std::sync::{Arc, OnceLock};

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use migration_ipc_protocol::{MessageId, RawValue};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::log::OutboxFailure;
use super::options::Durability;
use crate::keys::KeyBytes;

const NONCE: usize = 24;
const TAG: usize = 16;

/// What a sealed payload has beside the payload, in bytes.
pub(crate) const OVERHEAD: usize = NONCE + TAG;

/// So that a key that is used elsewhere too, for connections for example, is another one here.
const PURPOSE: &[u8; 31] = b"migration-ipc outbox sealing 1\0";
const NAMING: &[u8; 31] = b"migration-ipc outbox key name 1";

/// A key that encrypts an outbox on disk.
#[derive(Clone)]
pub struct OutboxKey {
    id: OutboxKeyId,
    cipher: XChaCha20Poly1305,
}

impl OutboxKey {
    /// From 32 bytes that nobody can guess: of [`generate_shared_key`](crate::keys::generate_shared_key),
    /// or of a key file.
    #[must_use]
    pub fn new(key: &KeyBytes) -> Self {
        let derived = Zeroizing::new(<[u8; 32]>::from(of(PURPOSE, key)));
        let name: [u8; 32] = of(NAMING, key).into();
        let [a, b, c, d, e, f, g, h, ..] = name;
        Self {
            id: OutboxKeyId([a, b, c, d, e, f, g, h]),
            cipher: XChaCha20Poly1305::new((&*derived).into()),
        }
    }

    /// What records are sealed with it call it.
    #[must_use]
    pub fn id(&self) -> OutboxKeyId {
        self.id
    }
}

/// The key is uniformly random and of one length, so that a plain hash suffices.
fn of(purpose: &[u8], key: &KeyBytes) -> sha2::digest::Output<Sha256> {
    Sha256::new()
        .chain_update(purpose)
        .chain_update(key.expose())
        .finalize()
}

impl fmt::Debug for OutboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The name of a key by what it is: the beginning of a hash of it, which tells nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxKeyId([u8; 8]);

impl OutboxKeyId {
    /// Reads what `Display` writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| plain)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for OutboxKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for OutboxKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutboxKeyId({self})")
    }
}

/// Which payloads are encrypted in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtRest {
    /// Those of [sensitive](crate::MessagePayload::SENSITIVE) types, if the client has a key for its
    /// outbox; without one they are kept as they are.
    #[default]
    SensitiveWithKey,
    /// Those of sensitive types. Without a key such a message is refused when it is to be kept, with
    /// [`OutboxFailure::NoKey`].
    Sensitive,
    /// All. A client without a key does not start.
    All,
}

/// What is done with messages of earlier runs that no key opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockedMessages {
    /// They stay in the outbox, and hold up what is behind them in their stream.
    #[default]
    Hold,
    /// They are dropped for good, and so is the order behind them: for when the key is lost. Each
    /// resolves as [`Fate::Unknown`](crate::Fate::Unknown), since an earlier run may have sent it.
    Drop,
}

/// Why a sealed message does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockedBy {
    /// The client has not the key.
    MissingKey,
    /// It has the key, and what was sealed is not what is there: it was changed, or put into the
    /// record of another message.
    Change,
}

/// The keys of an outbox, and what they are used for.
#[derive(Debug, Default)]
pub(crate) struct Sealer {
    /// Set once, at the start.
    key: OnceLock<OutboxKey>,
    former: Vec<OutboxKey>,
    at_rest: AtRest,
}

/// What is to become of a message's payload on its way to where it is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cover<'a> {
    None,
    Sealed(&'a OutboxKey),
}

/// What was sealed, opened.
#[derive(Debug)]
pub(crate) struct Unsealed {
    pub(crate) key: Option<Box<str>>,
    pub(crate) payload: Box<RawValue>,
}

/// A sealed payload in its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed<'a> {
    pub(crate) with: OutboxKeyId,
    /// All of the record in front of it.
    pub(crate) associated: &'a [u8],
    pub(crate) bytes: &'a [u8],
}

impl Sealer {
    pub(crate) fn new(key: Option<OutboxKey>, former: Vec<OutboxKey>, at_rest: AtRest) -> Self {
        let sealer = Self {
            key: OnceLock::new(),
            former,
            at_rest,
        };
        if let Some(key) = key {
            sealer.add_key(key);
        }
        sealer
    }

    /// Whether there is a key that seals.
    pub(crate) fn has_key(&self) -> bool {
        self.key.get().is_some()
    }

    /// Gives a sealer that has no key one.
    pub(crate) fn add_key(&self, key: OutboxKey) {
        // One that is there stays.
        drop(self.key.set(key));
    }

    /// How a message is kept; see [`AtRest`].
    pub(crate) fn cover(
        &self,
        message_type: &str,
        sensitive: bool,
        durability: Durability,
    ) -> Result<Cover<'_>, Arc<OutboxFailure>> {
        match (durability, self.at_rest, self.key.get()) {
            (Durability::Memory, _, _) => Ok(Cover::None),
            (Durability::Disk, AtRest::All, Some(key)) => Ok(Cover::Sealed(key)),
            (Durability::Disk, _, Some(key)) if sensitive => Ok(Cover::Sealed(key)),
            (Durability::Disk, AtRest::All, None) => Err(no_key(message_type)),
            (Durability::Disk, AtRest::Sensitive, None) if sensitive => Err(no_key(message_type)),
            (Durability::Disk, AtRest::Sensitive | AtRest::SensitiveWithKey, _) => Ok(Cover::None),
        }
    }

    /// Opens what any of the keys sealed.
    pub(crate) fn open(&self, sealed: Sealed<'_>) -> Result<Unsealed, LockedBy> {
        let keys = self.key.get().into_iter().chain(&self.former);
        let mut with_it = keys.filter(|key| key.id == sealed.with);
        let key = with_it.next().ok_or(LockedBy::MissingKey)?;
        unseal(key, sealed).ok_or(LockedBy::Change)
    }
}

fn no_key(message_type: &str) -> Arc<OutboxFailure> {
    Arc::new(OutboxFailure::NoKey {
        message_type: message_type.to_owned(),
    })
}

/// Appends a payload, sealed, to the beginning of its record. `key` is what tells messages apart of
/// which only the latest is kept; it comes from the payload, so that it is sealed too.
pub(crate) fn seal(
    record: &mut Vec<u8>,
    with: &OutboxKey,
    key: Option<&str>,
    payload: &RawValue,
) -> Result<(), OutboxFailure> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|error| OutboxFailure::NoRandomness(error.into()))?;
    let head = record.len();
    // JSON in one line, or nothing.
    let key = key.map(serde_json::Value::from);
    let line = key.map_or_else(String::new, |key| key.to_string());
    record.reserve(OVERHEAD + line.len() + 1 + payload.get().len());
    record.extend_from_slice(&nonce);
    record.extend_from_slice(line.as_bytes());
    record.push(b'\n');
    record.extend_from_slice(payload.get().as_bytes());
    let (associated, body) = record.split_at_mut(head);
    let (_, clear) = body.split_at_mut(NONCE);
    let tag = with
        .cipher
        .encrypt_in_place_detached(&XNonce::from(nonce), associated, clear)
        // Only for what is longer than 256 GiB.
        .map_err(|_| OutboxFailure::TooLongToSeal)?;
    record.extend_from_slice(&tag);
    Ok(())
}

fn unseal(key: &OutboxKey, sealed: Sealed<'_>) -> Option<Unsealed> {
    let (nonce, rest) = sealed.bytes.split_first_chunk::<NONCE>()?;
    let (secret, tag) = rest.split_last_chunk::<TAG>()?;
    let mut clear = Zeroizing::new(secret.to_vec());
    key.cipher
        .decrypt_in_place_detached(
            &XNonce::from(*nonce),
            sealed.associated,
            clear.as_mut_slice(),
            &Tag::from(*tag),
        )
        .ok()?;
    let end = clear.iter().position(|byte| *byte == b'\n')?;
    let line = clear.get(..end)?;
    let key = match line {
        [] => None,
        line => Some(serde_json::from_slice(line).ok()?),
    };
    let payload: &RawValue = serde_json::from_slice(clear.get(end + 1..)?).ok()?;
    Some(Unsealed {
        key,
        payload: payload.to_owned(),
    })
}

/// Messages of earlier runs that do not open, for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Locked {
    /// The key that they were sealed with.
    pub key: OutboxKeyId,
    /// Why they do not open.
    pub by: LockedBy,
    /// How many there are.
    pub messages: usize,
    /// The first of them.
    pub first: MessageId,
}

impl fmt::Display for LockedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MissingKey => {
                "this client does not have that key; give it the key, or drop what is locked"
            }
            Self::Change => "what is there is not what was sealed with that key",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::generate_shared_key;

    fn key(byte: u8) -> OutboxKey {
        OutboxKey::new(&KeyBytes::new([byte; 32]))
    }

    fn payload() -> Box<RawValue> {
        RawValue::from_string("{\"a\":\n\"hunter2\"}".to_owned()).unwrap()
    }

    fn sealed(record: &[u8], head: usize, with: OutboxKeyId) -> Sealed<'_> {
        Sealed {
            with,
            associated: &record[..head],
            bytes: &record[head..],
        }
    }

    #[test]
    fn what_is_sealed_comes_back_as_it_was_and_is_nowhere_in_the_record() {
        let key = OutboxKey::new(&generate_shared_key().unwrap());
        let id = key.id();
        let sealer = Sealer::new(Some(key.clone()), Vec::new(), AtRest::All);
        for latest in [None, Some(""), Some("two\nlines, hunter2")] {
            let mut record = b"head\n".to_vec();
            seal(&mut record, &key, latest, &payload()).unwrap();
            let shown = String::from_utf8_lossy(&record).into_owned();
            assert!(!shown.contains("hunter"), "{shown}");
            let opened = sealer.open(sealed(&record, 5, id)).unwrap();
            assert_eq!(opened.key.as_deref(), latest);
            assert_eq!(opened.payload.get(), payload().get());
        }
    }

    #[test]
    fn one_payload_is_never_sealed_twice_alike() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        seal(&mut a, &key(1), None, &payload()).unwrap();
        seal(&mut b, &key(1), None, &payload()).unwrap();
        assert_ne!(a[..NONCE], b[..NONCE]);
        assert_ne!(a[NONCE..], b[NONCE..]);
    }

    #[test]
    fn any_change_of_a_record_is_seen() {
        let sealer = Sealer::new(Some(key(1)), vec![key(2)], AtRest::All);
        let mut record = b"head\n".to_vec();
        seal(&mut record, &key(2), Some("k"), &payload()).unwrap();
        let id = key(2).id();
        assert!(sealer.open(sealed(&record, 5, id)).is_ok(), "a former key");
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= 1;
            let opened = sealer.open(sealed(&changed, 5, id));
            assert_eq!(opened.unwrap_err(), LockedBy::Change, "at {at}");
        }
        for end in 5..record.len() {
            assert!(sealer.open(sealed(&record[..end], 5, id)).is_err());
        }
        let opened = sealer.open(sealed(&record, 5, key(3).id()));
        assert_eq!(opened.unwrap_err(), LockedBy::MissingKey);
        // Under the name of another key that is there.
        let opened = sealer.open(sealed(&record, 5, key(1).id()));
        assert_eq!(opened.unwrap_err(), LockedBy::Change);
    }

    #[test]
    fn which_payloads_are_sealed() {
        use AtRest::{All, Sensitive, SensitiveWithKey};
        // policy, with a key, sensitive: in the outbox
        let table = [
            (SensitiveWithKey, false, false, "clear"),
            (SensitiveWithKey, false, true, "clear"),
            (SensitiveWithKey, true, false, "clear"),
            (SensitiveWithKey, true, true, "sealed"),
            (Sensitive, false, false, "clear"),
            (Sensitive, false, true, "refused"),
            (Sensitive, true, false, "clear"),
            (Sensitive, true, true, "sealed"),
            (All, false, false, "refused"),
            (All, false, true, "refused"),
            (All, true, false, "sealed"),
            (All, true, true, "sealed"),
        ];
        for (at_rest, with_key, sensitive, expected) in table {
            let sealer = Sealer::new(with_key.then(|| key(1)), Vec::new(), at_rest);
            let kept = |durability| match sealer.cover("T", sensitive, durability) {
                Ok(Cover::None) => "clear",
                Ok(Cover::Sealed(_)) => "sealed",
                Err(_) => "refused",
            };
            assert_eq!(
                kept(Durability::Disk),
                expected,
                "{at_rest:?} {with_key} {sensitive}"
            );
            assert_eq!(kept(Durability::Memory), "clear");
        }
    }

    /// Records outlive the program: keys go by these names, and open what they sealed.
    #[test]
    fn a_key_has_its_name_for_ever_and_a_record_its_form() {
        let id = key(7).id();
        assert_eq!(id.to_string().len(), 16);
        assert_eq!(OutboxKeyId::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_string(), NAME_OF_SEVENS);
        for bad in [
            "",
            "1",
            "00000000000000000",
            "+00000000000000a",
            "000000000000000g",
        ] {
            assert_eq!(OutboxKeyId::parse(bad), None, "{bad}");
        }
        let sealer = Sealer::new(Some(key(7)), Vec::new(), AtRest::All);
        let record = from_digits(SEALED_WITH_SEVENS);
        let opened = sealer.open(sealed(&record, 5, id)).unwrap();
        assert_eq!(opened.payload.get(), "{}");
        assert_eq!(opened.key, None);
    }

    const NAME_OF_SEVENS: &str = "bf2dd016f94e0b93";
    const SEALED_WITH_SEVENS: &str = "686561640a85c00f1575b2a47c42d71e15d2a838445db519cb1910c2ce964ed\
        4f76c3c60faa0f2a6584d180d34703942";

    fn from_digits(digits: &str) -> Vec<u8> {
        let (pairs, _) = digits.as_bytes().as_chunks::<2>();
        pairs
            .iter()
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn nothing_shows_a_key() {
        let sealer = Sealer::new(Some(key(7)), vec![key(8)], AtRest::All);
        let shown = format!("{sealer:?} {:?}", key(7));
        assert!(
            !shown.contains("7, 7") && !shown.contains("cipher"),
            "{shown}"
        );
        assert!(shown.contains(&key(7).id().to_string()), "{shown}");
    }
}
