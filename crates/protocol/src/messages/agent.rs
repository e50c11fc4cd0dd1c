//! What agents send to the service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::numbers::rounded_up;
use super::{Percent, Seconds, SessionId, UserId, open_enum, or_default};
use crate::message_type::message_types;
use crate::payload::{Announcement, Idempotence, MessagePayload, Sender};

/// Implements the trait for a payload of agents, all of which name their user.
macro_rules! agent_payload {
    ($name:ident, $type:ident, $idempotence:ident $(, $item:item)?) => {
        impl MessagePayload for $name {
            const TYPE: &'static str = message_types::$type;
            const SENDER: Sender = Sender::Agent;
            const IDEMPOTENCE: Idempotence = Idempotence::$idempotence;

            fn user_id_mut(&mut self) -> Option<&mut UserId> {
                Some(&mut self.user_id)
            }

            $($item)?
        }
    };
}

open_enum! {
    /// A kind of data that is backed up.
    pub enum Category {
        /// Files of the user.
        Files = "files",
        /// Profiles of web browsers.
        Browsers = "browsers",
        /// Mail.
        Email = "email",
        /// Settings of the system.
        System = "system",
    }
}

/// `AGENT_STARTED`: an agent is there and ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStarted {
    /// The user that the agent works for.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// The version of the agent's program.
    #[serde(default, deserialize_with = "or_default")]
    pub agent_version: String,
    /// The session that the agent runs in.
    #[serde(default, deserialize_with = "or_default")]
    pub session_id: SessionId,
}

impl AgentStarted {
    /// The announcement of an agent.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        agent_version: impl Into<String>,
        session_id: impl Into<SessionId>,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            agent_version: agent_version.into(),
            session_id: session_id.into(),
        }
    }
}

agent_payload!(
    AgentStarted,
    AGENT_STARTED,
    Idempotent,
    fn announcement(&self) -> Option<Announcement> {
        Some(Announcement {
            user_id: self.user_id.clone(),
            session_id: self.session_id.clone(),
        })
    }
);

/// `BACKUP_STARTED`: a backup has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupStarted {
    /// Whose data is backed up.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// What is backed up.
    #[serde(default, deserialize_with = "or_default")]
    pub categories: Vec<Category>,
    /// How much it will be, in megabytes; a fraction is rounded up.
    #[serde(default, rename = "estimatedSizeMB", deserialize_with = "rounded_up")]
    pub estimated_size_mb: u64,
}

impl BackupStarted {
    /// The start of a backup of about `estimated_size_mb` megabytes.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        categories: impl IntoIterator<Item = Category>,
        estimated_size_mb: u64,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            categories: categories.into_iter().collect(),
            estimated_size_mb,
        }
    }
}

agent_payload!(BackupStarted, BACKUP_STARTED, Idempotent);

/// `BACKUP_PROGRESS`: how far a backup is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupProgress {
    /// Whose data is backed up.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// What is being backed up at the moment.
    pub category: Category,
    /// The share that is done.
    #[serde(default, deserialize_with = "or_default")]
    pub progress: Percent,
    /// The file that is being copied at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_file: Option<String>,
    /// Bytes copied so far.
    #[serde(default, deserialize_with = "or_default")]
    pub bytes_transferred: u64,
    /// Bytes to copy altogether.
    #[serde(default, deserialize_with = "or_default")]
    pub bytes_total: u64,
}

impl BackupProgress {
    /// Progress without a current file.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        category: Category,
        progress: Percent,
        bytes_transferred: u64,
        bytes_total: u64,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            category,
            progress,
            current_file: None,
            bytes_transferred,
            bytes_total,
        }
    }

    /// The same with the file that is being copied.
    #[must_use]
    pub fn with_current_file(self, current_file: impl Into<String>) -> Self {
        Self {
            current_file: Some(current_file.into()),
            ..self
        }
    }
}

agent_payload!(
    BackupProgress,
    BACKUP_PROGRESS,
    Idempotent,
    fn latest_key(&self) -> String {
        // The lengths keep two users and categories apart whose names run together.
        let (user, category) = (self.user_id.as_str(), self.category.as_str());
        format!("{}:{user}{category}", user.len())
    }
);

/// How one category of a backup ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CategoryResult {
    /// Whether everything was backed up.
    pub success: bool,
    /// How many items were.
    #[serde(default, deserialize_with = "or_default")]
    pub item_count: u64,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CategoryResult {
    /// A category of which everything was backed up.
    #[must_use]
    pub const fn success(item_count: u64) -> Self {
        Self {
            success: true,
            item_count,
            error: None,
        }
    }

    /// A category of which only `item_count` items were backed up.
    #[must_use]
    pub fn failure(item_count: u64, error: impl Into<String>) -> Self {
        Self {
            success: false,
            item_count,
            error: Some(error.into()),
        }
    }
}

/// `BACKUP_COMPLETED`: a backup has ended, well or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupCompleted {
    /// Whose data was backed up.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// Whether everything was backed up.
    pub success: bool,
    /// Where the list of what was backed up lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_path: Option<String>,
    /// How each category ended.
    #[serde(default, deserialize_with = "or_default")]
    pub categories: BTreeMap<Category, CategoryResult>,
}

impl BackupCompleted {
    /// The end of a backup.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        success: bool,
        categories: impl IntoIterator<Item = (Category, CategoryResult)>,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            success,
            manifest_path: None,
            categories: categories.into_iter().collect(),
        }
    }

    /// The same with the path of the list of what was backed up.
    #[must_use]
    pub fn with_manifest_path(self, manifest_path: impl Into<String>) -> Self {
        Self {
            manifest_path: Some(manifest_path.into()),
            ..self
        }
    }
}

agent_payload!(BackupCompleted, BACKUP_COMPLETED, Idempotent);

open_enum! {
    /// Why a user asks for more time.
    #[derive(Default)]
    pub enum DelayReason {
        /// The user is busy.
        UserBusy = "user_busy",
        /// The user needs time to prepare.
        NeedTime = "need_time",
        /// Something else. A reason that this version does not know is `Other` instead.
        #[default]
        Unspecified = "other",
    }
}

/// `DELAY_REQUEST`: the user asks for a later deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DelayRequest {
    /// Who asks.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// Why; `other` when absent.
    #[serde(default, deserialize_with = "or_default")]
    pub reason: DelayReason,
    /// How much later the deadline is to be.
    pub requested_delay: Seconds,
    /// How many delays the agent believes to have used.
    #[serde(default, deserialize_with = "or_default")]
    pub delays_used: u32,
}

impl DelayRequest {
    /// A request for a delay after `delays_used` others.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        reason: DelayReason,
        requested_delay: impl Into<Seconds>,
        delays_used: u32,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            reason,
            requested_delay: requested_delay.into(),
            delays_used,
        }
    }
}

agent_payload!(DelayRequest, DELAY_REQUEST, Unknown);

/// `USER_ACTION`: the user did something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserAction {
    /// Who did it.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// What was done.
    pub action: String,
    /// More about it, any JSON.
    #[serde(default, deserialize_with = "or_default")]
    pub details: Map<String, Value>,
}

impl UserAction {
    /// An action without details.
    #[must_use]
    pub fn new(user_id: impl Into<UserId>, action: impl Into<String>) -> Self {
        Self {
            user_id: user_id.into(),
            action: action.into(),
            details: Map::new(),
        }
    }

    /// The same with one more detail.
    #[must_use]
    pub fn with_detail(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.details.insert(name.into(), value.into());
        self
    }
}

agent_payload!(UserAction, USER_ACTION, Unknown);

/// `ERROR_REPORT`: something went wrong at the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorReport {
    /// Whose agent reports it.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// What kind of error it is, in the agent's terms.
    pub error_code: String,
    /// What went wrong, for people.
    #[serde(default, deserialize_with = "or_default")]
    pub message: String,
    /// Where in the program it went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_trace: Option<String>,
    /// More about it, any JSON.
    #[serde(default, deserialize_with = "or_default")]
    pub context: Map<String, Value>,
}

impl ErrorReport {
    /// A report without stack trace and context.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        error_code: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            error_code: error_code.into(),
            message: message.into(),
            stack_trace: None,
            context: Map::new(),
        }
    }

    /// The same with a stack trace.
    #[must_use]
    pub fn with_stack_trace(self, stack_trace: impl Into<String>) -> Self {
        Self {
            stack_trace: Some(stack_trace.into()),
            ..self
        }
    }

    /// The same with one more piece of context.
    #[must_use]
    pub fn with_context(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.context.insert(name.into(), value.into());
        self
    }
}

agent_payload!(ErrorReport, ERROR_REPORT, Idempotent);
