//! How many lines of the log one peer can cause.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The lines that somebody may still cause. What is beyond them is counted, and the count is written
/// once: with the first line after the interval, or in the end.
///
/// Without it whoever can send a malformed message a million times fills the disk, or pushes what
/// matters out of a log that turns over.
#[derive(Debug)]
pub(crate) struct LogBudget {
    /// Whose lines these are.
    subject: Box<str>,
    matter: Matter,
    lines: u32,
    interval: Duration,
    state: Mutex<State>,
}

/// What the lines are about, which says how loud it is that some are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matter {
    /// What should not be: a warning.
    Misdeeds,
    /// What is nobody's fault.
    Comings,
}

#[derive(Debug)]
struct State {
    /// When the interval began; `None` before the first line.
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is written, after the number of those that were left out before, if there are any.
    Written {
        left_out: u64,
    },
    /// It is the first that is left out: that is said instead.
    FirstLeftOut,
    LeftOut,
}

impl LogBudget {
    /// So many lines in each interval.
    pub(crate) fn new(
        subject: impl Into<Box<str>>,
        matter: Matter,
        lines: u32,
        interval: Duration,
    ) -> Self {
        Self {
            subject: subject.into(),
            matter,
            lines,
            interval,
            state: Mutex::new(State {
                since: None,
                written: 0,
                left_out: 0,
            }),
        }
    }

    /// Writes a line, if there is room for it.
    pub(crate) fn line(&self, write: impl FnOnce()) {
        match self.place(Instant::now()) {
            Place::Written { left_out } => {
                self.tell(left_out);
                write();
            }
            Place::FirstLeftOut => self.tell_more(),
            Place::LeftOut => {}
        }
    }

    fn place(&self, now: Instant) -> Place {
        let mut state = self.lock();
        let over = |since| now.saturating_duration_since(since) >= self.interval;
        if state.since.is_none_or(over) {
            let left_out = state.left_out;
            *state = State {
                since: Some(now),
                written: 1,
                left_out: 0,
            };
            return Place::Written { left_out };
        }
        if state.written < self.lines {
            state.written += 1;
            return Place::Written { left_out: 0 };
        }
        state.left_out += 1;
        if state.left_out == 1 {
            Place::FirstLeftOut
        } else {
            Place::LeftOut
        }
    }

    fn tell_more(&self) {
        const TEXT: &str = "no more lines in this interval: the rest is counted";
        let Self {
            subject,
            lines,
            interval,
            ..
        } = self;
        match self.matter {
            Matter::Misdeeds => tracing::warn!(%subject, lines, ?interval, "{TEXT}"),
            Matter::Comings => tracing::info!(%subject, lines, ?interval, "{TEXT}"),
        }
    }

    fn tell(&self, left_out: u64) {
        const TEXT: &str = "lines that were left out";
        if left_out == 0 {
            return;
        }
        let subject = &self.subject;
        match self.matter {
            Matter::Misdeeds => tracing::warn!(%subject, left_out, "{TEXT}"),
            Matter::Comings => tracing::info!(%subject, left_out, "{TEXT}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogBudget {
    fn drop(&mut self) {
        let left_out = self.lock().left_out;
        self.tell(left_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn written(left_out: u64) -> Place {
        Place::Written { left_out }
    }

    #[test]
    fn an_interval_has_its_lines_and_the_next_one_counts_the_rest() {
        let budget = LogBudget::new("somebody", Matter::Misdeeds, 3, MINUTE);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(budget.place(start), written(0));
        }
        assert_eq!(budget.place(start), Place::FirstLeftOut);
        for _ in 0..99 {
            assert_eq!(budget.place(start + MINUTE / 2), Place::LeftOut);
        }
        assert_eq!(budget.place(start + MINUTE), written(100));
        assert_eq!(budget.place(start + MINUTE), written(0));
        assert_eq!(budget.place(start + MINUTE), written(0));
        assert_eq!(budget.place(start + MINUTE), Place::FirstLeftOut);
    }
}
