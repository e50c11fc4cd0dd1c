//! The service and the agents, as processes of this program.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use migration_ipc::Endpoint;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::scratch::Scratch;
use crate::backup::Category;
use crate::os;

/// How long a process may take to end in an orderly way.
const ORDERLY_END: Duration = Duration::from_secs(20);

/// How many lines of a log are shown when its process failed.
const LOG_LINES: usize = 15;

/// Starts processes that share a scratch folder.
pub(super) struct Starter<'a> {
    pub(super) program: &'a Path,
    pub(super) scratch: &'a Scratch,
    pub(super) endpoint: &'a Endpoint,
    /// The file with the key that all of them require.
    pub(super) keys: &'a Path,
}

impl Starter<'_> {
    pub(super) fn service(&self, config: &Path) -> io::Result<Process> {
        let data = self.scratch.path("service");
        self.start(
            "service",
            &[
                OsStr::new("service"),
                OsStr::new("--development"),
                OsStr::new("--data-dir"),
                data.as_os_str(),
                OsStr::new("--config"),
                config.as_os_str(),
            ],
        )
    }

    pub(super) fn agent(
        &self,
        name: &str,
        backups: &Path,
        sources: &[Category],
    ) -> io::Result<Process> {
        let data = self.scratch.path(name);
        let mut arguments: Vec<OsString> = ["agent", "--consent", "auto", "--session", name]
            .into_iter()
            .chain(["--trust-owner", "self"])
            .chain(["--backup-folder", name, "--backup-root"])
            .map(OsString::from)
            .collect();
        arguments.extend([backups.into(), "--data-dir".into(), data.into()]);
        for category in sources {
            let mut argument = OsString::from(format!("{}=", category.name));
            argument.push(&category.source);
            arguments.extend(["--category".into(), argument]);
        }
        self.start(name, &arguments)
    }

    fn start(&self, name: &str, arguments: &[impl AsRef<OsStr>]) -> io::Result<Process> {
        let log = self.scratch.path(&format!("{name}.log"));
        let mut command = Command::new(self.program);
        command
            .args(arguments)
            .args([
                OsStr::new("--endpoint"),
                self.endpoint.address().as_os_str(),
            ])
            .arg("--key-file")
            .arg(self.keys)
            .args(["--require-encryption", "--until-stdin-ends"])
            .stdin(Stdio::piped())
            .stdout(self.scratch.witness()?)
            .stderr(File::create(&log)?)
            .kill_on_drop(true);
        os::own_process_group(&mut command);
        Ok(Process {
            name: name.to_owned(),
            log,
            child: command.spawn()?,
        })
    }
}

/// A process of the demonstration. Its standard input is its lifeline.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

/// A process ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("{name} ended early ({status}); the end of its log:\n{log}")]
pub(super) struct EndedEarly {
    name: String,
    status: ExitStatus,
    log: String,
}

impl Process {
    /// Fails if the process has ended.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let log = end_of_log(&self.log);
                Err(EndedEarly {
                    name: self.name.clone(),
                    status,
                    log,
                }
                .into())
            }
        }
    }

    /// Cuts the lifeline and waits for the end; a process that does not end by itself is killed.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let Ok(status) = timeout(ORDERLY_END, self.child.wait()).await else {
            self.child.kill().await?;
            anyhow::bail!(
                "{} did not end within {ORDERLY_END:?} and was killed",
                self.name
            );
        };
        let status = status?;
        if status.success() {
            return Ok(());
        }
        Err(EndedEarly {
            name: self.name,
            status,
            log: end_of_log(&self.log),
        }
        .into())
    }
}

fn end_of_log(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_else(|error| format!("(no log: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
