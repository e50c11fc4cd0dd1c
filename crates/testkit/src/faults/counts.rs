//! The kinds of faults, and how often each fired.

use std::fmt;

/// What can go wrong in a simulated run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Written bytes arrive later.
    Delay,
    /// A read or a write moves only some of the bytes that it could have moved.
    Split,
    /// A direction stands still for a long time.
    Stall,
    /// The connection breaks, at any byte of either direction.
    Cut,
    /// Every instance of the service's pipe is taken when a client comes (`ERROR_PIPE_BUSY`, 231).
    PipeBusy,
    /// The client is gone before it was accepted; what it wrote can be read (`ERROR_NO_DATA`, 232).
    NoData,
    /// An end is closed, and what its peer has not read is discarded (`DisconnectNamedPipe`).
    UnflushedClose,
    /// The wall clock is set.
    ClockJump,
    /// The machine sleeps: hours pass at once.
    SleepGap,
    /// A process ends without a word, between any two of its steps.
    Crash,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Delay,
        Self::Split,
        Self::Stall,
        Self::Cut,
        Self::PipeBusy,
        Self::NoData,
        Self::UnflushedClose,
        Self::ClockJump,
        Self::SleepGap,
        Self::Crash,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Split => "split",
            Self::Stall => "stall",
            Self::Cut => "cut",
            Self::PipeBusy => "pipe busy",
            Self::NoData => "no data",
            Self::UnflushedClose => "unflushed close",
            Self::ClockJump => "clock jump",
            Self::SleepGap => "sleep gap",
            Self::Crash => "crash",
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How often each kind of fault fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts([u64; FaultKind::ALL.len()]);

impl FaultCounts {
    /// Counts one.
    pub fn record(&mut self, kind: FaultKind) {
        self.0[kind.index()] += 1;
    }

    /// How often this kind fired.
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.0[kind.index()]
    }

    /// Adds those of another run.
    pub fn merge(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

/// One line for each kind.
impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, kind) in FaultKind::ALL.into_iter().enumerate() {
            if position > 0 {
                writeln!(f)?;
            }
            write!(f, "{kind:<16}{:>12}", self.of(kind))?;
        }
        Ok(())
    }
}
