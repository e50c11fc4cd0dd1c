//! How likely each fault is, and how bad.

use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;

use super::counts::FaultKind;
use super::wire::End;

/// How likely each kind of fault is, and within which limits what it does is drawn.
///
/// | kind | drawn for each |
/// |---|---|
/// | delay, stall | write |
/// | split | read and write |
/// | cut, pipe busy, no data | connection |
/// | unflushed close | end that is dropped while its peer has something to read |
/// | clock jump, sleep gap, crash | step of the test that asks [`strikes`](Self::strikes) |
#[derive(Clone, Debug, PartialEq)]
pub struct FaultPlan {
    chances: [f64; FaultKind::ALL.len()],
    /// How long a delay takes.
    pub delay: RangeInclusive<Duration>,
    /// How long a stall takes.
    pub stall: RangeInclusive<Duration>,
    /// How long the pipe is busy.
    pub busy: RangeInclusive<Duration>,
    /// After how long a client is gone that is gone before it is accepted.
    pub gone_after: RangeInclusive<Duration>,
    /// How many bytes a direction carries at most before it is cut; small numbers are drawn as
    /// often as big ones of any magnitude.
    pub cut_within: u64,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub fn calm() -> Self {
        let millis = Duration::from_millis;
        Self {
            chances: [0.0; FaultKind::ALL.len()],
            delay: millis(1)..=millis(200),
            stall: millis(1_000)..=millis(60_000),
            busy: millis(1)..=millis(5_000),
            gone_after: millis(0)..=millis(20),
            cut_within: 64 * 1024,
        }
    }

    /// A plan of its own for each run: some kinds are left out, and of the others some are rare and
    /// some frequent. Runs that differ this much find more than runs that all do a little of
    /// everything (Groce and others, "Swarm Testing", 2012).
    pub fn drawn(random: &mut Rng) -> Self {
        let mut plan = Self::calm();
        for kind in FaultKind::ALL {
            if random.u8(..4) > 0 {
                let frequent = match kind {
                    FaultKind::Delay | FaultKind::Split => 0.6,
                    FaultKind::Stall => 0.04,
                    FaultKind::Cut | FaultKind::UnflushedClose => 0.8,
                    FaultKind::PipeBusy | FaultKind::NoData => 0.3,
                    FaultKind::ClockJump | FaultKind::SleepGap | FaultKind::Crash => 0.3,
                };
                plan = plan.with(kind, random.f64() * frequent);
            }
        }
        plan.cut_within = 1 << random.u32(6..18);
        plan
    }

    /// Sets how likely a kind is, from 0 (never) to 1 (whenever it can).
    #[must_use]
    pub fn with(mut self, kind: FaultKind, chance: f64) -> Self {
        self.chances[kind.index()] = chance;
        self
    }

    /// How likely a kind is.
    pub fn chance(&self, kind: FaultKind) -> f64 {
        self.chances[kind.index()]
    }

    /// Draws whether a fault of this kind strikes now. Draws nothing when it never can.
    pub fn strikes(&self, kind: FaultKind, random: &mut Rng) -> bool {
        let chance = self.chance(kind);
        chance > 0.0 && random.f64() < chance
    }

    /// Draws where a connection breaks.
    pub(super) fn draw_cut(&self, random: &mut Rng) -> Cut {
        let magnitude = random.u32(0..=self.cut_within.max(1).ilog2());
        Cut {
            writer: random
                .choice([End::Client, End::Service])
                .unwrap_or(End::Client),
            after: random.u64(0..1 << magnitude),
            learns: match random.u8(..3) {
                0 => Learns::AtOnce,
                1 => Learns::After(draw(&self.stall, random)),
                _ => Learns::AtNextWrite,
            },
        }
    }
}

/// Draws a time within these limits, to the millisecond.
pub(super) fn draw(limits: &RangeInclusive<Duration>, random: &mut Rng) -> Duration {
    let millis = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (shortest, longest) = (millis(limits.start()), millis(limits.end()));
    Duration::from_millis(random.u64(shortest..=longest.max(shortest)))
}

/// Where and how a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Whose bytes are lost.
    pub writer: End,
    /// How many bytes of that end arrive; the next one breaks the connection.
    pub after: u64,
    /// When that end learns of it. Its peer reads what arrived, and then the end.
    pub learns: Learns,
}

/// When an end learns that its connection is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learns {
    /// The write of the lost byte fails.
    AtOnce,
    /// Writes succeed, into nowhere, for this long; then writes fail and reads end.
    After(Duration),
    /// The write of the lost byte succeeds, the next one fails; if there is none, it never learns.
    AtNextWrite,
}
