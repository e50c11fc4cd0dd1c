//! Collects what this machine shows of what the transport relies on, and writes it as JSON.
//!
//! ```sh
//! cargo run -p migration-ipc-testkit --example windows_evidence -- docs/evidence/windows-11.json
//! ```

#![expect(clippy::print_stdout, reason = "a program says what it did")]

use std::error::Error;
use std::fs;

use migration_ipc_testkit::pipe_model::{Outcome, collect};

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args()
        .nth(1)
        .ok_or("which file? For example: docs/evidence/windows-11.json")?;
    let evidence = collect();
    fs::write(&file, serde_json::to_string_pretty(&evidence)? + "\n")?;
    let findings = || evidence.rows.iter().chain(&evidence.checks);
    let shown = findings().filter(|one| one.outcome == Outcome::Shown);
    println!(
        "{}: {} of {} shown; written to {file}",
        evidence.system,
        shown.count(),
        findings().count()
    );
    let failed: Vec<_> = findings()
        .filter_map(|finding| match &finding.outcome {
            Outcome::Failed(why) => Some(format!("{}: {why}", finding.name)),
            Outcome::Shown | Outcome::NotShown(_) => None,
        })
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("\n").into())
    }
}
