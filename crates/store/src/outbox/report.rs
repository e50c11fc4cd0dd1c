//! What was found when an outbox was opened.

/// What opening an outbox found out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// Whether the log is a new one.
    pub identity: OutboxIdentity,
    /// What could not be read. The torn end that a power failure leaves is among it; in it there
    /// is nothing that a sync had made durable, unless the disk broke its word.
    pub damaged: Vec<Damage>,
    /// Files that were renamed and left alone.
    pub set_aside: Vec<SetAside>,
    /// How many messages wait.
    pub waiting: usize,
}

/// Where the outbox's id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxIdentity {
    /// It is that of the log.
    Found,
    /// There was no log: it is the fresh one.
    New,
    /// The log has lost it, and goes on with the fresh one: the receiver cannot recognise what it
    /// handled before, and may handle that again.
    Lost,
}

/// Bytes of the log that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The segment's file.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// How many bytes; those that should be there and are not count, too.
    pub bytes: u64,
    /// The file that has a copy of what is there of them. `None` when nothing is, and when the disk
    /// has no room for the copy: then they stay where they are.
    pub kept_in: Option<String>,
}

/// Files that this program cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetAside {
    /// Why.
    pub reason: SetAsideReason,
    /// Their new names.
    pub files: Vec<String>,
}

/// Why files were set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAsideReason {
    /// The log was written by a program that uses this version of the format.
    OtherVersion(u32),
    /// They are intact segments of another outbox, or have another's name.
    Misplaced,
}
