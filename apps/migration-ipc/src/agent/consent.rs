//! Who decides whether a backup starts.

use std::time::Duration;

use clap::ValueEnum;

/// How the agent gets its user's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Consent {
    /// Ask in the terminal.
    Ask,
    /// Start every backup at once.
    Auto,
    /// Decline every backup.
    Deny,
}

/// What the user chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Start,
    Delay(Duration),
    Decline,
}

impl Choice {
    /// Reads an answer to the agent's question.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let choice = match words.next()?.to_ascii_lowercase().as_str() {
            "s" | "start" | "y" | "yes" => Self::Start,
            "n" | "no" => Self::Decline,
            "d" | "delay" => {
                let hours: u64 = words.next().unwrap_or("1").parse().ok()?;
                Self::Delay(Duration::from_secs(hours.checked_mul(3600)?))
            }
            _ => return None,
        };
        words.next().is_none().then_some(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_people_type_them() {
        let hours = |hours: u64| Some(Choice::Delay(Duration::from_secs(hours * 3600)));
        let cases = [
            ("s", Some(Choice::Start)),
            (" Start ", Some(Choice::Start)),
            ("yes", Some(Choice::Start)),
            ("n", Some(Choice::Decline)),
            ("d", hours(1)),
            ("delay 24", hours(24)),
            ("d 0", hours(0)),
            ("d soon", None),
            ("d -1", None),
            ("d 99999999999999999999", None),
            ("s n", None),
            ("", None),
            ("what?", None),
        ];
        for (line, choice) in cases {
            assert_eq!(Choice::parse(line), choice, "{line}");
        }
    }
}
