//! What the service sends to agents.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Category, Seconds, UserId, open_enum, or_default};
use crate::message_type::message_types;
use crate::payload::{self, MessagePayload, Sender};
use crate::timestamp::Timestamp;

open_enum! {
    /// How urgent a request is.
    #[derive(Default)]
    pub enum Priority {
        /// The usual.
        #[default]
        Normal = "normal",
        /// Soon.
        High = "high",
        /// Now.
        Urgent = "urgent",
    }
}

/// `BACKUP_REQUEST`: asks a user to start a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupRequest {
    /// Whose data is to be backed up.
    #[serde(default, deserialize_with = "or_default")]
    pub user_id: UserId,
    /// How urgent it is; `normal` when absent.
    #[serde(default, deserialize_with = "or_default")]
    pub priority: Priority,
    /// When the backup has to be complete, by the service's clock.
    pub deadline: Timestamp,
    /// What is to be backed up.
    #[serde(default, deserialize_with = "or_default")]
    pub categories: Vec<Category>,
}

impl BackupRequest {
    /// A request of normal priority.
    #[must_use]
    pub fn new(
        user_id: impl Into<UserId>,
        deadline: Timestamp,
        categories: impl IntoIterator<Item = Category>,
    ) -> Self {
        Self {
            user_id: user_id.into(),
            priority: Priority::Normal,
            deadline,
            categories: categories.into_iter().collect(),
        }
    }

    /// The same with another priority.
    #[must_use]
    pub fn with_priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }
}

impl MessagePayload for BackupRequest {
    const TYPE: &'static str = message_types::BACKUP_REQUEST;
    const SENDER: Sender = Sender::Service;

    fn user_id_mut(&mut self) -> Option<&mut UserId> {
        Some(&mut self.user_id)
    }
}

open_enum! {
    /// How the migration as a whole stands.
    pub enum OverallStatus {
        /// Nobody has begun.
        Waiting = "waiting",
        /// Backups are running.
        InProgress = "in_progress",
        /// It cannot go on without some users.
        Blocked = "blocked",
        /// Every user is ready.
        Ready = "ready",
    }
}

/// `STATUS_UPDATE`: how the migration as a whole stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusUpdate {
    /// The state of the whole.
    pub overall_status: OverallStatus,
    /// The users that the others wait for.
    #[serde(default, deserialize_with = "or_default")]
    pub blocking_users: Vec<UserId>,
    /// The users whose backup is complete.
    #[serde(default, deserialize_with = "or_default")]
    pub ready_users: Vec<UserId>,
    /// How many users there are.
    #[serde(default, deserialize_with = "or_default")]
    pub total_users: u32,
}

impl StatusUpdate {
    /// The state of a migration of `total_users` users.
    #[must_use]
    pub fn new(
        overall_status: OverallStatus,
        blocking_users: Vec<UserId>,
        ready_users: Vec<UserId>,
        total_users: u32,
    ) -> Self {
        Self {
            overall_status,
            blocking_users,
            ready_users,
            total_users,
        }
    }
}

impl MessagePayload for StatusUpdate {
    const TYPE: &'static str = message_types::STATUS_UPDATE;
    const SENDER: Sender = Sender::Service;
}

open_enum! {
    /// Why a case was handed to support staff.
    pub enum EscalationReason {
        /// The user's data is over the quota.
        QuotaExceeded = "quota_exceeded",
        /// Synchronisation failed.
        SyncError = "sync_error",
        /// A mail archive is too large.
        LargePst = "large_pst",
        /// Something took too long.
        Timeout = "timeout",
        /// The user has used every delay.
        MaxDelaysExceeded = "max_delays_exceeded",
    }
}

/// `ESCALATION_NOTICE`: the case has been handed to support staff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EscalationNotice {
    /// Why.
    pub reason: EscalationReason,
    /// More about it, for people.
    #[serde(default, deserialize_with = "or_default")]
    pub details: String,
    /// Where support staff track it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket_number: Option<String>,
}

impl EscalationNotice {
    /// A notice without a ticket.
    #[must_use]
    pub fn new(reason: EscalationReason, details: impl Into<String>) -> Self {
        Self {
            reason,
            details: details.into(),
            ticket_number: None,
        }
    }

    /// The same with a ticket.
    #[must_use]
    pub fn with_ticket_number(self, ticket_number: impl Into<String>) -> Self {
        Self {
            ticket_number: Some(ticket_number.into()),
            ..self
        }
    }
}

impl MessagePayload for EscalationNotice {
    const TYPE: &'static str = message_types::ESCALATION_NOTICE;
    const SENDER: Sender = Sender::Service;
}

open_enum! {
    /// What a setting applies to.
    #[derive(Default)]
    pub enum ConfigurationScope {
        /// The user that the agent works for.
        #[default]
        User = "user",
    }
}

/// `CONFIGURATION_UPDATE`: a setting has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigurationUpdate {
    /// The name of the setting.
    pub key: String,
    /// Its new value, any JSON; absent stands for `null`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub value: Value,
    /// What it applies to; `user` when absent.
    #[serde(default, deserialize_with = "or_default")]
    pub scope: ConfigurationScope,
}

impl ConfigurationUpdate {
    /// A setting of the user.
    #[must_use]
    pub fn new(key: impl Into<String>, value: Value) -> Self {
        Self {
            key: key.into(),
            value,
            scope: ConfigurationScope::User,
        }
    }

    /// The same with another scope.
    #[must_use]
    pub fn with_scope(self, scope: ConfigurationScope) -> Self {
        Self { scope, ..self }
    }
}

impl MessagePayload for ConfigurationUpdate {
    const TYPE: &'static str = message_types::CONFIGURATION_UPDATE;
    const SENDER: Sender = Sender::Service;
}

/// `SHUTDOWN_REQUEST`: the agent is to exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShutdownRequest {
    /// Why, for people.
    #[serde(default, deserialize_with = "or_default")]
    pub reason: String,
    /// How long the agent may take; 30 s when absent.
    #[serde(default = "ShutdownRequest::default_grace_period")]
    pub grace_period_seconds: Seconds,
}

impl ShutdownRequest {
    /// A request to exit within 30 s.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            grace_period_seconds: Self::default_grace_period(),
        }
    }

    /// The same with another grace period.
    #[must_use]
    pub fn with_grace_period(self, grace_period: impl Into<Seconds>) -> Self {
        Self {
            grace_period_seconds: grace_period.into(),
            ..self
        }
    }

    const fn default_grace_period() -> Seconds {
        Seconds(30)
    }
}

impl MessagePayload for ShutdownRequest {
    const TYPE: &'static str = message_types::SHUTDOWN_REQUEST;
    const SENDER: Sender = Sender::Service;
    const PRIORITY: payload::Priority = payload::Priority::High;
}
