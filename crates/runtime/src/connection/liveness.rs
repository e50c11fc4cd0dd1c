//! When to send a heartbeat, and when a silent peer counts as gone. Pure: time is an argument.
//!
//! Plain peers send a heartbeat every interval whatever else they send, and expect the same;
//! they are judged only after their first one, because a peer that never sends any is not
//! stale. New peers send one only when nothing else was sent for an interval, so their silence
//! means something from the start; while their handlers are stuck they send one every interval
//! too, because it says so.

use std::time::Duration;

use tokio::time::Instant;

/// Which rule a connection follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The peer has not shown yet what it is: nothing is sent, nobody is judged.
    Undecided,
    /// A heartbeat every interval; stale only after the first one of theirs.
    Plain,
    /// A heartbeat after an interval without sending; stale by silence alone.
    New,
}

/// Whether the oldest message that was received has been waiting for its handler's end for longer
/// than an interval, and the peer wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handlers {
    Fine,
    Stuck,
}

/// What a tick asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fine,
    SendHeartbeat,
    Stale,
}

/// The liveness of one connection.
#[derive(Debug)]
pub(crate) struct Liveness {
    interval: Duration,
    stale_intervals: u32,
    rule: Rule,
    last_sent: Instant,
    last_heartbeat_sent: Instant,
    last_received: Instant,
    heard_heartbeat: bool,
    /// When the machine should have looked at us last; a gap shows that it slept.
    last_tick: Instant,
}

impl Liveness {
    pub(crate) fn new(interval: Duration, stale_intervals: u32, now: Instant) -> Self {
        Self {
            interval,
            stale_intervals,
            rule: Rule::Undecided,
            last_sent: now,
            last_heartbeat_sent: now,
            last_received: now,
            heard_heartbeat: false,
            last_tick: now,
        }
    }

    pub(crate) fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
    }

    pub(crate) fn handle_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    pub(crate) fn handle_received(&mut self, now: Instant) {
        self.last_received = now;
    }

    pub(crate) fn handle_heartbeat_sent(&mut self, now: Instant) {
        self.last_heartbeat_sent = now;
        self.last_sent = now;
    }

    pub(crate) fn handle_heartbeat_received(&mut self) {
        self.heard_heartbeat = true;
    }

    /// Looks at the clock. While we pause reading, the silence is ours, not the peer's.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        reading_paused: bool,
        handlers: Handlers,
    ) -> Verdict {
        if reading_paused {
            self.last_received = now;
        }
        let overslept = now.duration_since(self.last_tick) > self.interval * 2;
        self.last_tick = now;
        if overslept {
            // The machine slept, or our process was frozen: what the peer sent meanwhile may
            // still be on its way, so everybody gets one interval.
            let patience = self.interval * (self.stale_intervals - 1);
            self.last_received = self
                .last_received
                .max(now.checked_sub(patience).unwrap_or(now));
            tracing::info!("clock gap: liveness grants one interval of grace");
        }
        if self.stale_at().is_some_and(|at| at <= now) {
            return Verdict::Stale;
        }
        let due = self.heartbeat_at().is_some_and(|at| at <= now);
        let telling =
            handlers == Handlers::Stuck && self.last_heartbeat_sent + self.interval <= now;
        if due || telling {
            return Verdict::SendHeartbeat;
        }
        Verdict::Fine
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// When `poll` should be called next, at the latest.
    pub(crate) fn deadline(&self) -> Instant {
        let tick = self.last_tick + self.interval;
        [self.heartbeat_at(), self.stale_at()]
            .into_iter()
            .flatten()
            .fold(tick, Instant::min)
    }

    fn heartbeat_at(&self) -> Option<Instant> {
        match self.rule {
            Rule::Undecided => None,
            Rule::Plain => Some(self.last_heartbeat_sent + self.interval),
            Rule::New => Some(self.last_sent + self.interval),
        }
    }

    fn stale_at(&self) -> Option<Instant> {
        let judged = match self.rule {
            Rule::Undecided => false,
            Rule::Plain => self.heard_heartbeat,
            Rule::New => true,
        };
        judged.then(|| self.last_received + self.interval * self.stale_intervals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn liveness(rule: Rule) -> (Liveness, Instant) {
        let start = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, 3, start);
        liveness.set_rule(rule);
        (liveness, start)
    }

    /// Polls at every deadline until `until`, feeding each verdict to `then`.
    fn run(
        liveness: &mut Liveness,
        until: Instant,
        mut then: impl FnMut(&mut Liveness, Instant, Verdict),
    ) {
        while liveness.deadline() <= until {
            let now = liveness.deadline();
            let verdict = liveness.poll(now, false, Handlers::Fine);
            then(liveness, now, verdict);
            if verdict == Verdict::Stale {
                return;
            }
        }
    }

    #[test]
    fn a_plain_peer_gets_a_heartbeat_every_interval_whatever_else_is_sent() {
        let (mut liveness, start) = liveness(Rule::Plain);
        let mut sent = Vec::new();
        run(
            &mut liveness,
            start + INTERVAL * 3,
            |liveness, now, verdict| {
                liveness.handle_sent(now);
                if verdict == Verdict::SendHeartbeat {
                    liveness.handle_heartbeat_sent(now);
                    sent.push(now - start);
                }
            },
        );
        assert_eq!(sent, [INTERVAL, INTERVAL * 2, INTERVAL * 3]);
    }

    #[test]
    fn a_new_peer_gets_a_heartbeat_only_after_an_interval_without_sending() {
        let (mut liveness, start) = liveness(Rule::New);
        liveness.handle_sent(start + INTERVAL / 2);
        assert_eq!(
            liveness.poll(start + INTERVAL, false, Handlers::Fine),
            Verdict::Fine
        );
        assert_eq!(
            liveness.poll(start + INTERVAL * 3 / 2, false, Handlers::Fine),
            Verdict::SendHeartbeat
        );
    }

    #[test]
    fn a_new_peer_gets_a_heartbeat_every_interval_while_handlers_are_stuck() {
        let (mut liveness, start) = liveness(Rule::New);
        let mut sent = 0;
        for second in 1..=120 {
            let now = start + Duration::from_secs(second);
            liveness.handle_sent(now);
            liveness.handle_received(now);
            if liveness.poll(now, false, Handlers::Stuck) == Verdict::SendHeartbeat {
                liveness.handle_heartbeat_sent(now);
                sent += 1;
            }
        }
        assert_eq!(sent, 4);
    }

    #[test]
    fn a_silent_new_peer_is_stale_after_three_intervals() {
        let (mut liveness, start) = liveness(Rule::New);
        let mut stale = None;
        run(
            &mut liveness,
            start + INTERVAL * 9,
            |liveness, now, verdict| match verdict {
                Verdict::SendHeartbeat => liveness.handle_heartbeat_sent(now),
                Verdict::Stale => stale = Some(now - start),
                Verdict::Fine => {}
            },
        );
        assert_eq!(stale, Some(INTERVAL * 3));
    }

    #[test]
    fn a_plain_peer_is_judged_only_after_its_first_heartbeat() {
        let (mut liveness, start) = liveness(Rule::Plain);
        let far = start + INTERVAL * 50;
        run(&mut liveness, far, |liveness, now, verdict| {
            assert_ne!(verdict, Verdict::Stale);
            liveness.handle_heartbeat_sent(now);
        });
        liveness.handle_received(far);
        liveness.handle_heartbeat_received();
        let mut stale = None;
        run(
            &mut liveness,
            far + INTERVAL * 9,
            |liveness, now, verdict| match verdict {
                Verdict::Stale => stale = Some(now - far),
                Verdict::SendHeartbeat | Verdict::Fine => liveness.handle_heartbeat_sent(now),
            },
        );
        assert_eq!(stale, Some(INTERVAL * 3));
    }

    #[test]
    fn our_own_pause_is_not_the_peers_silence() {
        let (mut liveness, start) = liveness(Rule::New);
        for step in 1..20 {
            let now = start + INTERVAL * step;
            liveness.handle_sent(now);
            assert_eq!(liveness.poll(now, true, Handlers::Fine), Verdict::Fine);
        }
    }

    #[test]
    fn after_a_sleep_of_the_machine_everybody_gets_one_interval() {
        let (mut liveness, start) = liveness(Rule::New);
        let woke = start + INTERVAL * 1000;
        assert_eq!(
            liveness.poll(woke, false, Handlers::Fine),
            Verdict::SendHeartbeat
        );
        liveness.handle_heartbeat_sent(woke);
        assert_eq!(
            liveness.poll(woke + INTERVAL, false, Handlers::Fine),
            Verdict::Stale
        );
    }
}
