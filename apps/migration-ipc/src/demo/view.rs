//! What one sees while the agents work: a bar for each, or plain lines where no terminal is.

use std::io::{self, IsTerminal as _};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::{print, visible};
use crate::operator::UserStatus;
use crate::service::Phase;

/// Plain lines come at steps of this many percent.
const STEP: u8 = 25;

/// The progress of all agents.
pub(super) enum View {
    Bars(Vec<ProgressBar>),
    Lines(Vec<Shown>),
}

/// What the last line about one agent said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shown {
    name: String,
    phase: Phase,
    step: u8,
}

impl View {
    pub(super) fn new(agents: &[String]) -> Self {
        if io::stderr().is_terminal() {
            Self::bars(agents)
        } else {
            Self::lines(agents)
        }
    }

    fn bars(agents: &[String]) -> Self {
        let template = "{prefix:10} [{bar:30}] {bytes:>10} of {total_bytes:10} {wide_msg}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let all = MultiProgress::new();
        let bar = |name: &String| {
            let bar = all.add(ProgressBar::new(0).with_style(style.clone()));
            bar.set_prefix(name.clone());
            bar
        };
        Self::Bars(agents.iter().map(bar).collect())
    }

    fn lines(agents: &[String]) -> Self {
        let shown = |name: &String| Shown {
            name: name.clone(),
            phase: Phase::Idle,
            step: 0,
        };
        Self::Lines(agents.iter().map(shown).collect())
    }

    /// Shows how far an agent is.
    pub(super) fn show(&mut self, agent: usize, user: &UserStatus) -> io::Result<()> {
        match self {
            Self::Bars(bars) => {
                if let Some(bar) = bars.get(agent) {
                    show_bar(bar, user);
                }
                Ok(())
            }
            Self::Lines(shown) => match shown.get_mut(agent) {
                Some(shown) => shown.update(user).map_or(Ok(()), print),
                None => Ok(()),
            },
        }
    }
}

fn show_bar(bar: &ProgressBar, user: &UserStatus) {
    bar.set_length(user.bytes_total);
    bar.set_position(user.bytes_transferred);
    match user.state {
        Phase::Completed | Phase::Failed if bar.is_finished() => {}
        Phase::Completed | Phase::Failed => bar.finish_with_message(user.state.to_string()),
        Phase::Idle | Phase::Requested | Phase::Delayed | Phase::Running => {
            let now = user
                .current_file
                .clone()
                .unwrap_or_else(|| user.state.to_string());
            bar.set_message(visible(&now).into_owned());
        }
    }
}

impl Shown {
    /// The next line, if there is something new to say.
    fn update(&mut self, user: &UserStatus) -> Option<String> {
        let step = (0..=100 / STEP).rfind(|step| f64::from(step * STEP) <= user.progress);
        let new = Self {
            name: self.name.clone(),
            phase: user.state,
            step: step.unwrap_or(0),
        };
        if new == *self {
            return None;
        }
        *self = new;
        Some(format!(
            "{}: {}, {:.0}% ({} of {} bytes)",
            self.name, user.state, user.progress, user.bytes_transferred, user.bytes_total
        ))
    }
}
