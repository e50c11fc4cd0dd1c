//! The outbox on disk, and its one owner: a loop that does everything that has come up meanwhile in
//! one go, so that many sends share one sync.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::disk::Disk;
use migration_ipc_store::outbox::{
    Damage, Outbox, OutboxError, OutboxIdentity, OutboxOptions, SetAside,
};
use thiserror::Error;
use tokio::time::Instant;

use super::sealing::{Locked, LockedBy, OutboxKeyId, Sealer};
use super::shared::Shared;
use super::stored::{self, Stored};
use crate::delivery::{Execution, WorkFailed};
use crate::keys::{KeyFileError, NoRandomness};

/// Messages accepted by one sync, at most. A larger group makes its first sender wait longer than
/// its sync costs.
pub(crate) const MAX_GROUP: usize = 1024;

/// Bytes accepted by one sync, unless one batch has more.
pub(crate) const MAX_GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How long the disk may not know that a message is settled, if nothing else is to be written.
/// A crash meanwhile costs a repetition, which a new service recognises.
pub(crate) const SETTLE_DELAY: Duration = Duration::from_millis(100);

/// Settled messages that the disk does not know of, at most.
pub(crate) const MAX_UNSYNCED: usize = 256;

/// How long the disk is left alone after it failed, if nothing new is to be written.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why messages cannot be kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutboxFailure {
    /// The disk, or what is on it.
    #[error(transparent)]
    Store(#[from] OutboxError),
    /// The outbox has a message that this version cannot read.
    #[error("message {seq} of the outbox cannot be read: {why}")]
    Unreadable {
        /// Its number.
        seq: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A message is sealed, and no key of this client opens it. It stays where it is.
    #[error("message {seq} of the outbox is sealed with the key {key}: {by}")]
    Locked {
        /// Its number.
        seq: u64,
        /// The name of the key.
        key: OutboxKeyId,
        /// Why it does not open.
        by: LockedBy,
    },
    /// A message is to be encrypted on disk, and there is no key to do so.
    #[error(
        "{message_type} is to be encrypted on disk, and the client has no key for its outbox: give \
         it one with `outbox_key` or `outbox_key_file`"
    )]
    NoKey {
        /// The message's type.
        message_type: String,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The key file has keys, and none for an outbox.
    #[error(
        "the key file {} has no key of the kind `outbox`: add one, or name another file",
        .0.display()
    )]
    NoKeyInFile(PathBuf),
    /// The key file is gone, and there are messages that were sealed with its key.
    #[error(
        "the key file {} is not there, and {messages} messages of the outbox are sealed, the first \
         of them with the key {key}: put the file back, or drop what is locked",
        .path.display()
    )]
    KeyFileGone {
        /// The key file.
        path: PathBuf,
        /// The name of the key of the first such message.
        key: OutboxKeyId,
        /// How many there are.
        messages: usize,
    },
    /// Nothing can be sealed without random bytes.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// A message is longer than a cipher can take, which no frame is.
    #[error("the message is too long to be sealed")]
    TooLongToSeal,
    /// The outbox was given up after a defect of this library; a restart opens it again.
    #[error("the outbox was closed by a failure that was logged")]
    Gone,
}

impl From<WorkFailed> for OutboxFailure {
    fn from(_: WorkFailed) -> Self {
        Self::Gone
    }
}

/// What a client found in its outbox when it started.
#[derive(Debug)]
#[non_exhaustive]
pub struct OutboxReport {
    /// The outbox.
    pub id: OutboxId,
    /// Where its id comes from.
    pub identity: OutboxIdentity,
    /// Messages of earlier runs that are still to be sent, those that are locked included.
    pub waiting: usize,
    /// Messages among them that no key of this client opens, by their key.
    pub locked: Vec<Locked>,
    /// Parts of the log that could not be read. They were set aside; everything else was kept.
    pub damaged: Vec<Damage>,
    /// Files that this version cannot use, those of a newer one for example. They were renamed and
    /// left as they are.
    pub set_aside: Vec<SetAside>,
}

impl OutboxReport {
    /// Says in the log what its owner should know.
    fn warn(&self) {
        for damage in &self.damaged {
            tracing::warn!(?damage, "a damaged part of the outbox was set aside");
        }
        for locked in &self.locked {
            tracing::error!(
                key = %locked.key,
                messages = locked.messages,
                first = %locked.first,
                "messages of the outbox cannot be opened: {}",
                locked.by
            );
        }
        for files in &self.set_aside {
            tracing::warn!(
                ?files,
                "files of another outbox, or another version, were set aside"
            );
        }
        if self.identity == OutboxIdentity::Lost {
            tracing::warn!(
                outbox = %self.id,
                "the outbox lost its id: the service may handle messages again",
            );
        }
    }
}

/// The records of messages that are accepted together or not at all.
pub(crate) type Records = Vec<Vec<u8>>;

/// What was kept, or why not; several senders may want to know.
pub(crate) type Kept<T> = Result<T, Arc<OutboxFailure>>;

/// What the log is to do next, all in one go.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// The records of each batch that asks to be accepted.
    pub(crate) batches: Vec<Records>,
    /// Messages of which a mark is to be kept.
    pub(crate) marks: Vec<u64>,
    pub(crate) settles: Vec<u64>,
    pub(crate) reads: Vec<u64>,
    pub(crate) number_from: Option<u64>,
    /// Messages that are to get a new number, above that.
    pub(crate) renumber: Vec<u64>,
}

/// What came of a [`Turn`].
#[derive(Debug)]
pub(crate) struct Done {
    /// The records of the batches, with their numbers if they were accepted.
    pub(crate) batches: Vec<(Records, Kept<Range<u64>>)>,
    /// Messages and the numbers of their marks.
    pub(crate) marks: Kept<Vec<(u64, u64)>>,
    pub(crate) reads: Vec<(u64, Result<Vec<u8>, OutboxError>)>,
    /// Messages with their old and their new numbers.
    pub(crate) renumbered: Renumbered,
    /// From where numbers are to be given, if there are messages left that need one.
    pub(crate) still_to_number: Option<u64>,
    pub(crate) floor: u64,
    pub(crate) next: u64,
    /// What the disk failed with: it does not know what was settled, or some messages still need
    /// a number.
    pub(crate) trouble: Option<Arc<OutboxFailure>>,
}

impl Turn {
    fn run(self, outbox: &mut Outbox) -> Done {
        // Before the sync, which senders wait for and the next message need not.
        let reads = self
            .reads
            .into_iter()
            .map(|seq| (seq, outbox.read(seq)))
            .collect();
        if let Some(next) = self.number_from {
            outbox.number_from(next);
        }
        for seq in self.settles {
            outbox.settle(seq);
        }
        let (renumbered, left) = renumber(outbox, &self.renumber);
        let appended: Vec<_> = self
            .batches
            .iter()
            .map(|records| outbox.append_all(records))
            .collect();
        let marks: Result<Vec<_>, OutboxError> = self
            .marks
            .into_iter()
            .map(|seq| Ok((seq, outbox.append(&stored::mark(seq))?)))
            .collect();
        let synced = if outbox.needs_sync() {
            outbox
                .sync()
                .map_err(|error| Arc::new(OutboxFailure::from(error)))
        } else {
            Ok(())
        };
        Done {
            batches: self
                .batches
                .into_iter()
                .zip(appended)
                .map(|(records, appended)| (records, kept(appended, &synced)))
                .collect(),
            marks: kept(marks, &synced),
            still_to_number: self
                .number_from
                .filter(|_| left.is_some() || synced.is_err()),
            renumbered: match synced {
                Ok(()) => renumbered,
                Err(_) => Vec::new(),
            },
            reads,
            floor: outbox.settled_floor(),
            next: outbox.next_seq(),
            trouble: match (synced, left) {
                (Err(error), _) => Some(error),
                // The next turn has room for more.
                (Ok(()), None | Some(OutboxError::BatchFull)) => None,
                (Ok(()), Some(error)) => Some(Arc::new(error.into())),
            },
        }
    }
}

/// What was appended is kept only if the sync succeeded.
fn kept<T>(appended: Result<T, OutboxError>, synced: &Kept<()>) -> Kept<T> {
    match synced {
        Ok(()) => appended.map_err(|error| Arc::new(error.into())),
        Err(error) => Err(Arc::clone(error)),
    }
}

/// Messages with their old and their new numbers.
type Renumbered = Vec<(u64, u64)>;

/// Appends messages once more; the old ones are settled only when the new ones are durable. Also
/// says why some are left, if they are.
fn renumber(outbox: &mut Outbox, numbers: &[u64]) -> (Renumbered, Option<OutboxError>) {
    let mut renumbered = Renumbered::new();
    for number in numbers {
        let appended = outbox
            .read(*number)
            .and_then(|record| outbox.append(&record));
        match appended {
            Ok(new) => renumbered.push((*number, new)),
            // When its turn comes it is found to be damaged, whatever its number.
            Err(OutboxError::Damaged { .. } | OutboxError::NotWaiting { .. }) => {}
            Err(error) => return (renumbered, Some(error)),
        }
    }
    (renumbered, None)
}

/// A message of an earlier run.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) seq: u64,
    pub(crate) bytes: usize,
    pub(crate) head: stored::Head<'static>,
    /// Why it cannot be sent: its key, and what is wrong.
    pub(crate) locked: Option<(OutboxKeyId, LockedBy)>,
}

/// An outbox with what was in it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) outbox: Outbox,
    pub(crate) report: OutboxReport,
    pub(crate) found: Vec<Found>,
    /// Marks, each with the message that it is about.
    pub(crate) marks: Vec<(u64, u64)>,
}

/// Opens the outbox on this disk, or begins one. Each sealed message is opened once, so that it is
/// known from the start which ones cannot be. Blocks.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    options: OutboxOptions,
    fresh: OutboxId,
    sealer: &Sealer,
) -> Result<Opened, OutboxFailure> {
    let (outbox, report) = Outbox::open(disk, options, fresh)?;
    let (mut found, mut marks) = (Vec::new(), Vec::new());
    for seq in outbox.waiting() {
        let record = outbox.read(seq)?;
        match Stored::read(&record) {
            Ok(Stored::Message(head, _)) => found.push(Found {
                seq,
                bytes: record.len(),
                head: head.into_owned(),
                locked: None,
            }),
            Ok(Stored::Sealed(head, sealed)) => {
                let mut head = head.into_owned();
                let locked = match sealer.open(sealed) {
                    Ok(unsealed) => {
                        head.key = unsealed.key.map(|key| String::from(key).into());
                        None
                    }
                    Err(by) => Some((sealed.with, by)),
                };
                found.push(Found {
                    seq,
                    bytes: record.len(),
                    head,
                    locked,
                });
            }
            Ok(Stored::Mark(message)) => marks.push((seq, message)),
            Err(error) => {
                let why = error.to_string();
                return Err(OutboxFailure::Unreadable { seq, why });
            }
        }
    }
    let report = OutboxReport {
        id: outbox.id(),
        identity: report.identity,
        waiting: found.len(),
        locked: all_locked(&found),
        damaged: report.damaged,
        set_aside: report.set_aside,
    };
    report.warn();
    Ok(Opened {
        report,
        outbox,
        found,
        marks,
    })
}

/// Messages that do not open, by their key and why.
fn all_locked(found: &[Found]) -> Vec<Locked> {
    let mut all = BTreeMap::new();
    for message in found {
        if let Some((key, by)) = message.locked {
            let locked = all.entry((key, by)).or_insert_with(|| Locked {
                key,
                by,
                messages: 0,
                first: message.head.id.clone(),
            });
            locked.messages += 1;
        }
    }
    all.into_values().collect()
}

/// Serves the outbox until the client closes it.
pub(crate) async fn keep(shared: &Shared, mut outbox: Outbox, execution: Execution) {
    let mut leave_alone_until = None;
    while let Some(turn) = shared.next_turn(leave_alone_until).await {
        let run = execution.run(move || {
            let done = turn.run(&mut outbox);
            (outbox, done)
        });
        match run.await {
            Ok((returned, done)) => {
                outbox = returned;
                let failed = done.trouble.is_some();
                leave_alone_until = failed.then(|| Instant::now() + RETRY_DELAY);
                shared.finish_turn(done);
            }
            Err(WorkFailed) => return shared.lose_outbox(),
        }
    }
}
