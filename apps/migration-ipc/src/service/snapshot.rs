//! The status that operators see, in pages that fit a message.

use std::time::Instant;

use migration_ipc::{ConnectionCounts, Timestamp};

use super::desk::Desk;
use super::key::UserKey;
use super::record::UserRecord;
use crate::operator::{Connections, ServiceStatus, UserStatus};
use crate::telemetry::Recorder;

/// How many bytes of users a page has, at most by one user more: half of what a message may have.
const PAGE_BYTES: usize = 512 * 1024;

/// What the service says about itself.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) started: Timestamp,
    pub(crate) recorder: Recorder,
}

/// The page of the status that begins after a user.
pub(crate) fn page(
    about: &About,
    desk: &Desk,
    connections: ConnectionCounts,
    after: Option<&UserKey>,
    now: Timestamp,
) -> ServiceStatus {
    let (users, next) = users_after(desk, after);
    let status = desk.migration.status();
    ServiceStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: about.started,
        now,
        overall_status: status.overall_status,
        total_users: status.total_users,
        connections: Connections {
            pending: connections.pending,
            identified: connections.identified,
            announced: connections.announced,
            closing: connections.closing,
        },
        traffic: about.recorder.traffic(Instant::now()),
        users,
        next,
    }
}

fn users_after(desk: &Desk, after: Option<&UserKey>) -> (Vec<UserStatus>, Option<UserKey>) {
    let mut users = Vec::new();
    let mut bytes = 0;
    let mut records = desk.migration.users_after(after).peekable();
    while let Some(record) = records.next() {
        let user = user_status(desk, record);
        bytes += serde_json::to_string(&user).map_or(0, |json| json.len());
        users.push(user);
        if bytes >= PAGE_BYTES && records.peek().is_some() {
            return (users, Some(record.key.clone()));
        }
    }
    (users, None)
}

fn user_status(desk: &Desk, record: &UserRecord) -> UserStatus {
    let sum = |of: fn(&super::record::CategoryState) -> u64| {
        record
            .categories
            .values()
            .map(of)
            .fold(0, u64::saturating_add)
    };
    let pending = record.pending.as_ref();
    UserStatus {
        user: record.key.to_string(),
        name: record.name.as_str().to_owned(),
        state: record.phase,
        escalated: record.escalated,
        agents: desk.agents_of(&record.key),
        priority: pending.map(|terms| terms.priority.clone()),
        deadline: pending.map(|terms| terms.deadline),
        delays_used: record.delays_used,
        progress: record.percent(),
        bytes_transferred: sum(|state| state.bytes_transferred),
        bytes_total: sum(|state| state.bytes_total),
        current_file: record
            .categories
            .values()
            .find_map(|state| state.current_file.clone()),
        categories: record.categories.clone(),
        started: record.started,
        finished: record.finished,
        manifest_path: record.manifest_path.clone(),
        escalations: record.escalations.clone(),
        last_action: record.last_action.clone(),
        last_error: record.last_error.clone(),
        last_seen: record.last_seen,
    }
}
