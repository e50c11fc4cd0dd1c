//! `docs/windows.md`, from its prose and the evidence.

use std::fmt::Write as _;

use super::evidence::{Evidence, Finding, Outcome, of_model};
use super::table::TABLE;

/// Where the table of the conformance rows belongs in the prose.
const ROWS: &str = "<!-- rows -->";
/// Where that of the checks belongs.
const CHECKS: &str = "<!-- checks -->";

/// The document: the prose with its tables filled in, one column for each system.
///
/// # Errors
///
/// When the prose has no place for a table, or a file of evidence knows other rows than the table
/// that this program has: then it has to be collected again.
pub fn document(prose: &str, evidence: &[Evidence]) -> Result<String, String> {
    let model = of_model();
    let mut systems = vec![&model];
    systems.extend(evidence);
    let names: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
    for one in &systems {
        let found: Vec<&str> = one.rows.iter().map(|row| row.name.as_str()).collect();
        if found != names {
            return Err(format!(
                "the evidence of {} has other rows than the table; collect it again",
                one.system
            ));
        }
    }
    let with_rows = filled(prose, ROWS, &rows(&systems))?;
    filled(&with_rows, CHECKS, &checks(evidence))
}

fn filled(prose: &str, place: &str, table: &str) -> Result<String, String> {
    match prose.split_once(place) {
        Some((before, after)) => Ok(format!("{before}{}{after}", table.trim_end())),
        None => Err(format!("the prose has no line {place}")),
    }
}

fn rows(systems: &[&Evidence]) -> String {
    let mut text = heading("| row | codes |", systems.iter().copied());
    for (index, row) in TABLE.iter().enumerate() {
        let codes: Vec<String> = row.codes().iter().map(ToString::to_string).collect();
        let _ = write!(text, "| {} | {} |", row.name, codes.join(", "));
        for system in systems {
            let _ = write!(text, " {} |", cell(system.rows.get(index)));
        }
        text.push('\n');
    }
    text
}

fn checks(evidence: &[Evidence]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for check in evidence.iter().flat_map(|one| &one.checks) {
        if !names.contains(&check.name.as_str()) {
            names.push(&check.name);
        }
    }
    let mut text = heading("| check |", evidence);
    for name in names {
        let _ = write!(text, "| {name} |");
        for one in evidence {
            let found = one.checks.iter().find(|check| check.name == name);
            let _ = write!(text, " {} |", cell(found));
        }
        text.push('\n');
    }
    text
}

/// The first two lines of a table whose first columns are given.
fn heading<'a>(first: &str, systems: impl IntoIterator<Item = &'a Evidence>) -> String {
    let mut text = first.to_owned();
    for system in systems {
        let _ = write!(text, " {} |", system.system);
    }
    let columns = text.matches('|').count() - 1;
    let _ = write!(text, "\n|{}\n", "---|".repeat(columns));
    text
}

fn cell(finding: Option<&Finding>) -> String {
    match finding.map(|finding| &finding.outcome) {
        None => "not tried".to_owned(),
        Some(Outcome::Shown) => "shown".to_owned(),
        Some(Outcome::NotShown(why)) => format!("**not shown**: {why}"),
        Some(Outcome::Failed(why)) => format!("**FAILED**: {why}"),
    }
}
