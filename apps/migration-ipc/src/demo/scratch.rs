//! The folder that the demonstration works in, and its janitor.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, PipeWriter};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};

use super::janitor::SCRATCH_PREFIX;
use crate::os;

/// A private folder that is gone at the end, whatever the end is.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    id: String,
    janitor: Child,
    /// Every process that the janitor waits for has a clone of this.
    witness: PipeWriter,
}

impl Scratch {
    pub(super) fn create(program: &Path) -> io::Result<Self> {
        let id = format!("{:012x}", RandomState::new().hash_one(0) >> 16);
        let folder = std::env::temp_dir().join(format!("{SCRATCH_PREFIX}{id}"));
        let (everybody, witness) = io::pipe()?;
        // First the janitor, then the folder: there is no moment in which nobody would remove it.
        let mut command = Command::new(program);
        command
            .arg("demo-janitor")
            .arg(&folder)
            .stdin(Stdio::from(everybody))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        os::own_process_group(&mut command);
        let janitor = command.spawn()?;
        os::create_private_folders(&folder)?;
        Ok(Self {
            folder: folder.canonicalize()?,
            id,
            janitor,
            witness,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A name that no other demonstration has.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What a process has to keep open as long as it needs the folder.
    pub(super) fn witness(&self) -> io::Result<Stdio> {
        self.witness.try_clone().map(Stdio::from)
    }

    /// Waits until everybody has ended and the folder is gone.
    pub(super) async fn clean_up(mut self) -> io::Result<()> {
        drop(self.witness);
        let status: ExitStatus = self.janitor.wait().await?;
        if status.success() {
            Ok(())
        } else {
            let text = format!(
                "the scratch folder `{}` could not be removed",
                self.folder.display()
            );
            Err(io::Error::other(text))
        }
    }
}
