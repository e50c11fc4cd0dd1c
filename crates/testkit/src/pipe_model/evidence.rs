//! What one machine shows: each row of the table and each check of enforcement, with its result.

use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::model::Model;
use super::run::run;
use super::table::TABLE;

/// What was found on one system. A file of these is what `docs/windows.md` is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// `Windows` with its build, `Wine` with its version, or `model` for the testkit's own.
    pub system: String,
    /// The rows of the table, in its order.
    pub rows: Vec<Finding>,
    /// The checks of what only a real system enforces. There are none on the model.
    pub checks: Vec<Finding>,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// What was seen.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Shown,
    /// The system is known not to do it, or this account cannot try.
    NotShown(String),
    /// It does not hold.
    Failed(String),
}

/// All files of evidence in a folder (`*.json`), in the order of their names.
///
/// # Errors
///
/// When one cannot be read, or is none.
pub fn read_evidence(folder: &Path) -> io::Result<Vec<Evidence>> {
    let mut files = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "json")
    });
    files.sort();
    files
        .iter()
        .map(|file| Ok(serde_json::from_slice(&fs::read(file)?)?))
        .collect()
}

/// Collects the evidence of the system that this program runs on: the model where that is not
/// Windows.
pub fn collect() -> Evidence {
    on_this_system()
}

#[cfg(not(windows))]
fn on_this_system() -> Evidence {
    of_model()
}

/// What the model shows.
pub(super) fn of_model() -> Evidence {
    let mut system = Model::new();
    let rows = TABLE
        .iter()
        .map(|row| Finding {
            name: row.name.to_owned(),
            outcome: match run(&mut system, row, "name") {
                Ok(()) => Outcome::Shown,
                Err(mismatch) => Outcome::Failed(mismatch.to_string()),
            },
        })
        .collect();
    Evidence {
        system: "model".to_owned(),
        rows,
        checks: Vec::new(),
    }
}

#[cfg(windows)]
fn on_this_system() -> Evidence {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::enforcement;
    use super::real::Real;
    use super::table::{ONLY_SYSTEM, Wine};
    use super::wine::{under_wine, wine_version};

    /// Several collections in one process must not meet under one name.
    static COLLECTED: AtomicU32 = AtomicU32::new(0);

    let collection = COLLECTED.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("migration-ipc-evidence-{}-{collection}", std::process::id());
    let mut system = Real::new();
    let rows = TABLE
        .iter()
        .enumerate()
        .map(|(number, row)| {
            let name = format!("{prefix}-{number}");
            let outcome = match (row.wine, run(&mut system, row, &name)) {
                (Wine::Differs(_, why), Err(_)) if under_wine() => {
                    Outcome::NotShown(why.to_owned())
                }
                (Wine::Differs(..), Ok(())) if under_wine() => {
                    Outcome::Failed("Wine does this after all".to_owned())
                }
                (_, Ok(())) => Outcome::Shown,
                (_, Err(_)) if row.name == ONLY_SYSTEM && runs_as_system() => {
                    Outcome::NotShown("it was run as SYSTEM, who may".to_owned())
                }
                (_, Err(mismatch)) => Outcome::Failed(mismatch.to_string()),
            };
            Finding {
                name: row.name.to_owned(),
                outcome,
            }
        })
        .collect();
    let system = wine_version().map_or_else(windows_version, |version| format!("Wine {version}"));
    Evidence {
        system,
        rows,
        checks: enforcement::all(),
    }
}

#[cfg(windows)]
fn runs_as_system() -> bool {
    use std::os::windows::io::AsHandle;

    use migration_ipc_transport::{security::Sid, win32};

    win32::open_process_token()
        .and_then(|token| win32::token_user(token.as_handle()))
        .is_ok_and(|account| account == Sid::system())
}

/// As the command prompt says it: `Microsoft Windows [Version 10.0.26100.4061]`.
#[cfg(windows)]
fn windows_version() -> String {
    let said = std::process::Command::new("cmd")
        .args(["/c", "ver"])
        .output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.unwrap_or_else(|error| format!("Windows of unknown version ({error})"))
}
