//! Records: the encrypted form of a sequence of bytes, one each way.
//!
//! A record is a length of 2 bytes, little-endian as every number on the wire, and a transport
//! message of Noise: part of the sequence, and a tag. The number of the record is its nonce, so one
//! that is missing, repeated or out of its order cannot be opened.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snow::TransportState;

/// Bytes of the length before each record.
const LENGTH: usize = 2;

/// Bytes of the tag at the end of each record.
const TAG: usize = 16;

/// Bytes that each record is longer than its part of the sequence: length and tag.
pub const RECORD_OVERHEAD: usize = LENGTH + TAG;

/// The shortest transport message: an empty record would be a way to send bytes for nothing.
pub const MIN_RECORD: usize = TAG + 1;

/// The longest transport message, as Noise has it.
pub const MAX_RECORD: usize = 65_535;

/// The most that a record holds of the sequence.
const MAX_PART: usize = MAX_RECORD - TAG;

/// Records of one direction between two changes of its key (section 11.3 of Noise): at most a
/// gibibyte. Who takes a key from memory later cannot read what was sent under an earlier one.
pub const REKEY_AFTER: u64 = 16_384;

const _: () = {
    // The length of every record can be written.
    assert!(MAX_RECORD <= u16::MAX as usize);
    assert!(MIN_RECORD <= MAX_RECORD);
};

/// Where an end's own records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToService,
    ToClient,
}

/// Why something was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There are no more numbers for records: after 2^64 of them a new session is needed.
    #[error("the session has used up its numbers; a new connection is needed")]
    Exhausted,
}

/// Why a record was not opened. The peer is at fault, or somebody in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is too short to hold anything.
    #[error("a record of {0} bytes; the shortest has {MIN_RECORD}")]
    TooShort(usize),
    /// It was changed, or is not the next one, or was made with another key.
    #[error("a record that was not made by the peer, or not in this place")]
    Forged,
    /// An earlier record was not opened, so nothing behind it can be.
    #[error("a record behind one that could not be opened")]
    Broken,
}

/// Both directions of a session, as one end has them.
#[derive(Debug)]
pub struct Channel {
    /// What this end sends.
    pub sealer: Sealer,
    /// What it receives.
    pub opener: Opener,
}

impl Channel {
    pub(crate) fn new(state: TransportState, sends: Direction) -> Self {
        debug_assert_eq!(state.is_initiator(), sends == Direction::ToService);
        let state = Arc::new(Mutex::new(state));
        Self {
            sealer: Sealer(Arc::clone(&state)),
            opener: Opener {
                state,
                partial: Vec::new(),
                broken: false,
            },
        }
    }
}

/// Noise's two ciphers. The library keeps them in one value; the two directions of a connection have
/// nothing else in common, and one task uses both, so nobody ever waits for this lock.
type State = Arc<Mutex<TransportState>>;

fn lock(state: &State) -> MutexGuard<'_, TransportState> {
    // The library changes its state in a last step that cannot panic.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes records of what this end sends.
pub struct Sealer(State);

impl Sealer {
    /// Appends records with all of `plain` to `out`; nothing for nothing.
    ///
    /// # Errors
    ///
    /// [`SealError`]; what is in `out` behind its old end is of no use then.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let mut state = lock(&self.0);
        out.reserve(plain.len() + plain.len().div_ceil(MAX_PART) * RECORD_OVERHEAD);
        for part in plain.chunks(MAX_PART) {
            let start = out.len();
            let length = u16::try_from(part.len() + TAG).map_err(|_| SealError::Exhausted)?;
            out.extend_from_slice(&length.to_le_bytes());
            out.resize(start + RECORD_OVERHEAD + part.len(), 0);
            let record = out.get_mut(start + LENGTH..).unwrap_or_default();
            state
                .write_message(part, record)
                .map_err(|_| SealError::Exhausted)?;
            if state.sending_nonce().is_multiple_of(REKEY_AFTER) {
                state.rekey_outgoing();
            }
        }
        Ok(())
    }

    /// How many records were made.
    #[must_use]
    pub fn records(&self) -> u64 {
        lock(&self.0).sending_nonce()
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("records", &self.records())
            .finish()
    }
}

/// Opens the records of the other end. It takes bytes cut in any way, and holds at most one record,
/// as far as that has arrived.
pub struct Opener {
    state: State,
    /// The beginning of a record, its length included.
    partial: Vec<u8>,
    /// Set by the first failure, for good.
    broken: bool,
}

impl Opener {
    /// Takes all of `piece`, and appends to `plain` what the records that are whole now hold.
    ///
    /// # Errors
    ///
    /// [`OpenError`], for this piece and every one after it. What the records before the wrong one
    /// hold is in `plain`.
    pub fn open(&mut self, mut piece: &[u8], plain: &mut Vec<u8>) -> Result<(), OpenError> {
        if self.broken {
            return Err(OpenError::Broken);
        }
        let opened = self.open_all(&mut piece, plain);
        self.broken = opened.is_err();
        if self.broken {
            self.partial = Vec::new();
        }
        opened
    }

    fn open_all(&mut self, piece: &mut &[u8], plain: &mut Vec<u8>) -> Result<(), OpenError> {
        if !self.partial.is_empty() {
            let mut partial = std::mem::take(&mut self.partial);
            // The length first, since it says how much more belongs to the record.
            complete(&mut partial, LENGTH, piece);
            if let Some(length) = record_length(&partial)? {
                complete(&mut partial, LENGTH + length, piece);
            }
            match whole_record(&partial)? {
                Some((record, _)) => self.open_one(record, plain)?,
                None => {
                    self.partial = partial;
                    return Ok(());
                }
            }
        }
        while let Some((record, rest)) = whole_record(piece)? {
            self.open_one(record, plain)?;
            *piece = rest;
        }
        self.partial.extend_from_slice(piece);
        Ok(())
    }

    fn open_one(&mut self, record: &[u8], plain: &mut Vec<u8>) -> Result<(), OpenError> {
        let mut state = lock(&self.state);
        let start = plain.len();
        plain.resize(start + record.len() - TAG, 0);
        let room = plain.get_mut(start..).unwrap_or_default();
        if state.read_message(record, room).is_err() {
            plain.truncate(start);
            return Err(OpenError::Forged);
        }
        if state.receiving_nonce().is_multiple_of(REKEY_AFTER) {
            state.rekey_incoming();
        }
        Ok(())
    }

    /// Bytes that have arrived of a record that is not whole.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// How many records were opened.
    #[must_use]
    pub fn records(&self) -> u64 {
        lock(&self.state).receiving_nonce()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("records", &self.records())
            .field("buffered", &self.buffered())
            .finish()
    }
}

/// Moves bytes from the piece until there are `wanted`.
fn complete(partial: &mut Vec<u8>, wanted: usize, piece: &mut &[u8]) {
    let missing = wanted.saturating_sub(partial.len());
    let (taken, rest) = piece.split_at(missing.min(piece.len()));
    partial.extend_from_slice(taken);
    *piece = rest;
}

/// The length of the record that begins here, checked, once it is known.
fn record_length(bytes: &[u8]) -> Result<Option<usize>, OpenError> {
    let Some(length) = bytes.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    match usize::from(u16::from_le_bytes(*length)) {
        length if length < MIN_RECORD => Err(OpenError::TooShort(length)),
        length => Ok(Some(length)),
    }
}

/// A whole record without its length, and what is behind it.
type Whole<'a> = (&'a [u8], &'a [u8]);

/// The record that begins here, once it is whole.
fn whole_record(bytes: &[u8]) -> Result<Option<Whole<'_>>, OpenError> {
    let Some(length) = record_length(bytes)? else {
        return Ok(None);
    };
    let body = bytes.get(LENGTH..).unwrap_or_default();
    Ok(body.split_at_checked(length))
}
