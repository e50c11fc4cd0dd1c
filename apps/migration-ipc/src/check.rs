//! `check`: compares a backup with its source.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use crate::backup::check::{CheckError, check};
use crate::backup::{Cancel, Category};
use crate::cli::{Exit, Failure, OrExit, print, visible};

/// Compare a backup with its source.
#[derive(Debug, Args)]
pub(crate) struct CheckCommand {
    /// The manifest of the backup, or the folder that has it
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,

    /// Where the source is now, if not where it was
    #[arg(
        long = "category",
        value_name = "NAME=PATH",
        value_parser = OsStringValueParser::new().try_map(|text: OsString| Category::parse(&text))
    )]
    categories: Vec<Category>,
}

impl CheckCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let manifest = if self.backup.is_dir() {
            self.backup.join("manifest.json")
        } else {
            self.backup.clone()
        };
        let sources: BTreeMap<_, _> = self
            .categories
            .into_iter()
            .map(|category| (category.name, category.source))
            .collect();
        let checking = move || check(&manifest, &sources, &Cancel::default());
        let report = match tokio::task::spawn_blocking(checking).await? {
            Err(error @ CheckError::Manifest(_)) => return Err(error).or_exit(Exit::Usage),
            other => other?,
        };
        for difference in &report.differences {
            print(visible(&difference.to_string()))?;
        }
        let count = report.differences.len();
        if count > 0 {
            return Err(Failure::new(Exit::Failed, format!("{count} differences")));
        }
        Ok(print(format_args!(
            "{} files, {} bytes: same as the source{}",
            report.files, report.bytes, report.resumed
        ))?)
    }
}
