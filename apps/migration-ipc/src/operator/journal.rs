//! `journal`: the messages that the service handled, in order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use migration_ipc::storage::disk::FolderError;
use migration_ipc::storage::{Reader, StoreError};
use migration_ipc::{Encryption, Endpoint, Trust};
use tokio::time::{Instant, interval};

use super::connect::{ask, connect_to};
use super::messages::{JournalLine, JournalPage, JournalRequest};
use super::table::table;
use crate::address::TrustedOwner;
use crate::cli::{Exit, Failure, OrExit, print, visible};
use crate::encrypting::Encrypting;
use crate::os;
use crate::service::{StateError, journal_page, open_existing, published_endpoint};

/// How long a service that holds the data folder may take to be reached, and how often that is
/// tried: it may be about to start, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Show the messages that the service handled.
#[derive(Debug, Args)]
pub(crate) struct JournalCommand {
    /// Where the service keeps its state
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    owner: TrustedOwner,

    #[command(flatten)]
    encrypting: Encrypting,

    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl JournalCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let folder = match &self.data_dir {
            Some(folder) => folder.clone(),
            None => os::service_data_folder().or_exit(Exit::Usage)?,
        };
        let trust = self.owner.trust().await?;
        let encryption = self.encrypting.load().await?;
        let mut lines = Lines::new(self.json);
        let deadline = Instant::now() + PATIENCE;
        let mut interval = interval(RETRY_INTERVAL);
        loop {
            interval.tick().await;
            match from_disk(folder.clone(), &mut lines).await {
                Err(StateError::Folder(FolderError::Locked(_))) => {}
                read => {
                    read.or_exit(Exit::Usage)?;
                    break;
                }
            }
            // A running service has the folder.
            match from_service(&folder, trust.clone(), encryption.clone(), &mut lines).await {
                Err(failure)
                    if failure.exit == Exit::CannotConnect && Instant::now() < deadline => {}
                read => {
                    read?;
                    break;
                }
            }
        }
        lines.finish()
    }
}

/// Reads the journal of a service that does not run.
async fn from_disk(folder: PathBuf, lines: &mut Lines) -> Result<(), StateError> {
    let opening = tokio::task::spawn_blocking(move || open_existing(&folder));
    let store = opening.await.map_err(StateError::failed)??;
    let mut after = Some(0);
    while let Some(begin) = after {
        let reader: Reader = store.reader();
        let reading = tokio::task::spawn_blocking(move || journal_page(&reader, begin));
        let page: Result<JournalPage, StoreError> = reading.await.map_err(StateError::failed)?;
        after = lines.take(page?)?;
    }
    Ok(())
}

/// Asks a running service for its journal.
async fn from_service(
    folder: &Path,
    trust: Trust,
    encryption: Option<Encryption>,
    lines: &mut Lines,
) -> Result<(), Failure> {
    let address = published_endpoint(folder).or_exit(Exit::CannotConnect)?;
    let endpoint = Endpoint::parse(&address).or_exit(Exit::CannotConnect)?;
    let client = connect_to(&endpoint, trust, encryption).await?;
    let mut after = Some(lines.after);
    while let Some(begin) = after {
        let page: JournalPage = ask(&client, JournalRequest { after: begin }).await?;
        after = lines.take(page)?;
    }
    client.disconnect().await;
    Ok(())
}

/// Shows lines as they come, or all in a table.
struct Lines {
    json: bool,
    rows: Vec<Vec<String>>,
    /// What is shown: a second try begins here.
    after: u64,
}

impl Lines {
    fn new(json: bool) -> Self {
        let heading = ["TIME", "USER", "SESSION", "TYPE", "OUTCOME", "ID"];
        Self {
            json,
            rows: vec![heading.map(str::to_owned).to_vec()],
            after: 0,
        }
    }

    /// Returns where the next page begins.
    fn take(&mut self, page: JournalPage) -> std::io::Result<Option<u64>> {
        for line in page.entries {
            if self.json {
                print(serde_json::to_string(&line)?)?;
            } else {
                self.rows.push(row(&line));
            }
        }
        self.after = page.next.unwrap_or(self.after);
        Ok(page.next)
    }

    fn finish(self) -> Result<(), Failure> {
        if !self.json {
            print(table(&self.rows))?;
        }
        Ok(())
    }
}

fn row(line: &JournalLine) -> Vec<String> {
    let outcome = match &line.code {
        Some(code) => format!("{}: {code}", line.outcome),
        None => line.outcome.clone(),
    };
    let session = line.session.as_deref().unwrap_or("-");
    vec![
        line.time.to_string(),
        visible(&line.user).into_owned(),
        visible(session).into_owned(),
        visible(&line.message_type).into_owned(),
        outcome,
        visible(&line.id.to_string()).into_owned(),
    ]
}
