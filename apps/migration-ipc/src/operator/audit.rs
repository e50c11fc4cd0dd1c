//! `audit`: who connected, what was refused, and what operators did.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::table::table;
use crate::cli::{Exit, Failure, OrExit, print, visible};
use crate::os;
use crate::service::{AuditLine, read_audit};

/// The members that have a column of their own.
const COLUMNS: [&str; 6] = [
    "time",
    "event",
    "outcome",
    "account",
    "session",
    "connection",
];

/// Show who connected, what was refused, and what operators did.
#[derive(Debug, Args)]
pub(crate) struct AuditCommand {
    /// Where the service keeps its state
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,

    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl AuditCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let folder = match self.data_dir {
            Some(folder) => folder,
            None => os::service_data_folder().or_exit(Exit::Usage)?,
        };
        let mut rows = vec![heading()];
        let reading = tokio::task::spawn_blocking(move || {
            let found = read_audit(&folder, |line| {
                if self.json {
                    print(in_json(line))
                } else {
                    rows.push(row(&line));
                    Ok(())
                }
            });
            (found, rows, folder)
        });
        let (found, rows, folder) = reading.await?;
        if found.or_exit(Exit::Usage)?.is_none() {
            let text = format!("there is no audit log in `{}`", folder.display());
            return Err(Failure::new(Exit::Usage, text));
        }
        if !self.json {
            print(table(&rows))?;
        }
        Ok(())
    }
}

fn in_json(line: AuditLine) -> Value {
    match line {
        AuditLine::Record(record) => Value::Object(record),
        AuditLine::Torn => json!({"event": "torn", "outcome": "ended"}),
    }
}

fn heading() -> Vec<String> {
    let mut heading: Vec<String> = COLUMNS.iter().map(|it| it.to_uppercase()).collect();
    heading.push("DETAILS".to_owned());
    heading
}

fn row(line: &AuditLine) -> Vec<String> {
    let record = match line {
        AuditLine::Record(record) => record,
        AuditLine::Torn => {
            let mut row = vec!["-".to_owned(); COLUMNS.len() + 1];
            if let Some(event) = row.get_mut(1) {
                "torn".clone_into(event);
            }
            return row;
        }
    };
    let mut row: Vec<String> = COLUMNS
        .iter()
        .map(|name| record.get(*name).map_or("-".to_owned(), text))
        .collect();
    row.push(details(record));
    row
}

/// All that has no column.
fn details(record: &Map<String, Value>) -> String {
    let others = record
        .iter()
        .filter(|(name, _)| !COLUMNS.contains(&name.as_str()));
    let parts: Vec<String> = others
        .map(|(name, value)| format!("{}={}", visible(name), text(value)))
        .collect();
    parts.join(" ")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => visible(text).into_owned(),
        other => visible(&other.to_string()).into_owned(),
    }
}
