//! How the migration as a whole stands.

use migration_ipc::messages::{OverallStatus, StatusUpdate, UserId};

use super::record::{Standing, UserRecord};

/// How many users a status lists in each list: their ids fit one message with room to spare.
const MAX_LISTED: usize = 4000;

/// Counts users by what they hold up.
#[derive(Debug, Default)]
struct Counts {
    ready: usize,
    active: usize,
    waiting: usize,
    blocked: usize,
}

/// The status that follows from all users, the absent ones included.
///
/// Every user who is not ready blocks the whole. It is `blocked` only when one of them needs
/// people: a backup failed, or was escalated.
pub(crate) fn status<'a>(users: impl Iterator<Item = &'a UserRecord>) -> StatusUpdate {
    let mut counts = Counts::default();
    let (mut blocking, mut ready) = (Vec::new(), Vec::new());
    for user in users {
        let standing = user.standing();
        counts.add(standing);
        let list = if standing == Standing::Ready {
            &mut ready
        } else {
            &mut blocking
        };
        if list.len() < MAX_LISTED {
            list.push(UserId::from(user.key.to_string()));
        }
    }
    StatusUpdate::new(counts.overall(), blocking, ready, counts.total())
}

/// The one word of [`status`], without the lists.
pub(crate) fn overall<'a>(users: impl Iterator<Item = &'a UserRecord>) -> OverallStatus {
    let mut counts = Counts::default();
    users.for_each(|user| counts.add(user.standing()));
    counts.overall()
}

impl Counts {
    fn add(&mut self, standing: Standing) {
        *match standing {
            Standing::Ready => &mut self.ready,
            Standing::Active => &mut self.active,
            Standing::Waiting => &mut self.waiting,
            Standing::Blocked => &mut self.blocked,
        } += 1;
    }

    fn total(&self) -> u32 {
        let total = self.ready + self.active + self.waiting + self.blocked;
        u32::try_from(total).unwrap_or(u32::MAX)
    }

    fn overall(&self) -> OverallStatus {
        if self.blocked > 0 {
            OverallStatus::Blocked
        } else if self.active > 0 || (self.ready > 0 && self.waiting > 0) {
            OverallStatus::InProgress
        } else if self.ready > 0 {
            OverallStatus::Ready
        } else {
            OverallStatus::Waiting
        }
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc::AccountId;

    use super::super::key::UserKey;
    use super::super::record::Phase;
    use super::*;

    fn status_of(phases: &[Phase]) -> StatusUpdate {
        let users: Vec<UserRecord> = phases
            .iter()
            .enumerate()
            .map(|(index, phase)| {
                let key = UserKey::of_account(&AccountId::new(index.to_string()));
                UserRecord {
                    phase: *phase,
                    ..UserRecord::new(key, "".into())
                }
            })
            .collect();
        status(users.iter())
    }

    #[test]
    fn the_whole_follows_from_the_users() {
        use Phase::{Completed, Failed, Idle, Requested, Running};
        let cases: [(&[Phase], OverallStatus); 8] = [
            (&[], OverallStatus::Waiting),
            (&[Idle, Requested], OverallStatus::Waiting),
            (&[Running, Requested], OverallStatus::InProgress),
            (&[Completed, Requested], OverallStatus::InProgress),
            (&[Completed, Running], OverallStatus::InProgress),
            (&[Completed, Completed], OverallStatus::Ready),
            (&[Completed, Failed], OverallStatus::Blocked),
            (&[Running, Failed], OverallStatus::Blocked),
        ];
        for (phases, overall) in cases {
            assert_eq!(status_of(phases).overall_status, overall, "{phases:?}");
        }
    }

    #[test]
    fn whoever_is_not_ready_blocks() {
        let status = status_of(&[Phase::Completed, Phase::Idle, Phase::Running]);
        assert_eq!(status.ready_users, ["0"]);
        assert_eq!(status.blocking_users, ["1", "2"]);
        assert_eq!(status.total_users, 3);
    }
}
