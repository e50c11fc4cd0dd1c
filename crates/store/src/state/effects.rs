//! What a handler wants to be stored.

use std::borrow::Cow;
use std::fmt;

use migration_ipc_protocol::limits::MAX_ERROR_TEXT;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{IpcMessage, RawValue, Timestamp};

use super::dead_letters::DeadLetter;
use super::mail::Mail;
use super::rows::Rows;
use crate::ledger::{StoredOutcome, Ticket};

/// What handling a message changes, and how it ends: rows of the program's own tables, messages to
/// send, and the outcome that the sender is told. Stored all together or not at all.
///
/// They are applied in the order in which they were added. Without [`reply`](Self::reply) or
/// [`reject`](Self::reject) the outcome is [`StoredOutcome::Handled`].
#[derive(Default)]
pub struct Effects {
    pub(super) changes: Vec<Change>,
    pub(super) ending: Ending,
}

/// Reads and changes rows within the commit.
type Update = dyn FnOnce(&mut Rows<'_>) -> Result<(), Refusal> + Send;

pub(super) enum Change {
    Put {
        table: Cow<'static, str>,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        table: Cow<'static, str>,
        key: Vec<u8>,
    },
    Update(Box<Update>),
    Mail {
        account: Box<str>,
        mail: Box<Mail>,
    },
    DropMail(u64),
    DeadLetter(Box<DeadLetter>),
    TakeDeadLetter(u64),
}

#[derive(Default)]
pub(super) enum Ending {
    #[default]
    Handled,
    Replied {
        message_type: Box<str>,
        payload: Box<str>,
    },
    Rejected(Refusal),
}

impl Effects {
    /// None: the message is handled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a row into a table of the program's, instead of one with the same key.
    #[must_use]
    pub fn put(
        self,
        table: impl Into<Cow<'static, str>>,
        key: impl AsRef<[u8]>,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        self.with(Change::Put {
            table: table.into(),
            key: key.as_ref().to_vec(),
            value: value.into(),
        })
    }

    /// Removes a row, if it is there.
    #[must_use]
    pub fn delete(self, table: impl Into<Cow<'static, str>>, key: impl AsRef<[u8]>) -> Self {
        self.with(Change::Delete {
            table: table.into(),
            key: key.as_ref().to_vec(),
        })
    }

    /// Reads and changes rows as they are when this is committed, the effects before it included.
    ///
    /// A refusal undoes all effects of this message, and of no other one, and is the message's
    /// outcome. So does a panic. The closure runs within the commit of many messages: it should
    /// neither block nor take long.
    #[must_use]
    pub fn update(
        self,
        update: impl FnOnce(&mut Rows<'_>) -> Result<(), Refusal> + Send + 'static,
    ) -> Self {
        self.with(Change::Update(Box::new(update)))
    }

    /// Keeps a message for the agent of an account. Over the account's bounds it is a refusal, as
    /// by [`update`](Self::update).
    #[must_use]
    pub fn mail(self, account: &str, mail: Mail) -> Self {
        self.with(Change::Mail {
            account: account.into(),
            mail: Box::new(mail),
        })
    }

    /// Removes mail, by its number, if it is there.
    #[must_use]
    pub fn drop_mail(self, number: u64) -> Self {
        self.with(Change::DropMail(number))
    }

    /// Keeps a message that was finally rejected, for an operator. When its account has too many,
    /// the oldest of them goes.
    #[must_use]
    pub fn dead_letter(self, letter: DeadLetter) -> Self {
        self.with(Change::DeadLetter(Box::new(letter)))
    }

    /// Removes a dead letter, by its number, because it is handled or sent again, or of no use. A
    /// refusal, as by [`update`](Self::update), when there is none: somebody else took it.
    #[must_use]
    pub fn take_dead_letter(self, number: u64) -> Self {
        self.with(Change::TakeDeadLetter(number))
    }

    /// Ends with a reply, of at most [`MAX_REPLY`](crate::MAX_REPLY) bytes of payload. A longer one
    /// is a refusal.
    #[must_use]
    pub fn reply(mut self, message_type: &str, payload: Box<RawValue>) -> Self {
        self.ending = Ending::Replied {
            message_type: message_type.into(),
            payload: payload.into(),
        };
        self
    }

    /// Ends with a rejection. The effects are stored nevertheless, unless the code is
    /// [retryable](ErrorCode::is_retryable): then nothing is, and the message is put off.
    #[must_use]
    pub fn reject(mut self, code: ErrorCode, text: impl Into<Box<str>>) -> Self {
        self.ending = Ending::Rejected(Refusal::with_code(code, text));
        self
    }

    /// The accounts that the effects keep mail for.
    pub fn mailed(&self) -> impl Iterator<Item = &str> {
        self.changes.iter().filter_map(|change| match change {
            Change::Mail { account, .. } => Some(&**account),
            Change::Put { .. }
            | Change::Delete { .. }
            | Change::Update(_)
            | Change::DropMail(_)
            | Change::DeadLetter(_)
            | Change::TakeDeadLetter(_) => None,
        })
    }

    /// Whether they [end with a rejection](Self::reject).
    #[must_use]
    pub fn rejects(&self) -> bool {
        matches!(self.ending, Ending::Rejected(_))
    }

    fn with(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effects")
            .field("changes", &self.changes.len())
            .field("ending", &self.ending)
            .finish()
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handled => f.write_str("Handled"),
            // The text does not know its type, which would say what of it may be shown.
            Self::Replied {
                message_type,
                payload,
            } => write!(f, "Replied({message_type:?}, {} bytes)", payload.len()),
            Self::Rejected(refusal) => f.debug_tuple("Rejected").field(refusal).finish(),
        }
    }
}

/// Why a message is not done as it should have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) text: Box<str>,
}

impl Refusal {
    /// A final one, of the code [`ErrorCode::HandlerFailed`].
    #[must_use]
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self::with_code(ErrorCode::HandlerFailed, text)
    }

    /// One of this code. With a [retryable](ErrorCode::is_retryable) one the message is put off
    /// instead of done. A text of more than [`MAX_ERROR_TEXT`] bytes is cut.
    #[must_use]
    pub fn with_code(code: ErrorCode, text: impl Into<Box<str>>) -> Self {
        let text: Box<str> = text.into();
        let length = text.floor_char_boundary(MAX_ERROR_TEXT);
        let text = match length < text.len() {
            true => text[..length].into(),
            false => text,
        };
        Self { code, text }
    }
}

impl From<Refusal> for StoredOutcome {
    fn from(refusal: Refusal) -> Self {
        Self::Rejected {
            code: refusal.code,
            text: refusal.text,
        }
    }
}

/// One handled message, or a change of the program's own.
#[derive(Debug, Default)]
pub struct Work {
    /// From [`Ledger::begin`](crate::Ledger::begin), for a durable message.
    pub ticket: Option<Ticket>,
    /// What to store.
    pub effects: Effects,
    /// Which message it was: for the journal, and for the dead letter when a durable one is
    /// rejected. `None` for what is no message.
    pub origin: Option<Origin>,
}

impl Work {
    /// A change that no message caused.
    #[must_use]
    pub fn of(effects: Effects) -> Self {
        Self {
            effects,
            ..Self::default()
        }
    }
}

/// Where a message came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The sender's account.
    pub account: Box<str>,
    /// The session that it announced.
    pub session: Option<Box<str>>,
    /// The message.
    pub message: IpcMessage,
    /// When it was handled.
    pub at: Timestamp,
}
