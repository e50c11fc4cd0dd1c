//! What operators and the service say to each other about mail and dead letters.

use std::fmt;

use clap::ValueEnum;
use migration_ipc::storage::{Direction, KeptDeadLetter, KeptMail};
use migration_ipc::{
    ErrorCode, IpcMessage, MessageId, MessagePayload, RawValue, Request, Sender, Timestamp,
};
use serde::{Deserialize, Serialize};

/// Payloads that are longer are not shown, so that a line fits a message.
const SHOWN_PAYLOAD: usize = 64 * 1024;

/// What is kept for operators to look after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Shelf {
    /// Messages for users who are absent.
    Mail,
    /// Messages that were refused, or have expired.
    DeadLetters,
}

/// Asks for a page of what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptRequest {
    pub(crate) shelf: Shelf,
    /// The page begins after the message of this number.
    pub(crate) after: u64,
}

impl MessagePayload for KeptRequest {
    const TYPE: &'static str = "SERVICE_KEPT_REQUEST";
    const SENDER: Sender = Sender::Operator;
}

impl Request for KeptRequest {
    type Reply = KeptPage;
}

/// A page of what is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeptPage {
    pub(crate) messages: Vec<KeptLine>,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u64>,
}

impl MessagePayload for KeptPage {
    const TYPE: &'static str = "SERVICE_KEPT";
    const SENDER: Sender = Sender::Service;
}

/// A message that is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeptLine {
    /// By which it can be dropped or tried again.
    pub(crate) number: u64,
    /// The account of the agent that it is for, or comes from.
    pub(crate) user: String,
    /// Which way a dead letter went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) direction: Option<Direction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    pub(crate) id: MessageId,
    #[serde(rename = "type")]
    pub(crate) message_type: String,
    /// When it was made.
    pub(crate) time: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<Timestamp>,
    /// Why it is a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<ErrorCode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Absent if it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<Box<RawValue>>,
}

impl KeptLine {
    fn of(number: u64, user: &str, message: IpcMessage) -> Self {
        Self {
            number,
            user: user.to_owned(),
            direction: None,
            session: None,
            id: message.id,
            message_type: message.message_type.as_str().to_owned(),
            time: message.timestamp,
            expires: None,
            code: None,
            error: None,
            payload: message
                .payload
                .filter(|payload| payload.get().len() <= SHOWN_PAYLOAD),
        }
    }
}

impl From<KeptMail> for KeptLine {
    fn from(kept: KeptMail) -> Self {
        Self {
            expires: kept.mail.expires,
            ..Self::of(kept.number, &kept.account, kept.mail.message)
        }
    }
}

impl From<KeptDeadLetter> for KeptLine {
    fn from(kept: KeptDeadLetter) -> Self {
        let letter = kept.letter;
        Self {
            direction: Some(letter.direction),
            session: letter.session.map(Into::into),
            code: letter.code,
            error: Some(letter.text.into()),
            ..Self::of(kept.number, &letter.account, letter.message)
        }
    }
}

/// What an operator wants done with a message that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    /// Remove it.
    Drop,
    /// Try it again: what is for an agent is mail again, what is from one is handled again.
    Requeue,
}

/// Asks for a change of a message that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptChangeRequest {
    pub(crate) shelf: Shelf,
    pub(crate) number: u64,
    pub(crate) change: Change,
}

impl MessagePayload for KeptChangeRequest {
    const TYPE: &'static str = "SERVICE_KEPT_CHANGE_REQUEST";
    const SENDER: Sender = Sender::Operator;
}

impl Request for KeptChangeRequest {
    type Reply = KeptChange;
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptChange {
    pub(crate) outcome: KeptOutcome,
}

impl MessagePayload for KeptChange {
    const TYPE: &'static str = "SERVICE_KEPT_CHANGE";
    const SENDER: Sender = Sender::Service;
}

/// What became of a message that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeptOutcome {
    Dropped,
    /// It is mail again.
    Mailed,
    /// Its handler has handled it.
    Handled,
    /// There is none of this number.
    Unknown,
}

impl fmt::Display for KeptOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dropped => "dropped",
            Self::Mailed => "mail again",
            Self::Handled => "handled",
            Self::Unknown => "not there",
        })
    }
}
