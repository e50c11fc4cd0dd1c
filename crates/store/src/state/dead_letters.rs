//! Dead letters: messages that will not be delivered or handled, kept for an operator.

use std::borrow::Cow;

use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{IpcMessage, Timestamp};
use serde::{Deserialize, Serialize};

use super::effects::{Origin, Refusal};
use super::error::Fault;
use super::record::MessageRecord;
use super::rows::Rows;
use super::shelf::Shelf;

/// The most dead letters that are kept of one account, so that no user can push out another's.
pub const MAX_DEAD_LETTERS_PER_ACCOUNT: u64 = 1000;

/// The most bytes of dead letters that are kept of one account, with what the store writes around
/// each. More than one message of the greatest size.
pub const MAX_DEAD_LETTER_BYTES_PER_ACCOUNT: u64 = 16 * 1024 * 1024;

pub(super) const SHELF: Shelf = Shelf {
    rows: "dead_letters",
    of_account: "dead_letters_of_account",
    meters: "dead_letter_meters",
};

/// Which way a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From an agent; this side rejected it.
    FromAgent,
    /// To an agent, which rejected it, or did not come in time.
    ToAgent,
}

/// A message that will not be delivered or handled.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Which way it went.
    pub direction: Direction,
    /// The account of the agent.
    pub account: Box<str>,
    /// The session that the agent announced.
    pub session: Option<Box<str>>,
    /// The message.
    pub message: IpcMessage,
    /// The kind of failure; `None` when nobody rejected it.
    pub code: Option<ErrorCode>,
    /// Why, for people.
    pub text: Box<str>,
    /// When.
    pub at: Timestamp,
}

/// A dead letter that is kept.
#[derive(Clone, Debug)]
pub struct KeptDeadLetter {
    /// Its number, higher than that of all before it.
    pub number: u64,
    /// What is kept.
    pub letter: DeadLetter,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record<'a> {
    direction: Direction,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<Cow<'a, str>>,
    message: MessageRecord<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<Cow<'a, ErrorCode>>,
    text: Cow<'a, str>,
    at: Timestamp,
}

/// The dead letter that a rejected message becomes.
pub(super) fn of_rejected(origin: Origin, code: ErrorCode, text: Box<str>) -> DeadLetter {
    DeadLetter {
        direction: Direction::FromAgent,
        account: origin.account,
        session: origin.session,
        message: origin.message,
        code: Some(code),
        text,
        at: origin.at,
    }
}

/// Keeps a dead letter; the oldest ones of its account make room for it.
pub(super) fn put(rows: &mut Rows<'_>, letter: &DeadLetter) -> Result<(), Refusal> {
    let record = Record {
        direction: letter.direction,
        session: letter.session.as_deref().map(Cow::Borrowed),
        message: MessageRecord::from(&letter.message),
        code: letter.code.as_ref().map(Cow::Borrowed),
        text: Cow::Borrowed(&letter.text),
        at: letter.at,
    };
    let content = serde_json::to_vec(&record).map_err(|error| rows.fail(Fault::Json(error)))?;
    let account = &letter.account;
    loop {
        let load = SHELF.load(rows, account)?;
        let bytes = load.bytes.saturating_add(content.len() as u64);
        let fits =
            load.rows < MAX_DEAD_LETTERS_PER_ACCOUNT && bytes <= MAX_DEAD_LETTER_BYTES_PER_ACCOUNT;
        if fits {
            break;
        }
        let Some(oldest) = SHELF.oldest(rows, account)? else {
            break;
        };
        tracing::warn!(%account, number = oldest, "a dead letter makes room for a newer one");
        SHELF.take(rows, oldest)?;
    }
    SHELF.put(rows, account, &content)?;
    Ok(())
}

/// Removes a dead letter; a refusal when there is none.
pub(super) fn take(rows: &mut Rows<'_>, number: u64) -> Result<(), Refusal> {
    match SHELF.take(rows, number)? {
        Some(_) => Ok(()),
        None => Err(Refusal::new(format!("there is no dead letter {number}"))),
    }
}

pub(super) fn decode(
    number: u64,
    account: Box<str>,
    content: &[u8],
) -> Result<KeptDeadLetter, Fault> {
    let record: Record<'_> =
        serde_json::from_slice(content).map_err(|error| Fault::row(SHELF.rows, &error))?;
    Ok(KeptDeadLetter {
        number,
        letter: DeadLetter {
            direction: record.direction,
            account,
            session: record.session.map(|session| session.into()),
            message: record.message.into(),
            code: record.code.map(Cow::into_owned),
            text: record.text.into(),
            at: record.at,
        },
    })
}
