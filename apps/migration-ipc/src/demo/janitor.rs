//! The process that removes the scratch folder once everybody else is gone.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::{Exit, Failure};
use crate::os::StopSignals;

/// What the names of scratch folders begin with; the janitor removes nothing else.
pub(super) const SCRATCH_PREFIX: &str = "migration-ipc-demo-";

/// How often the folder is tried to be removed: on Windows a virus scanner may hold a file.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Remove a scratch folder when standard input ends.
#[derive(Debug, Args)]
pub(crate) struct JanitorCommand {
    scratch: PathBuf,
}

impl JanitorCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if !is_scratch(&self.scratch) {
            let text = format!("`{}` is not a scratch folder", self.scratch.display());
            return Err(Failure::new(Exit::Usage, text));
        }
        // Registered and never looked at: the signals that end others must not end the janitor.
        let _ignored = StopSignals::register()?;
        let witnessing = tokio::task::spawn_blocking(|| {
            let mut everybody = io::stdin().lock();
            // What they print is not for anybody; their end is.
            while !matches!(everybody.read(&mut [0; 4096]), Ok(0) | Err(_)) {}
        });
        witnessing.await?;
        Ok(remove(&self.scratch).await?)
    }
}

fn is_scratch(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    name.is_some_and(|name| name.starts_with(SCRATCH_PREFIX))
}

async fn remove(scratch: &Path) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        match fs::remove_dir_all(scratch) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
            Ok(()) => return Ok(()),
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scratch_folders_are_removed() {
        assert!(is_scratch(Path::new("/tmp/migration-ipc-demo-1a2b")));
        for path in ["/tmp", "/", "/home/alice", "/tmp/migration-ipc-demo-1/.."] {
            assert!(!is_scratch(Path::new(path)), "{path}");
        }
    }
}
