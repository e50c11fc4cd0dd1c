//! The journal: which messages were handled, in order.

use std::borrow::Cow;

use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{MessageId, Timestamp};
use redb::ReadableTable;
use serde::{Deserialize, Serialize};

use super::effects::Origin;
use super::error::Fault;
use crate::ledger::StoredOutcome;

/// How many entries a journal has by default, the newest ones: about 200 MB.
pub const MAX_JOURNAL: u64 = 1_000_000;

/// One message that was handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// Its place in the order of commits, one more than that of the entry before it.
    pub number: u64,
    /// The message's id.
    pub id: MessageId,
    /// Its type.
    pub message_type: Box<str>,
    /// The sender's account.
    pub account: Box<str>,
    /// The session that the sender announced.
    pub session: Option<Box<str>>,
    /// How it ended.
    pub outcome: JournalOutcome,
    /// When it was handled.
    pub at: Timestamp,
}

/// How a message ended, without what was said about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalOutcome {
    /// It was handled.
    Handled,
    /// It was handled and answered.
    Replied,
    /// It was refused, for this kind of reason.
    Rejected(ErrorCode),
}

impl From<&StoredOutcome> for JournalOutcome {
    fn from(outcome: &StoredOutcome) -> Self {
        match outcome {
            StoredOutcome::Handled => Self::Handled,
            StoredOutcome::Replied { .. } => Self::Replied,
            StoredOutcome::Rejected { code, .. } => Self::Rejected(code.clone()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Record<'a> {
    id: Cow<'a, MessageId>,
    #[serde(rename = "type")]
    message_type: Cow<'a, str>,
    account: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<Cow<'a, str>>,
    outcome: JournalOutcome,
    at: Timestamp,
}

/// The row of a message that was handled.
pub(super) fn row(origin: &Origin, outcome: &StoredOutcome) -> Result<Vec<u8>, Fault> {
    let record = Record {
        id: Cow::Borrowed(&origin.message.id),
        message_type: Cow::Borrowed(&origin.message.message_type),
        account: Cow::Borrowed(&origin.account),
        session: origin.session.as_deref().map(Cow::Borrowed),
        outcome: outcome.into(),
        at: origin.at,
    };
    serde_json::to_vec(&record).map_err(Fault::Json)
}

pub(super) fn decode(number: u64, row: &[u8]) -> Result<JournalEntry, Fault> {
    let record: Record<'_> =
        serde_json::from_slice(row).map_err(|error| Fault::row("journal", &error))?;
    Ok(JournalEntry {
        number,
        id: record.id.into_owned(),
        message_type: record.message_type.into(),
        account: record.account.into(),
        session: record.session.map(|session| session.into()),
        outcome: record.outcome,
        at: record.at,
    })
}

/// Adds rows, and removes the oldest ones over the bound.
pub(super) fn append(
    table: &mut redb::Table<'_, u64, &'static [u8]>,
    rows: &[Vec<u8>],
    newest: u64,
) -> Result<(), Fault> {
    let mut last = match table.last()? {
        Some((number, _)) => number.value(),
        None => 0,
    };
    for row in rows {
        last += 1;
        table.insert(last, row.as_slice())?;
    }
    let floor = last.saturating_sub(newest);
    while table
        .first()?
        .is_some_and(|(number, _)| number.value() <= floor)
    {
        table.pop_first()?;
    }
    Ok(())
}
