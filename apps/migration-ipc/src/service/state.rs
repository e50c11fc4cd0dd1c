//! The migration as a state machine: no clock, no I/O.
//!
//! Inputs go in through `handle_*`, with the time; what is to be sent comes out of
//! [`Migration::take_effects`], what is to be stored out of [`Migration::take_changed`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use migration_ipc::Timestamp;
use migration_ipc::messages::{
    BackupCompleted, BackupProgress, BackupRequest, Category, DelayRequest, ErrorReport,
    EscalationNotice, EscalationReason, OverallStatus, Priority, SessionId, StatusUpdate,
    UserAction, UserId,
};

use super::agents::{AgentId, Agents, Audience, NamedAccount, Offer};
use super::key::{AgentKey, UserKey, UserScope};
use super::lease::{Lease, LeaseHeld, Presence};
use super::overview;
use super::policy::{DelayPolicy, Ruling};
use super::record::{Note, Phase, Terms, UserRecord};

/// What the configuration says.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) scope: UserScope,
    pub(crate) delays: DelayPolicy,
    /// What everybody is asked for whose agent announces itself for the first time.
    pub(crate) on_announce: Option<RequestTemplate>,
}

/// A request whose deadline counts from the moment it is made.
#[derive(Debug, Clone)]
pub(crate) struct RequestTemplate {
    pub(crate) within: Duration,
    pub(crate) priority: Priority,
    pub(crate) categories: Vec<Category>,
}

impl RequestTemplate {
    fn terms(&self, now: Timestamp) -> Terms {
        Terms {
            priority: self.priority.clone(),
            deadline: now + self.within,
            categories: self.categories.clone(),
        }
    }
}

/// Something to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    Request {
        to: AgentId,
        request: BackupRequest,
    },
    Escalation {
        to: AgentId,
        notice: EscalationNotice,
    },
    Broadcast(StatusUpdate),
}

/// What is to be stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// To be durable before anybody is told.
    pub(crate) decided: BTreeSet<UserKey>,
    /// Progress, which may be lost: the next message has it again.
    pub(crate) progressed: BTreeSet<UserKey>,
    /// Whether the standing request is another one now.
    pub(crate) standing_request: bool,
}

impl Changed {
    pub(crate) fn merge(&mut self, other: Self) {
        self.decided.extend(other.decided);
        self.progressed.extend(other.progressed);
        self.standing_request |= other.standing_request;
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there is more than progress.
    pub(crate) fn is_decided(&self) -> bool {
        !self.decided.is_empty() || self.standing_request
    }

    /// Takes all but the progress out.
    pub(crate) fn take_decided(&mut self) -> Self {
        let progressed = std::mem::take(&mut self.progressed);
        std::mem::replace(
            self,
            Self {
                progressed,
                ..Self::default()
            },
        )
    }
}

/// How an agent's connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// The agent said that it exits.
    Orderly,
    /// The agent may come back.
    Lost,
}

/// What became of an operator's request for backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Requested {
    /// Users whose backup is pending now.
    pub(crate) users: usize,
    /// Agents that are told at once.
    pub(crate) agents: usize,
    /// Whether it stands for users that are not known yet, too.
    pub(crate) standing: bool,
}

/// The answer to a request for a delay.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum DelayAnswer {
    Granted(BackupRequest),
    Escalated(EscalationNotice),
}

/// Why an agent's message was refused. The text goes to the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    LeaseHeld(#[from] LeaseHeld),
    #[error("a delay must be longer than 0 seconds")]
    EmptyDelay,
    #[error("the backup is running and cannot be put off")]
    DelayWhileRunning,
    #[error("the backup is complete and cannot be put off")]
    DelayWhenComplete,
}

/// The state of all users.
///
/// Invariant: the user of every connected agent has a record.
#[derive(Debug)]
pub(crate) struct Migration {
    rules: Rules,
    users: BTreeMap<UserKey, UserRecord>,
    /// What users that are not known yet will be asked for.
    standing_request: Option<Terms>,
    agents: Agents,
    /// What was broadcast last.
    overall: OverallStatus,
    effects: Vec<Effect>,
    changed: Changed,
}

impl Migration {
    pub(crate) fn new(
        rules: Rules,
        users: impl IntoIterator<Item = UserRecord>,
        standing_request: Option<Terms>,
        now: Timestamp,
    ) -> Self {
        let mut migration = Self {
            overall: OverallStatus::Waiting,
            agents: Agents::new(rules.scope),
            rules,
            users: BTreeMap::new(),
            standing_request: None,
            effects: Vec::new(),
            changed: Changed::default(),
        };
        migration.restore(users, standing_request, now);
        migration
    }

    /// Takes over what is stored, and forgets what is not, but for the agents that are connected.
    pub(crate) fn restore(
        &mut self,
        users: impl IntoIterator<Item = UserRecord>,
        standing_request: Option<Terms>,
        now: Timestamp,
    ) {
        self.users = users
            .into_iter()
            .map(|user| (user.key.clone(), user))
            .collect();
        for user in self.users.values_mut() {
            match &mut user.lease {
                // Nobody could renew it meanwhile.
                Some(lease) => lease.restore(self.agents.presence(lease.holder()), now),
                None if user.phase == Phase::Running => user.interrupt(),
                None => {}
            }
        }
        self.standing_request = standing_request;
        self.overall = overview::overall(self.users.values());
        self.effects.clear();
        self.changed = Changed::default();
    }

    pub(crate) fn user(&self, key: &UserKey) -> Option<&UserRecord> {
        self.users.get(key)
    }

    /// The users after this one in the order of their keys; all of them after none.
    pub(crate) fn users_after(&self, key: Option<&UserKey>) -> impl Iterator<Item = &UserRecord> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = key.map_or(Unbounded, Excluded);
        self.users.range((from, Unbounded)).map(|(_, user)| user)
    }

    pub(crate) fn standing_request(&self) -> Option<&Terms> {
        self.standing_request.as_ref()
    }

    pub(crate) fn status(&self) -> StatusUpdate {
        overview::status(self.users.values())
    }

    /// What is to be sent since the last call, in this order.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What changed since the last call.
    pub(crate) fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    // --- who is there --------------------------------------------------------------------------

    /// The configuration knows a user.
    pub(crate) fn handle_roster(&mut self, known: &NamedAccount) {
        let key = UserKey::of_account(&known.account);
        if !self.users.contains_key(&key) {
            self.decide(&key, |user| user.name = known.name.clone());
        }
    }

    /// An agent announced itself. Returns the request that is pending for its user, unless another
    /// agent of the user is at it.
    pub(crate) fn handle_announced(
        &mut self,
        id: AgentId,
        agent: AgentKey,
        name: UserId,
        now: Timestamp,
    ) -> Option<BackupRequest> {
        let key = self.agents.user_of(&agent);
        let template = self.rules.on_announce.clone();
        let pending = self.decide(&key, |user| {
            if !name.is_empty() {
                user.name = name;
            }
            user.last_seen = Some(now);
            if let Some(lease) = user.lease.as_mut().filter(|lease| lease.is_held_by(&agent)) {
                lease.handle_back(now);
            }
            if let Some(template) = template.filter(|_| user.is_new()) {
                user.request(template.terms(now));
            }
            let lease = user.lease.as_ref();
            let free = lease.is_none_or(|lease| lease.check(&agent, now).is_ok());
            user.pending.clone().filter(|_| free)
        });
        let request = pending.map(|terms| terms.to_request(&key));
        let offer = if request.is_some() {
            Offer::Made
        } else {
            Offer::Open
        };
        self.agents.insert(id, agent, offer);
        request
    }

    /// An agent's connection ended. If it held the lease and does not come back, another agent of
    /// the user is asked: at once when it left, after a while when its connection was lost.
    pub(crate) fn handle_gone(&mut self, id: AgentId, how: Leaving, now: Timestamp) {
        let Some(agent) = self.agents.remove(id) else {
            return;
        };
        let key = self.agents.user_of(&agent);
        let connected = self.agents.presence(&agent) == Presence::Connected;
        let released = self.decide(&key, |user| {
            user.last_seen = Some(now);
            let lease = user.lease.as_mut().filter(|lease| lease.is_held_by(&agent));
            match (lease, how) {
                (Some(_), _) if connected => false,
                (Some(lease), Leaving::Lost) => {
                    lease.handle_lost(now);
                    false
                }
                (Some(_), Leaving::Orderly) => true,
                (None, _) => false,
            }
        });
        if released {
            self.release(&key);
        }
    }

    /// Nobody backs the user up any more: the next agent is asked.
    fn release(&mut self, key: &UserKey) {
        self.decide(key, UserRecord::interrupt);
        if let Some(next) = self.agents.untold(key).first() {
            self.offer(*next, key);
        }
    }

    // --- what agents say -----------------------------------------------------------------------

    pub(crate) fn handle_started(
        &mut self,
        agent: &AgentKey,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let key = self.take_lease(agent, now)?;
        self.decide(&key, |user| user.begin(now));
        Ok(())
    }

    pub(crate) fn handle_progress(
        &mut self,
        agent: &AgentKey,
        progress: BackupProgress,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let key = self.take_lease(agent, now)?;
        if self
            .users
            .get(&key)
            .is_none_or(|user| user.phase != Phase::Running)
        {
            self.decide(&key, |user| user.resume(now));
        }
        if let Some(user) = self.users.get_mut(&key) {
            user.progress(progress);
        }
        self.changed.progressed.insert(key);
        Ok(())
    }

    pub(crate) fn handle_completed(
        &mut self,
        agent: &AgentKey,
        completed: BackupCompleted,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let key = self.take_lease(agent, now)?;
        self.decide(&key, |user| user.complete(completed, now));
        Ok(())
    }

    /// Applies the delay policy. What the agent says about delays used does not count.
    pub(crate) fn handle_delay(
        &mut self,
        agent: &AgentKey,
        delay: &DelayRequest,
        now: Timestamp,
    ) -> Result<DelayAnswer, Refusal> {
        let key = self.agents.user_of(agent);
        let user = self.users.get(&key);
        match user.map(|user| user.phase) {
            Some(Phase::Running) => return Err(Refusal::DelayWhileRunning),
            Some(Phase::Completed) => return Err(Refusal::DelayWhenComplete),
            None | Some(Phase::Idle | Phase::Requested | Phase::Delayed | Phase::Failed) => {}
        }
        let policy = self.rules.delays;
        match policy.rule(
            user.map_or(0, |user| user.delays_used),
            delay.requested_delay,
        ) {
            Ruling::Nothing => Err(Refusal::EmptyDelay),
            Ruling::Granted => {
                let longer = delay.requested_delay.as_duration();
                let terms = self.decide(&key, |user| user.delay(longer, now).clone());
                Ok(DelayAnswer::Granted(terms.to_request(&key)))
            }
            Ruling::UsedUp => {
                let details = format!("all {} delays are used", policy.delays);
                Ok(self.refuse_delay(&key, agent, details, now))
            }
            Ruling::TooLong => {
                let longest = policy.longest.as_secs() / 3600;
                let details = format!(
                    "a delay of {} was asked for; the longest is {longest} h",
                    delay.requested_delay
                );
                Ok(self.refuse_delay(&key, agent, details, now))
            }
        }
    }

    /// Escalates a delay that the policy does not grant. The agent that asked gets the notice as
    /// its answer, the user's other agents get it as a message.
    fn refuse_delay(
        &mut self,
        key: &UserKey,
        asking: &AgentKey,
        details: String,
        now: Timestamp,
    ) -> DelayAnswer {
        let notice = EscalationNotice::new(EscalationReason::MaxDelaysExceeded, details);
        self.tell(self.agents.of_user_but(key, asking), &notice);
        self.decide(key, |user| user.escalate(&notice, now));
        DelayAnswer::Escalated(notice)
    }

    pub(crate) fn handle_action(&mut self, agent: &AgentKey, action: UserAction, now: Timestamp) {
        let key = self.agents.user_of(agent);
        self.decide(&key, |user| {
            user.last_action = Some(Note::new(now, action.action))
        });
    }

    pub(crate) fn handle_error(&mut self, agent: &AgentKey, report: &ErrorReport, now: Timestamp) {
        let key = self.agents.user_of(agent);
        let text = format!("{}: {}", report.error_code, report.message);
        self.decide(&key, |user| user.last_error = Some(Note::new(now, text)));
    }

    // --- what operators say --------------------------------------------------------------------

    /// A backup is asked for. It stays pending for users that are not connected.
    pub(crate) fn handle_request(
        &mut self,
        audience: &Audience,
        request: BackupRequest,
    ) -> Requested {
        if let (Audience::Account(known), UserScope::Account) = (audience, self.agents.scope()) {
            self.handle_roster(known);
        }
        let terms = Terms::from(request);
        let keys = self.users_in(audience);
        let standing = *audience == Audience::All;
        let mut requested = Requested {
            users: keys.len(),
            agents: 0,
            standing,
        };
        for key in keys {
            self.decide(&key, |user| user.request(terms.clone()));
            let agents = self.agents.of_user(&key);
            requested.agents += agents.len();
            agents.into_iter().for_each(|agent| self.offer(agent, &key));
        }
        if standing {
            self.standing_request = Some(terms);
            self.changed.standing_request = true;
        }
        requested
    }

    /// An operator escalates by hand; it is recorded like an escalation of the service's own.
    /// Returns the agents that are told.
    pub(crate) fn handle_escalation(
        &mut self,
        audience: &Audience,
        notice: &EscalationNotice,
        now: Timestamp,
    ) -> usize {
        for key in self.users_in(audience) {
            self.decide(&key, |user| user.escalate(notice, now));
        }
        let agents = self.agents.of_audience(audience);
        let told = agents.len();
        self.tell(agents, notice);
        told
    }

    /// The connected agents of a user, each with its session.
    pub(crate) fn sessions_of(&self, user: &UserKey) -> Vec<(AgentId, SessionId)> {
        self.agents.sessions_of(user)
    }

    /// The connected agents of an audience.
    pub(crate) fn agents_in(&self, audience: &Audience) -> Vec<AgentId> {
        self.agents.of_audience(audience)
    }

    fn users_in(&self, audience: &Audience) -> BTreeSet<UserKey> {
        match audience {
            Audience::All => self.users.keys().cloned().collect(),
            Audience::Account(known) => {
                let meant = |key: &&UserKey| key.account() == known.account.as_str();
                self.users.keys().filter(meant).cloned().collect()
            }
            Audience::Session { .. } => self.agents.users_of_audience(audience),
        }
    }

    // --- time ----------------------------------------------------------------------------------

    /// The next moment at which [`Self::handle_timeout`] has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Timestamp> {
        self.users
            .values()
            .flat_map(|user| [user.open_deadline(), user.lease_expiry()])
            .flatten()
            .min()
    }

    /// Ends the leases of agents that did not come back, and escalates backups whose deadline has
    /// passed.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) {
        for key in self.due(UserRecord::lease_expiry, now) {
            self.release(&key);
        }
        for key in self.due(UserRecord::open_deadline, now) {
            let details = "the deadline has passed and the backup is not complete";
            let notice = EscalationNotice::new(EscalationReason::Timeout, details);
            self.tell(self.agents.of_user(&key), &notice);
            self.decide(&key, |user| user.escalate(&notice, now));
        }
    }

    fn due(&self, time: fn(&UserRecord) -> Option<Timestamp>, now: Timestamp) -> Vec<UserKey> {
        let due = |user: &&UserRecord| time(user).is_some_and(|at| at <= now);
        let users = self.users.values().filter(due);
        users.map(|user| user.key.clone()).collect()
    }

    // --- inside --------------------------------------------------------------------------------

    /// Changes a user's record, which is made if there is none, and announces the whole's status
    /// if it became another one.
    fn decide<R>(&mut self, key: &UserKey, change: impl FnOnce(&mut UserRecord) -> R) -> R {
        let standing_request = &self.standing_request;
        let user = self.users.entry(key.clone()).or_insert_with(|| {
            let mut user = UserRecord::new(key.clone(), key.account().into());
            if let Some(terms) = standing_request {
                user.request(terms.clone());
            }
            user
        });
        let result = change(user);
        self.changed.decided.insert(key.clone());
        let overall = overview::overall(self.users.values());
        if overall != self.overall {
            self.overall = overall;
            self.effects.push(Effect::Broadcast(self.status()));
        }
        result
    }

    /// The user's lease for this agent, or who has it.
    fn take_lease(&mut self, agent: &AgentKey, now: Timestamp) -> Result<UserKey, LeaseHeld> {
        let key = self.agents.user_of(agent);
        let lease = self
            .users
            .get_mut(&key)
            .and_then(|user| user.lease.as_mut());
        match lease {
            Some(lease) if lease.is_held_by(agent) => {
                lease.renew(now);
                self.changed.progressed.insert(key.clone());
                return Ok(key);
            }
            Some(lease) => lease.check(agent, now)?,
            None => {}
        }
        let presence = self.agents.presence(agent);
        self.decide(&key, |user| {
            user.lease = Some(Lease::new(agent.clone(), presence, now));
        });
        Ok(key)
    }

    fn offer(&mut self, to: AgentId, user: &UserKey) {
        if let Some(terms) = self.users.get(user).and_then(|user| user.pending.as_ref()) {
            self.agents.told(to);
            self.effects.push(Effect::Request {
                to,
                request: terms.to_request(user),
            });
        }
    }

    fn tell(&mut self, agents: Vec<AgentId>, notice: &EscalationNotice) {
        let told = agents.into_iter().map(|to| Effect::Escalation {
            to,
            notice: notice.clone(),
        });
        self.effects.extend(told);
    }
}

#[cfg(test)]
mod tests;
