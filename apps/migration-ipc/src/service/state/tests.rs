//! The migration's rules, each by example.

use migration_ipc::messages::{CategoryResult, DelayReason, Percent, Seconds};
use migration_ipc::{AccountId, OsSession};

use super::super::lease;
use super::super::policy::MAX_DELAY;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A migration with a clock and short words for its inputs.
struct Play {
    migration: Migration,
    now: Timestamp,
}

impl Play {
    fn new() -> Self {
        Self::with(UserScope::Account, None)
    }

    fn with(scope: UserScope, on_announce: Option<RequestTemplate>) -> Self {
        let rules = Rules {
            scope,
            delays: DelayPolicy::default(),
            on_announce,
        };
        let now = "2024-01-01T12:00:00Z".parse().unwrap();
        Self {
            migration: Migration::new(rules, [], None, now),
            now,
        }
    }

    fn announce(&mut self, id: u64, account: &str, session: &str) -> Option<BackupRequest> {
        let agent = agent(account, session);
        self.migration
            .handle_announced(AgentId(id), agent, account.into(), self.now)
    }

    fn gone(&mut self, id: u64) {
        self.migration
            .handle_gone(AgentId(id), Leaving::Orderly, self.now);
    }

    fn lost(&mut self, id: u64) {
        self.migration
            .handle_gone(AgentId(id), Leaving::Lost, self.now);
    }

    /// As after a restart of the service, which took a while.
    fn restart(&mut self) {
        let stored = self.migration.users_after(None);
        let stored = stored.map(|user| serde_json::to_string(user).unwrap());
        let stored: Vec<String> = stored.collect();
        let stored = stored
            .iter()
            .map(|user| serde_json::from_str(user).unwrap());
        let rules = self.migration.rules.clone();
        self.now = self.now + HOUR;
        self.migration = Migration::new(rules, stored, None, self.now);
    }

    fn request(&mut self, audience: &Audience) -> Requested {
        let request = BackupRequest::new("", self.now + HOUR, [Category::Files]);
        self.migration.handle_request(audience, request)
    }

    fn started(&mut self, account: &str, session: &str) -> Result<(), Refusal> {
        self.migration
            .handle_started(&agent(account, session), self.now)
    }

    fn progress(&mut self, account: &str, session: &str, percent: f64) -> Result<(), Refusal> {
        let progress =
            BackupProgress::new(account, Category::Files, Percent::new(percent), 50, 100);
        self.migration
            .handle_progress(&agent(account, session), progress, self.now)
    }

    fn completed(&mut self, account: &str, session: &str, success: bool) -> Result<(), Refusal> {
        let results = [(Category::Files, CategoryResult::success(3))];
        let completed = BackupCompleted::new(account, success, results);
        self.migration
            .handle_completed(&agent(account, session), completed, self.now)
    }

    fn delay(&mut self, account: &str, by: Duration) -> Result<DelayAnswer, Refusal> {
        let delay = DelayRequest::new(account, DelayReason::UserBusy, Seconds::from(by), 0);
        self.migration
            .handle_delay(&agent(account, "1"), &delay, self.now)
    }

    fn user(&self, account: &str) -> &UserRecord {
        self.migration
            .user(&UserKey::of_account(&AccountId::new(account)))
            .unwrap()
    }

    fn effects(&mut self) -> Vec<Effect> {
        self.migration.take_effects()
    }

    /// The agents that were sent a request, and nothing about anything else.
    fn requests_to(&mut self) -> Vec<u64> {
        let to = |effect| match effect {
            Effect::Request { to, .. } => Some(to.0),
            Effect::Escalation { .. } | Effect::Broadcast(_) => None,
        };
        self.effects().into_iter().filter_map(to).collect()
    }

    fn broadcasts(&mut self) -> Vec<StatusUpdate> {
        let status = |effect| match effect {
            Effect::Broadcast(status) => Some(status),
            Effect::Request { .. } | Effect::Escalation { .. } => None,
        };
        self.effects().into_iter().filter_map(status).collect()
    }
}

fn agent(account: &str, session: &str) -> AgentKey {
    AgentKey {
        account: AccountId::new(account),
        os_session: OsSession::Unknown,
        session: session.into(),
    }
}

fn account(account: &str) -> Audience {
    Audience::Account(NamedAccount {
        account: AccountId::new(account),
        name: account.into(),
    })
}

#[test]
fn an_announcement_is_answered_with_what_is_pending_until_that_is_complete() {
    let mut play = Play::new();
    assert_eq!(play.announce(1, "alice", "1"), None);
    play.gone(1);
    play.request(&account("alice"));
    assert!(play.requests_to().is_empty());

    let request = play.announce(2, "alice", "1").unwrap();
    assert_eq!(request.user_id, "alice");
    assert_eq!(request.categories, [Category::Files]);
    assert!(
        play.requests_to().is_empty(),
        "once per announcement: as reply, not as message too"
    );

    play.completed("alice", "1", true).unwrap();
    play.gone(2);
    assert_eq!(play.announce(3, "alice", "1"), None);
}

#[test]
fn a_request_for_a_connected_user_is_sent_at_once() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    play.announce(2, "bob", "1");
    let requested = play.request(&account("bob"));
    assert_eq!(
        requested,
        Requested {
            users: 1,
            agents: 1,
            standing: false
        }
    );
    assert_eq!(play.requests_to(), [2]);
}

#[test]
fn a_request_for_nobody_known_stays_pending() {
    let mut play = Play::new();
    assert_eq!(play.request(&account("carol")).users, 1);
    assert!(play.announce(1, "carol", "1").is_some());

    let mut play = Play::new();
    assert_eq!(
        play.request(&Audience::All),
        Requested {
            users: 0,
            agents: 0,
            standing: true
        }
    );
    assert!(play.announce(1, "dave", "1").is_some());

    let mut play = Play::new();
    let session = Audience::Session {
        account: AccountId::new("erin"),
        session: "7".to_owned(),
    };
    assert_eq!(play.request(&session).users, 0);
    assert!(play.announce(1, "erin", "7").is_none());
}

#[test]
fn who_announces_for_the_first_time_is_asked_if_the_rules_say_so() {
    let template = RequestTemplate {
        within: HOUR,
        priority: Priority::High,
        categories: vec![Category::Email],
    };
    let mut play = Play::with(UserScope::Account, Some(template));
    let request = play.announce(1, "alice", "1").unwrap();
    assert_eq!(
        (request.deadline, request.priority),
        (play.now + HOUR, Priority::High)
    );
    play.completed("alice", "1", true).unwrap();
    assert_eq!(play.announce(2, "alice", "1"), None);
}

#[test]
fn a_backup_that_fails_stays_pending() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.completed("alice", "1", false).unwrap();
    assert_eq!(play.user("alice").phase, Phase::Failed);
    assert!(play.announce(1, "alice", "1").is_some());
}

#[test]
fn a_delay_lengthens_the_deadline_and_is_answered_with_it() {
    let mut play = Play::new();
    play.request(&account("alice"));
    let Ok(DelayAnswer::Granted(request)) = play.delay("alice", 2 * HOUR) else {
        panic!("not granted");
    };
    assert_eq!(request.deadline, play.now + 3 * HOUR);
    assert_eq!(
        (play.user("alice").delays_used, play.user("alice").phase),
        (1, Phase::Delayed)
    );
}

#[test]
fn the_fourth_delay_escalates_and_changes_nothing_else() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    play.announce(2, "alice", "2");
    play.request(&account("alice"));
    for _ in 0..3 {
        assert!(matches!(
            play.delay("alice", HOUR),
            Ok(DelayAnswer::Granted(_))
        ));
    }
    let deadline = play.user("alice").pending.as_ref().unwrap().deadline;
    play.effects();

    let Ok(DelayAnswer::Escalated(notice)) = play.delay("alice", HOUR) else {
        panic!("not escalated");
    };
    assert_eq!(notice.reason, EscalationReason::MaxDelaysExceeded);
    let effects = play.effects();
    assert!(effects.contains(&Effect::Escalation {
        to: AgentId(2),
        notice: notice.clone()
    }));
    assert!(!effects.contains(&Effect::Escalation {
        to: AgentId(1),
        notice
    }));
    let alice = play.user("alice");
    assert_eq!((alice.delays_used, alice.escalations.len()), (3, 1));
    assert_eq!(alice.pending.as_ref().unwrap().deadline, deadline);
}

#[test]
fn a_delay_that_is_too_long_escalates() {
    let mut play = Play::new();
    play.request(&account("alice"));
    assert!(matches!(
        play.delay("alice", MAX_DELAY),
        Ok(DelayAnswer::Granted(_))
    ));
    let too_long = MAX_DELAY + Duration::from_secs(1);
    assert!(matches!(
        play.delay("alice", too_long),
        Ok(DelayAnswer::Escalated(_))
    ));
    assert_eq!(play.user("alice").delays_used, 1);
}

#[test]
fn a_running_or_complete_backup_cannot_be_put_off() {
    let mut play = Play::new();
    play.started("alice", "1").unwrap();
    assert_eq!(play.delay("alice", HOUR), Err(Refusal::DelayWhileRunning));
    play.completed("alice", "1", true).unwrap();
    assert_eq!(play.delay("alice", HOUR), Err(Refusal::DelayWhenComplete));
    assert_eq!(play.delay("bob", Duration::ZERO), Err(Refusal::EmptyDelay));
}

#[test]
fn a_new_request_gives_new_delays() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.delay("alice", HOUR).unwrap();
    play.request(&account("alice"));
    assert_eq!(play.user("alice").delays_used, 0);
}

#[test]
fn one_session_backs_a_user_up_at_a_time() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.announce(1, "alice", "1");
    play.started("alice", "1").unwrap();
    assert_eq!(play.announce(2, "alice", "2"), None, "session 1 is at it");
    assert!(matches!(
        play.started("alice", "2"),
        Err(Refusal::LeaseHeld(_))
    ));
    assert!(matches!(
        play.progress("alice", "2", 99.0),
        Err(Refusal::LeaseHeld(_))
    ));
    assert!(matches!(
        play.completed("alice", "2", true),
        Err(Refusal::LeaseHeld(_))
    ));
    play.progress("alice", "1", 50.0).unwrap();
    play.completed("alice", "1", true).unwrap();
    play.started("alice", "2").unwrap();
}

#[test]
fn another_session_is_asked_when_the_one_at_it_is_gone() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.announce(1, "alice", "1");
    play.started("alice", "1").unwrap();
    play.announce(2, "alice", "2");
    play.effects();
    play.gone(1);
    assert_eq!(play.requests_to(), [2]);
    play.started("alice", "2").unwrap();
    assert_eq!(play.user("alice").phase, Phase::Running);
}

#[test]
fn a_session_that_connected_again_before_its_old_connection_ended_keeps_the_lease() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    play.started("alice", "1").unwrap();
    play.announce(2, "alice", "1");
    play.gone(1);
    assert_eq!(play.user("alice").phase, Phase::Running);
    assert!(matches!(
        play.started("alice", "2"),
        Err(Refusal::LeaseHeld(_))
    ));
}

#[test]
fn a_lease_of_an_agent_that_went_quiet_can_be_taken_over() {
    let mut play = Play::new();
    play.started("alice", "1").unwrap();
    play.now = play.now + lease::IDLE;
    play.started("alice", "2").unwrap();
    assert!(matches!(
        play.progress("alice", "1", 1.0),
        Err(Refusal::LeaseHeld(_))
    ));
}

#[test]
fn in_development_each_session_is_a_user() {
    let mut play = Play::with(UserScope::Session, None);
    play.announce(1, "dev", "agent-1");
    play.announce(2, "dev", "agent-2");
    play.started("dev", "agent-1").unwrap();
    play.started("dev", "agent-2").unwrap();
    assert_eq!(play.migration.status().total_users, 2);
    assert_eq!(play.request(&account("dev")).users, 2);
}

#[test]
fn a_lost_connection_takes_the_lease_only_after_a_while() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.announce(1, "alice", "1");
    play.started("alice", "1").unwrap();
    play.announce(2, "alice", "2");
    play.effects();
    play.lost(1);
    assert_eq!(play.migration.next_timeout(), Some(play.now + lease::LOST));
    play.now = play.now + lease::LOST / 2;
    play.migration.handle_timeout(play.now);
    assert!(play.started("alice", "2").is_err());

    play.announce(3, "alice", "1");
    play.now = play.now + lease::LOST;
    play.migration.handle_timeout(play.now);
    assert_eq!(play.user("alice").phase, Phase::Running, "it is back");

    play.lost(3);
    play.now = play.now + lease::LOST;
    play.effects();
    play.migration.handle_timeout(play.now);
    assert_eq!(play.requests_to(), [2]);
    play.started("alice", "2").unwrap();
}

#[test]
fn a_restart_forgets_nothing() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.started("alice", "1").unwrap();
    play.progress("alice", "1", 50.0).unwrap();
    play.restart();

    let alice = play.user("alice");
    assert_eq!(alice.phase, Phase::Running);
    assert_eq!(alice.categories[&Category::Files].bytes_transferred, 50);
    assert_eq!(play.announce(2, "alice", "2"), None, "another one is at it");
    assert!(play.started("alice", "2").is_err());
    play.progress("alice", "1", 60.0).unwrap();
    assert!(play.announce(1, "alice", "1").is_some());
}

#[test]
fn a_lease_ends_when_its_agent_does_not_come_back_after_a_restart() {
    let mut play = Play::new();
    play.request(&account("alice"));
    play.started("alice", "1").unwrap();
    play.restart();
    play.announce(2, "alice", "2");
    play.effects();
    play.now = play.now + lease::IDLE;
    play.migration.handle_timeout(play.now);
    assert_eq!(play.requests_to(), [2]);
    assert_eq!(play.user("alice").phase, Phase::Requested);
    assert_eq!(play.user("alice").lease, None);
}

#[test]
fn a_restart_keeps_delays_and_deadlines() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    play.request(&account("alice"));
    play.delay("alice", MAX_DELAY).unwrap();
    let deadline = play.user("alice").open_deadline().unwrap();
    play.restart();
    assert_eq!(play.user("alice").phase, Phase::Delayed);
    assert_eq!(play.user("alice").delays_used, 1);
    assert_eq!(play.migration.next_timeout(), Some(deadline));
    let request = play.announce(2, "alice", "1").unwrap();
    assert_eq!(request.deadline, deadline);
}

#[test]
fn a_deadline_that_passes_escalates_once() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    play.request(&account("alice"));
    assert_eq!(play.migration.next_timeout(), Some(play.now + HOUR));
    play.migration.handle_timeout(play.now);
    assert!(play.user("alice").escalations.is_empty());

    play.now = play.now + HOUR;
    play.effects();
    play.migration.handle_timeout(play.now);
    let effects = play.effects();
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Escalation { to: AgentId(1), .. }))
    );
    assert_eq!(
        play.user("alice").escalations[0].reason,
        EscalationReason::Timeout
    );
    assert_eq!(play.migration.next_timeout(), None);
    play.completed("alice", "1", true).unwrap();
    assert_eq!(play.migration.status().overall_status, OverallStatus::Ready);
}

#[test]
fn the_status_is_broadcast_when_the_whole_changes_and_only_then() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    play.announce(2, "bob", "1");
    assert!(play.broadcasts().is_empty(), "waiting, as before");
    play.started("alice", "1").unwrap();
    play.started("bob", "1").unwrap();
    let broadcasts = play.broadcasts();
    assert_eq!(broadcasts.len(), 1);
    assert_eq!(broadcasts[0].overall_status, OverallStatus::InProgress);

    play.progress("alice", "1", 50.0).unwrap();
    play.completed("alice", "1", true).unwrap();
    assert!(play.broadcasts().is_empty());
    play.completed("bob", "1", true).unwrap();
    let status = &play.broadcasts()[0];
    assert_eq!(status.overall_status, OverallStatus::Ready);
    assert_eq!(status.ready_users, ["alice", "bob"]);
}

#[test]
fn the_roster_counts_people_who_never_connected() {
    let mut play = Play::new();
    let Audience::Account(zoe) = account("zoe") else {
        unreachable!()
    };
    play.migration.handle_roster(&zoe);
    play.announce(1, "alice", "1");
    play.completed("alice", "1", true).unwrap();
    let status = play.migration.status();
    assert_eq!(status.total_users, 2);
    assert_eq!(status.blocking_users, ["zoe"]);
    assert_eq!(status.overall_status, OverallStatus::InProgress);
}

#[test]
fn progress_may_be_lost_and_decisions_may_not() {
    let mut play = Play::new();
    play.started("alice", "1").unwrap();
    let changed = play.migration.take_changed();
    assert_eq!((changed.decided.len(), changed.progressed.len()), (1, 0));
    play.progress("alice", "1", 50.0).unwrap();
    let changed = play.migration.take_changed();
    assert_eq!((changed.decided.len(), changed.progressed.len()), (0, 1));
}

#[test]
fn an_operators_escalation_is_recorded_and_told() {
    let mut play = Play::new();
    play.announce(1, "alice", "1");
    let notice = EscalationNotice::new(EscalationReason::QuotaExceeded, "too much");
    assert_eq!(
        play.migration
            .handle_escalation(&account("alice"), &notice, play.now),
        1
    );
    assert_eq!(play.user("alice").escalations.len(), 1);
    let expected = Effect::Escalation {
        to: AgentId(1),
        notice,
    };
    assert!(play.effects().contains(&expected));
}
