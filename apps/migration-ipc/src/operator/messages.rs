//! What operators and the service say to each other: types of this application, defined exactly
//! as the built-in ones are.

use std::collections::BTreeMap;
use std::fmt;

use migration_ipc::messages::{Category, OverallStatus, Priority};
use migration_ipc::storage::{JournalEntry, JournalOutcome};
use migration_ipc::{ErrorCode, MessageId, MessagePayload, Request, Sender, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::service::{CategoryState, Escalation, Note, Phase, UserKey};
use crate::telemetry::Traffic;

/// Asks for a page of the service's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatusRequest {
    /// The page begins after this user; the first page when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<UserKey>,
}

impl MessagePayload for StatusRequest {
    const TYPE: &'static str = "SERVICE_STATUS_REQUEST";
    const SENDER: Sender = Sender::Operator;
}

impl Request for StatusRequest {
    type Reply = ServiceStatus;
}

/// How the service and its users stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    pub(crate) version: String,
    pub(crate) started: Timestamp,
    /// The service's clock.
    pub(crate) now: Timestamp,
    pub(crate) overall_status: OverallStatus,
    pub(crate) total_users: u32,
    pub(crate) connections: Connections,
    pub(crate) traffic: Traffic,
    pub(crate) users: Vec<UserStatus>,
    /// Where the next page begins, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<UserKey>,
}

impl MessagePayload for ServiceStatus {
    const TYPE: &'static str = "SERVICE_STATUS";
    const SENDER: Sender = Sender::Service;
}

/// How many connections there are, by where they are in their life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connections {
    pub(crate) pending: usize,
    pub(crate) identified: usize,
    pub(crate) announced: usize,
    pub(crate) closing: usize,
}

/// One user, connected or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserStatus {
    /// The account; in development mode with the announced session behind a `/`.
    pub(crate) user: String,
    /// What the operating system calls the account.
    pub(crate) name: String,
    pub(crate) state: Phase,
    /// Whether people have to look into it.
    pub(crate) escalated: bool,
    /// The agents that are connected now.
    pub(crate) agents: Vec<AgentStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<Priority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) delays_used: u32,
    /// From 0 to 100, over all categories.
    pub(crate) progress: f64,
    pub(crate) bytes_transferred: u64,
    pub(crate) bytes_total: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current_file: Option<String>,
    pub(crate) categories: BTreeMap<Category, CategoryState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) finished: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest_path: Option<String>,
    pub(crate) escalations: Vec<Escalation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_action: Option<Note>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_error: Option<Note>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<Timestamp>,
}

/// One connected agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentStatus {
    pub(crate) session: String,
    pub(crate) connected: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_message: Option<Timestamp>,
}

/// Asks the service to send a message to agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SendRequest {
    pub(crate) to: Recipient,
    #[serde(rename = "type")]
    pub(crate) message_type: String,
    pub(crate) payload: Value,
    /// For how long it is worth keeping, if it is kept as mail; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keep_seconds: Option<u64>,
}

impl MessagePayload for SendRequest {
    const TYPE: &'static str = "SERVICE_SEND_REQUEST";
    const SENDER: Sender = Sender::Operator;
}

impl Request for SendRequest {
    type Reply = SendReport;
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Recipient {
    /// An account by any name that the operating system gives it.
    User(String),
    /// The agents of one account that announced this session: the operator's own account unless
    /// another is named, by any name that the operating system gives it.
    Session {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        session: String,
    },
    All,
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name}"),
            Self::Session {
                user: Some(name),
                session,
            } => write!(f, "session {session} of user {name}"),
            Self::Session {
                user: None,
                session,
            } => write!(f, "session {session} of the operator's own account"),
            Self::All => f.write_str("all"),
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SendReport {
    /// Agents that it was sent to.
    pub(crate) agents: usize,
    /// Users whose backup is pending until it is complete.
    pub(crate) pending_users: usize,
    /// Whether users that announce themselves for the first time later get it too.
    pub(crate) standing: bool,
    /// Whether it is kept as mail until an agent of its user is there.
    #[serde(default)]
    pub(crate) mailed: bool,
}

impl MessagePayload for SendReport {
    const TYPE: &'static str = "SERVICE_SEND_REPORT";
    const SENDER: Sender = Sender::Service;
}

/// Asks for a page of the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalRequest {
    /// The page begins after the entry of this number.
    pub(crate) after: u64,
}

impl MessagePayload for JournalRequest {
    const TYPE: &'static str = "SERVICE_JOURNAL_REQUEST";
    const SENDER: Sender = Sender::Operator;
}

impl Request for JournalRequest {
    type Reply = JournalPage;
}

/// A page of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalPage {
    pub(crate) entries: Vec<JournalLine>,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u64>,
}

impl MessagePayload for JournalPage {
    const TYPE: &'static str = "SERVICE_JOURNAL";
    const SENDER: Sender = Sender::Service;
}

/// One message that the service handled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalLine {
    pub(crate) id: MessageId,
    #[serde(rename = "type")]
    pub(crate) message_type: String,
    /// The sender's account.
    pub(crate) user: String,
    /// The session that the sender announced.
    pub(crate) session: Option<String>,
    /// `handled`, `replied` or `rejected`.
    pub(crate) outcome: String,
    /// Why it was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<ErrorCode>,
    pub(crate) time: Timestamp,
}

impl From<JournalEntry> for JournalLine {
    fn from(entry: JournalEntry) -> Self {
        let (outcome, code) = match entry.outcome {
            JournalOutcome::Handled => ("handled", None),
            JournalOutcome::Replied => ("replied", None),
            JournalOutcome::Rejected(code) => ("rejected", Some(code)),
        };
        Self {
            id: entry.id,
            message_type: entry.message_type.into(),
            user: entry.account.into(),
            session: entry.session.map(Into::into),
            outcome: outcome.to_owned(),
            code,
            time: entry.at,
        }
    }
}
