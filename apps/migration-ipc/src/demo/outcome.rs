//! How the demonstration came out: a table, and the checker's word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backup::check::{CheckReport, check};
use crate::backup::{Cancel, Category, FolderName};
use crate::operator::{UserStatus, bytes, table};
use crate::service::Phase;

/// How many differences are shown per agent.
const SHOWN_DIFFERENCES: usize = 10;

/// What became of one agent's backup.
pub(super) struct Outcome {
    agent: String,
    user: UserStatus,
    checked: Result<CheckReport, String>,
}

impl Outcome {
    /// Checks the backup in `folder` against its sources. Blocks.
    pub(super) fn check(
        agent: String,
        user: UserStatus,
        folder: &Path,
        sources: &[Category],
        cancel: &Cancel,
    ) -> Self {
        let sources: BTreeMap<FolderName, PathBuf> = sources
            .iter()
            .map(|it| (it.name.clone(), it.source.clone()))
            .collect();
        let manifest = match &user.manifest_path {
            Some(path) => PathBuf::from(path),
            None => folder.join("manifest.json"),
        };
        let checked = check(&manifest, &sources, cancel).map_err(|error| error.to_string());
        Self {
            agent,
            user,
            checked,
        }
    }

    /// Whether the backup is complete and like its sources.
    pub(super) fn is_good(&self) -> bool {
        let same = self
            .checked
            .as_ref()
            .is_ok_and(|report| report.differences.is_empty());
        self.user.state == Phase::Completed && same
    }

    /// What is wrong, line by line.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self
            .user
            .categories
            .values()
            .filter_map(|category| category.error.clone())
            .collect();
        match &self.checked {
            Err(error) => problems.push(error.clone()),
            Ok(report) => {
                let shown = report.differences.iter().take(SHOWN_DIFFERENCES);
                problems.extend(shown.map(ToString::to_string));
                let more = report.differences.len().saturating_sub(SHOWN_DIFFERENCES);
                problems.extend((more > 0).then(|| format!("and {more} more differences")));
            }
        }
        problems
            .into_iter()
            .map(|problem| format!("{}: {problem}", self.agent))
            .collect()
    }

    fn row(&self) -> Vec<String> {
        let files = self
            .user
            .categories
            .values()
            .filter_map(|it| it.items)
            .sum::<u64>();
        let took = match (self.user.started, self.user.finished) {
            (Some(started), Some(finished)) => finished.saturating_duration_since(started),
            _ => Duration::ZERO,
        };
        let result = match &self.checked {
            _ if self.user.state != Phase::Completed => self.user.state.to_string(),
            Err(_) => "complete, not checked".to_owned(),
            Ok(report) if report.differences.is_empty() => "complete, same as source".to_owned(),
            Ok(report) => format!("complete, {} differences", report.differences.len()),
        };
        vec![
            self.agent.clone(),
            self.user.name.clone(),
            files.to_string(),
            bytes(self.user.bytes_transferred),
            format!("{:.2} s", took.as_secs_f64()),
            result,
        ]
    }
}

/// The table of all agents.
pub(super) fn table_of(outcomes: &[Outcome]) -> String {
    let heading = ["AGENT", "USER", "FILES", "BYTES", "TIME", "RESULT"]
        .map(str::to_owned)
        .to_vec();
    let rows: Vec<_> = std::iter::once(heading)
        .chain(outcomes.iter().map(Outcome::row))
        .collect();
    table(&rows)
}
