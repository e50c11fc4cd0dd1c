//! The configuration file. `README.md` beside the manifest of this package has an example of
//! everything, which a test reads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use migration_ipc::messages::{Category, Priority};
use migration_ipc::{Rate, ServerLimits};
use serde::Deserialize;

use super::policy::{DelayPolicy, MAX_DELAY, MAX_DELAYS};
use super::state::RequestTemplate;

const HOUR: u64 = 60 * 60;

const MIB: usize = 1024 * 1024;

/// A rate that is none: TOML has no larger number.
const MOST_PER_SECOND: u64 = i64::MAX.unsigned_abs();

/// More than a machine has.
const MOST_MIB: u64 = 1024 * 1024;

/// The longest deadline: a year.
const MAX_DEADLINE_HOURS: u64 = 366 * 24;

/// What the configuration file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) roster: Vec<String>,
    pub(crate) allowed_groups: Option<Vec<String>>,
    backup: Backup,
    delays: Delays,
    limits: Limits,
    encryption: EncryptionKeys,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Backup {
    request: WhenToAsk,
    deadline_hours: u64,
    priority: Priority,
    categories: Vec<Category>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WhenToAsk {
    ByOperator,
    OnAnnounce,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Delays {
    count: u32,
    longest_hours: u64,
}

/// With which keys connections are encrypted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EncryptionKeys {
    key_file: Option<PathBuf>,
    required: bool,
}

/// What one user may take of the service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    connections_per_user: usize,
    messages_per_second: u64,
    bytes_per_second: u64,
    memory_mib: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A session's agent has one; a user with so many sessions is none.
            connections_per_user: 64,
            // An agent at work sends a few; one that was offline sends what it kept, of which a
            // thousand go at once. Most messages are stored, and the disk is everybody's.
            messages_per_second: 500,
            bytes_per_second: 8 * MIB as u64,
            memory_mib: 64,
        }
    }
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            request: WhenToAsk::ByOperator,
            deadline_hours: 72,
            priority: Priority::Normal,
            categories: vec![Category::Files],
        }
    }
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            count: MAX_DELAYS,
            longest_hours: MAX_DELAY.as_secs() / HOUR,
        }
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration `{}`: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("the configuration `{}` is wrong: {problem}", path.display())]
    Wrong { path: PathBuf, problem: String },
}

impl Config {
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Unreadable {
            path: path.to_owned(),
            error,
        };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text).map_err(|problem| ConfigError::Wrong {
            path: path.to_owned(),
            problem,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        within(
            "backup.deadline_hours",
            self.backup.deadline_hours,
            1,
            MAX_DEADLINE_HOURS,
        )?;
        within(
            "delays.count",
            self.delays.count.into(),
            0,
            MAX_DELAYS.into(),
        )?;
        within(
            "delays.longest_hours",
            self.delays.longest_hours,
            1,
            MAX_DELAY.as_secs() / HOUR,
        )?;
        let limits = &self.limits;
        for (key, value, most) in [
            (
                "limits.connections_per_user",
                limits.connections_per_user as u64,
                u64::from(u16::MAX),
            ),
            (
                "limits.messages_per_second",
                limits.messages_per_second,
                MOST_PER_SECOND,
            ),
            (
                "limits.bytes_per_second",
                limits.bytes_per_second,
                MOST_PER_SECOND,
            ),
            ("limits.memory_mib", limits.memory_mib as u64, MOST_MIB),
        ] {
            within(key, value, 1, most)?;
        }
        if let Priority::Other(other) = &self.backup.priority {
            return Err(format!(
                "`backup.priority` is `{other}`; it must be `normal`, `high` or `urgent`"
            ));
        }
        if self.allowed_groups.as_ref().is_some_and(Vec::is_empty) {
            let problem = "`allowed_groups` is empty, so that nobody could connect; name a group, or \
                           leave it out to admit everybody on this machine";
            return Err(problem.to_owned());
        }
        if self.roster.iter().any(|name| name.trim().is_empty()) {
            return Err("`roster` has an empty name; each must be an account's".to_owned());
        }
        Ok(())
    }

    pub(crate) fn delays(&self) -> DelayPolicy {
        DelayPolicy {
            delays: self.delays.count,
            longest: Duration::from_secs(self.delays.longest_hours * HOUR),
        }
    }

    /// The file with the keys of connections.
    pub(crate) fn key_file(&self) -> Option<PathBuf> {
        self.encryption.key_file.clone()
    }

    /// Whether whoever does not encrypt is turned away.
    pub(crate) fn requires_encryption(&self) -> bool {
        self.encryption.required
    }

    /// What users may take of the server.
    pub(crate) fn server_limits(&self) -> ServerLimits {
        let mut limits = ServerLimits::default();
        limits.account.connections = self.limits.connections_per_user;
        limits.account.messages = Rate::PerSecond(self.limits.messages_per_second);
        limits.account.bytes = Rate::PerSecond(self.limits.bytes_per_second);
        limits.account.memory = self.limits.memory_mib * MIB;
        limits
    }

    /// What everybody is asked for who announces an agent for the first time.
    pub(crate) fn on_announce(&self) -> Option<RequestTemplate> {
        match self.backup.request {
            WhenToAsk::ByOperator => None,
            WhenToAsk::OnAnnounce => Some(RequestTemplate {
                within: Duration::from_secs(self.backup.deadline_hours * HOUR),
                priority: self.backup.priority.clone(),
                categories: self.backup.categories.clone(),
            }),
        }
    }
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!(
            "`{key}` is {value}; it must be from {least} to {most}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.delays(), DelayPolicy::default());
        assert!(config.on_announce().is_none() && config.roster.is_empty());
        assert!(config.key_file().is_none() && !config.requires_encryption());
        config.server_limits().validate().unwrap();
    }

    #[test]
    fn everything_can_be_set() {
        let text = r#"
            [backup]
            request = "on_announce"
            deadline_hours = 1
            priority = "urgent"
            categories = ["email"]
            [delays]
            count = 1
            longest_hours = 2
            [limits]
            connections_per_user = 3
            messages_per_second = 4
            bytes_per_second = 5
            memory_mib = 6
            [encryption]
            key_file = "keys"
            required = true
        "#;
        let config = Config::parse(text).unwrap();
        let template = config.on_announce().unwrap();
        assert_eq!(template.within, Duration::from_secs(3600));
        assert_eq!(template.priority, Priority::Urgent);
        assert_eq!(template.categories, [Category::Email]);
        let longest = Duration::from_secs(2 * 3600);
        assert_eq!(config.delays(), DelayPolicy { delays: 1, longest });
        let account = config.server_limits().account;
        assert_eq!(account.connections, 3);
        assert_eq!(account.messages, Rate::PerSecond(4));
        assert_eq!(account.bytes, Rate::PerSecond(5));
        assert_eq!(account.memory, 6 * MIB);
        assert_eq!(config.key_file().unwrap(), Path::new("keys"));
        assert!(config.requires_encryption());
    }

    #[test]
    fn the_documented_example_is_right() {
        let readme = include_str!("../../README.md");
        let (_, rest) = readme.split_once("```toml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let config = Config::parse(example).unwrap();
        assert_eq!(config.roster.len(), 2);
        assert!(config.on_announce().is_some());
        assert!(config.key_file().is_some() && !config.requires_encryption());
        assert_eq!(config.allowed_groups.unwrap(), ["staff", "backup-users"]);
    }

    #[test]
    fn an_error_names_the_key_and_what_would_be_right() {
        let cases = [
            ("rooster = []", "roster"),
            ("[backup]\nrequest = \"never\"", "by_operator"),
            (
                "[backup]\ndeadline_hours = 0",
                "`backup.deadline_hours` is 0; it must be from 1",
            ),
            (
                "[backup]\npriority = \"low\"",
                "`normal`, `high` or `urgent`",
            ),
            (
                "[delays]\ncount = 4",
                "`delays.count` is 4; it must be from 0 to 3",
            ),
            ("[delays]\nlongest_hours = 73", "to 72"),
            ("[delays]\ncount = \"3\"", "count"),
            ("roster = [\"\"]", "`roster`"),
            (
                "[limits]\nmessages_per_second = 0",
                "`limits.messages_per_second` is 0; it must be from 1",
            ),
            ("[encryption]\nrequire = true", "required"),
            ("allowed_groups = []", "`allowed_groups` is empty"),
            ("allowed_group = \"staff\"", "allowed_groups"),
        ];
        for (text, expected) in cases {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
