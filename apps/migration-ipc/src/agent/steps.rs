//! The agent's decisions as a state machine: what comes in goes to `handle_*`, what is to be done
//! comes back.

use std::time::Duration;

use migration_ipc::Timestamp;
use migration_ipc::messages::{BackupRequest, EscalationNotice, ShutdownRequest};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::consent::{Choice, Consent};

/// Something to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Put the question to the user.
    Ask(BackupRequest),
    /// Begin the backup.
    Start(BackupRequest),
    /// Ask the service for a later deadline.
    RequestDelay { by: Duration, delays_used: u32 },
    /// Tell the service what the user did.
    Report(UserAct),
    /// Remember the delay over the end of this process.
    KeepDelay(Delay),
    /// Remember no delay any more.
    ForgetDelay,
    /// End the running backup before its end.
    CancelBackup,
    /// Say goodbye and exit.
    Exit,
}

/// What the user did, as `USER_ACTION` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UserAct {
    Accepted,
    Declined,
    Delayed,
}

impl UserAct {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accepted => "backup_accepted",
            Self::Declined => "backup_declined",
            Self::Delayed => "backup_delayed",
        }
    }
}

/// A delay that was asked for, or granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delay {
    pub(crate) standing: Standing,
    /// The deadline of the request that it is about, by which that is known again: before it was
    /// granted the old one, then the new one.
    pub(crate) deadline: Timestamp,
    /// When the user is to be asked again.
    pub(crate) until: Instant,
    pub(crate) delays_used: u32,
}

/// What the service said to a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Nothing yet, but it will be asked.
    Asked,
    Granted,
}

/// What became of the last request.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// Nothing was asked for, or it is done.
    Idle,
    /// The user was asked and has not answered.
    Asking(BackupRequest),
    /// The service was asked for a delay and has not answered.
    AskingForDelay {
        request: BackupRequest,
        by: Duration,
    },
    /// The user is to be asked again at this time.
    Delayed {
        request: BackupRequest,
        until: Instant,
    },
    Running,
}

/// Whether the service wants the agent gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// After the running backup, or at this time.
    By(Instant),
}

/// The state of one agent.
#[derive(Debug)]
pub(crate) struct Steps {
    consent: Consent,
    stage: Stage,
    delays_used: u32,
    /// The delay that is remembered over the end of this process.
    kept: Option<Delay>,
    ending: Ending,
}

impl Steps {
    /// `kept` is what an earlier run was told to remember.
    pub(crate) fn new(consent: Consent, kept: Option<Delay>) -> Self {
        Self {
            consent,
            stage: Stage::Idle,
            delays_used: kept.map_or(0, |delay| delay.delays_used),
            kept,
            ending: Ending::No,
        }
    }

    /// The service asks for a backup, or grants a delay: it says so by the same message. It says
    /// what is pending again on every new connection.
    pub(crate) fn handle_request(&mut self, request: BackupRequest, now: Instant) -> Vec<Step> {
        if self.ending != Ending::No {
            return Vec::new();
        }
        match (&self.stage, self.consent) {
            (Stage::Running, _) => Vec::new(),
            (
                Stage::Asking(earlier)
                | Stage::AskingForDelay {
                    request: earlier, ..
                }
                | Stage::Delayed {
                    request: earlier, ..
                },
                _,
            ) if earlier.deadline == request.deadline => Vec::new(),
            (Stage::AskingForDelay { by, .. }, _) => {
                let until = now + *by;
                self.grant(request, until)
            }
            (Stage::Idle, Consent::Ask) if let Some(kept) = self.kept => {
                self.recall(request, kept, now)
            }
            (_, Consent::Auto) => self.start(request),
            (_, Consent::Ask | Consent::Deny) => self.ask(request),
        }
    }

    /// The user answered, or thought better of it.
    pub(crate) fn handle_choice(&mut self, choice: Choice, now: Instant) -> Vec<Step> {
        let request = match (&self.stage, choice) {
            (Stage::Asking(request) | Stage::Delayed { request, .. }, _)
            | (Stage::AskingForDelay { request, .. }, Choice::Start | Choice::Decline) => {
                request.clone()
            }
            (Stage::Idle | Stage::Running | Stage::AskingForDelay { .. }, _) => return Vec::new(),
        };
        match choice {
            Choice::Start => self.start(request),
            Choice::Decline => {
                self.stage = Stage::Idle;
                let mut steps = vec![Step::Report(UserAct::Declined)];
                steps.extend(self.forget_delay());
                steps
            }
            Choice::Delay(by) => {
                let delays_used = self.delays_used;
                let delay = Delay {
                    standing: Standing::Asked,
                    deadline: request.deadline,
                    until: now + by,
                    delays_used,
                };
                self.kept = Some(delay);
                self.stage = Stage::AskingForDelay { request, by };
                vec![
                    Step::Report(UserAct::Delayed),
                    Step::RequestDelay { by, delays_used },
                    // Once the service will be asked, whatever happens to this process.
                    Step::KeepDelay(delay),
                ]
            }
        }
    }

    /// There is nobody to ask any more, who could have consented.
    pub(crate) fn handle_no_terminal(&mut self, now: Instant) -> Vec<Step> {
        self.consent = Consent::Deny;
        self.handle_choice(Choice::Decline, now)
    }

    /// The service did not grant the delay: the user has to choose again.
    pub(crate) fn handle_delay_refused(&mut self) -> Vec<Step> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::AskingForDelay { request, .. } => self.ask(request),
            other => {
                self.stage = other;
                Vec::new()
            }
        }
    }

    /// An escalation answers a request for a delay that went too far.
    pub(crate) fn handle_escalation(&mut self, _: &EscalationNotice) -> Vec<Step> {
        self.handle_delay_refused()
    }

    /// The backup is over, well or not.
    pub(crate) fn handle_finished(&mut self) -> Vec<Step> {
        self.stage = Stage::Idle;
        match self.ending {
            Ending::No => Vec::new(),
            Ending::By(_) => vec![Step::Exit],
        }
    }

    /// The service asks the agent to exit; a running backup may take the grace period.
    pub(crate) fn handle_shutdown(&mut self, request: &ShutdownRequest, now: Instant) -> Vec<Step> {
        if self.stage != Stage::Running {
            self.stage = Stage::Idle;
            return vec![Step::Exit];
        }
        let far = Duration::from_secs(365 * 24 * 3600);
        self.ending = Ending::By(now + request.grace_period_seconds.as_duration().min(far));
        Vec::new()
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        match (&self.stage, self.ending) {
            (_, Ending::By(at)) => Some(at),
            (Stage::Delayed { until, .. }, Ending::No) => Some(*until),
            (_, Ending::No) => None,
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Step> {
        if let Ending::By(at) = self.ending {
            // The end of the backup brings the exit; it is asked for once.
            return if at <= now && self.stage == Stage::Running {
                self.ending = Ending::By(now + Duration::from_secs(3600));
                vec![Step::CancelBackup]
            } else {
                Vec::new()
            };
        }
        match &self.stage {
            Stage::Delayed { request, until } if *until <= now => {
                let request = request.clone();
                self.ask(request)
            }
            _ => Vec::new(),
        }
    }

    fn grant(&mut self, request: BackupRequest, until: Instant) -> Vec<Step> {
        self.delays_used += 1;
        let delay = Delay {
            standing: Standing::Granted,
            deadline: request.deadline,
            until,
            delays_used: self.delays_used,
        };
        self.kept = Some(delay);
        self.stage = Stage::Delayed { request, until };
        vec![Step::KeepDelay(delay)]
    }

    /// The first request of this process, about which an earlier one knew something.
    fn recall(&mut self, request: BackupRequest, kept: Delay, now: Instant) -> Vec<Step> {
        let until = kept.until;
        match kept.standing {
            Standing::Granted if kept.deadline == request.deadline => {
                self.stage = Stage::Delayed { request, until };
                Vec::new()
            }
            // The service has not answered yet.
            Standing::Asked if kept.deadline == request.deadline => {
                let by = until.saturating_duration_since(now);
                self.stage = Stage::AskingForDelay { request, by };
                Vec::new()
            }
            // It has, and this process was not there.
            Standing::Asked if kept.deadline < request.deadline => self.grant(request, until),
            Standing::Asked | Standing::Granted => self.ask(request),
        }
    }

    fn forget_delay(&mut self) -> Option<Step> {
        self.kept.take().map(|_| Step::ForgetDelay)
    }

    fn ask(&mut self, request: BackupRequest) -> Vec<Step> {
        let mut steps = Vec::from_iter(self.forget_delay());
        if self.consent == Consent::Deny {
            self.stage = Stage::Idle;
            steps.push(Step::Report(UserAct::Declined));
        } else {
            self.stage = Stage::Asking(request.clone());
            steps.push(Step::Ask(request));
        }
        steps
    }

    fn start(&mut self, request: BackupRequest) -> Vec<Step> {
        self.stage = Stage::Running;
        self.delays_used = 0;
        let mut steps = vec![Step::Report(UserAct::Accepted), Step::Start(request)];
        steps.extend(self.forget_delay());
        steps
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc::messages::{Category, EscalationReason, Seconds};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn request(deadline: &str) -> BackupRequest {
        BackupRequest::new("", deadline.parse().unwrap(), [Category::Files])
    }

    fn early() -> BackupRequest {
        request("2024-01-01T12:00:00Z")
    }

    fn late() -> BackupRequest {
        request("2024-01-02T12:00:00Z")
    }

    #[test]
    fn with_auto_a_backup_starts_at_once() {
        let mut steps = Steps::new(Consent::Auto, None);
        let expected = [Step::Report(UserAct::Accepted), Step::Start(early())];
        assert_eq!(steps.handle_request(early(), Instant::now()), expected);
        assert!(
            steps.handle_request(late(), Instant::now()).is_empty(),
            "one at a time"
        );
        assert!(steps.handle_finished().is_empty());
        assert_eq!(steps.handle_request(late(), Instant::now()).len(), 2);
    }

    #[test]
    fn with_deny_none_starts() {
        let mut steps = Steps::new(Consent::Deny, None);
        let expected = [Step::Report(UserAct::Declined)];
        assert_eq!(steps.handle_request(early(), Instant::now()), expected);
    }

    #[test]
    fn the_user_is_asked_and_obeyed() {
        let mut steps = Steps::new(Consent::Ask, None);
        assert_eq!(
            steps.handle_request(early(), Instant::now()),
            [Step::Ask(early())]
        );
        let expected = [Step::Report(UserAct::Accepted), Step::Start(early())];
        assert_eq!(steps.handle_choice(Choice::Start, Instant::now()), expected);

        let mut steps = Steps::new(Consent::Ask, None);
        steps.handle_request(early(), Instant::now());
        assert_eq!(
            steps.handle_choice(Choice::Decline, Instant::now()),
            [Step::Report(UserAct::Declined)]
        );
        assert!(
            steps
                .handle_choice(Choice::Start, Instant::now())
                .is_empty(),
            "nothing is asked any more"
        );
    }

    #[test]
    fn without_a_terminal_any_more_everything_is_declined() {
        let mut steps = Steps::new(Consent::Ask, None);
        steps.handle_request(early(), Instant::now());
        let declined = [Step::Report(UserAct::Declined)];
        assert_eq!(steps.handle_no_terminal(Instant::now()), declined);
        assert_eq!(steps.handle_request(late(), Instant::now()), declined);
    }

    #[test]
    fn new_terms_replace_the_question() {
        let mut steps = Steps::new(Consent::Ask, None);
        steps.handle_request(early(), Instant::now());
        assert_eq!(
            steps.handle_request(late(), Instant::now()),
            [Step::Ask(late())]
        );
    }

    #[test]
    fn a_granted_delay_brings_the_question_back_when_it_is_over() {
        let mut steps = Steps::new(Consent::Ask, None);
        let now = Instant::now();
        steps.handle_request(early(), now);
        let expected = [
            Step::Report(UserAct::Delayed),
            Step::RequestDelay {
                by: HOUR,
                delays_used: 0,
            },
            Step::KeepDelay(asked(now)),
        ];
        assert_eq!(steps.handle_choice(Choice::Delay(HOUR), now), expected);
        assert_eq!(
            steps.handle_request(late(), now),
            [Step::KeepDelay(granted(now))]
        );
        assert_eq!(steps.next_timeout(), Some(now + HOUR));
        assert!(steps.handle_timeout(now).is_empty());
        let asked_again = [Step::ForgetDelay, Step::Ask(late())];
        assert_eq!(steps.handle_timeout(now + HOUR), asked_again);
        let second = steps.handle_choice(Choice::Delay(HOUR), Instant::now());
        assert_eq!(
            second[1],
            Step::RequestDelay {
                by: HOUR,
                delays_used: 1
            }
        );
    }

    fn asked(now: Instant) -> Delay {
        Delay {
            standing: Standing::Asked,
            deadline: early().deadline,
            until: now + HOUR,
            delays_used: 0,
        }
    }

    fn granted(now: Instant) -> Delay {
        Delay {
            standing: Standing::Granted,
            deadline: late().deadline,
            until: now + HOUR,
            delays_used: 1,
        }
    }

    #[test]
    fn a_delay_outlives_the_process() {
        let now = Instant::now();
        let mut steps = Steps::new(Consent::Ask, Some(granted(now)));
        assert!(steps.handle_request(late(), now).is_empty());
        assert_eq!(steps.next_timeout(), Some(now + HOUR));
        let asked_again = [Step::ForgetDelay, Step::Ask(late())];
        assert_eq!(steps.handle_timeout(now + HOUR), asked_again);

        let mut steps = Steps::new(Consent::Ask, Some(granted(now)));
        let asked = [Step::ForgetDelay, Step::Ask(early())];
        assert_eq!(steps.handle_request(early(), now), asked, "other terms");
    }

    #[test]
    fn a_delay_that_was_asked_for_outlives_the_process() {
        let now = Instant::now();
        let again = || Steps::new(Consent::Ask, Some(asked(now)));
        let keep = [Step::KeepDelay(granted(now))];

        let mut steps = again();
        assert!(steps.handle_request(early(), now).is_empty());
        assert_eq!(steps.handle_request(late(), now), keep, "the answer");

        let mut steps = again();
        assert_eq!(
            steps.handle_request(late(), now),
            keep,
            "answered meanwhile"
        );

        let mut steps = again();
        steps.handle_request(early(), now);
        let asked_again = [Step::ForgetDelay, Step::Ask(early())];
        assert_eq!(steps.handle_delay_refused(), asked_again);
    }

    #[test]
    fn the_user_may_think_better_of_a_delay_that_is_not_answered() {
        let mut steps = Steps::new(Consent::Ask, None);
        steps.handle_request(early(), Instant::now());
        steps.handle_choice(Choice::Delay(HOUR), Instant::now());
        let started = steps.handle_choice(Choice::Start, Instant::now());
        assert_eq!(started[1], Step::Start(early()));
        assert!(steps.handle_request(late(), Instant::now()).is_empty());
    }

    #[test]
    fn what_is_pending_is_said_again_on_a_new_connection_and_changes_nothing() {
        let mut steps = Steps::new(Consent::Ask, None);
        let now = Instant::now();
        steps.handle_request(early(), now);
        assert!(steps.handle_request(early(), now).is_empty(), "asking");
        steps.handle_choice(Choice::Delay(HOUR), Instant::now());
        assert!(
            steps.handle_request(early(), now).is_empty(),
            "asking for a delay"
        );
        assert_eq!(steps.handle_request(late(), now).len(), 1, "granted");
        assert!(steps.handle_request(late(), now).is_empty(), "delayed");
        assert_eq!(steps.next_timeout(), Some(now + HOUR));
    }

    #[test]
    fn the_user_may_start_before_the_delay_is_over() {
        let mut steps = Steps::new(Consent::Ask, None);
        steps.handle_request(early(), Instant::now());
        steps.handle_choice(Choice::Delay(HOUR), Instant::now());
        steps.handle_request(late(), Instant::now());
        assert_eq!(
            steps.handle_choice(Choice::Start, Instant::now())[1],
            Step::Start(late())
        );
    }

    #[test]
    fn a_refused_delay_brings_the_question_back_at_once() {
        let mut steps = Steps::new(Consent::Ask, None);
        steps.handle_request(early(), Instant::now());
        steps.handle_choice(Choice::Delay(HOUR), Instant::now());
        let notice = EscalationNotice::new(EscalationReason::MaxDelaysExceeded, "");
        let asked_again = [Step::ForgetDelay, Step::Ask(early())];
        assert_eq!(steps.handle_escalation(&notice), asked_again);
        assert!(
            steps.handle_escalation(&notice).is_empty(),
            "no answer to anything now"
        );
    }

    #[test]
    fn an_idle_agent_exits_when_asked_to() {
        let mut steps = Steps::new(Consent::Auto, None);
        let shutdown = ShutdownRequest::new("update");
        assert_eq!(
            steps.handle_shutdown(&shutdown, Instant::now()),
            [Step::Exit]
        );
    }

    #[test]
    fn a_running_backup_has_the_grace_period() {
        let now = Instant::now();
        let shutdown = ShutdownRequest::new("update").with_grace_period(Seconds(60));
        let running = || {
            let mut steps = Steps::new(Consent::Auto, None);
            steps.handle_request(early(), now);
            assert!(steps.handle_shutdown(&shutdown, now).is_empty());
            steps
        };
        assert_eq!(running().handle_finished(), [Step::Exit]);

        let mut steps = running();
        let end = now + Duration::from_secs(60);
        assert_eq!(steps.next_timeout(), Some(end));
        assert_eq!(steps.handle_timeout(end), [Step::CancelBackup]);
        assert!(steps.handle_timeout(end).is_empty(), "once");
        assert_eq!(steps.handle_finished(), [Step::Exit]);
    }

    #[test]
    fn an_endless_grace_period_does_no_harm() {
        let mut steps = Steps::new(Consent::Auto, None);
        steps.handle_request(early(), Instant::now());
        let shutdown = ShutdownRequest::new("").with_grace_period(Seconds(u64::MAX));
        assert!(steps.handle_shutdown(&shutdown, Instant::now()).is_empty());
        assert!(steps.next_timeout().is_some());
    }
}
