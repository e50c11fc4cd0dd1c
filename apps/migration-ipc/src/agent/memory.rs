//! What the agent remembers over the end of its process: a file of its data folder.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use migration_ipc::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::steps::{Delay, Standing};
use crate::os;

/// The name of the file.
const FILE: &str = "delay.json";

/// A [`Delay`], with the time of the calendar.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptDelay {
    standing: Standing,
    deadline: Timestamp,
    until: Timestamp,
    delays_used: u32,
}

/// The agent's memory. What cannot be kept is asked for once more, so that nothing here is an
/// error to anybody.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
}

impl Memory {
    /// The memory in a folder, which exists.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// The delay that an earlier run asked for, or was granted.
    pub(crate) fn delay(&self, now: SystemTime) -> Option<Delay> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, "whether a delay was granted is not known");
                return None;
            }
        };
        let kept: KeptDelay = serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(%error, "the kept delay is damaged"))
            .ok()?;
        let left = kept.until.saturating_duration_since(now.into());
        Some(Delay {
            standing: kept.standing,
            deadline: kept.deadline,
            until: Instant::now() + left,
            delays_used: kept.delays_used,
        })
    }

    pub(crate) fn keep_delay(&self, delay: &Delay, now: SystemTime) {
        let kept = KeptDelay {
            standing: delay.standing,
            deadline: delay.deadline,
            until: Timestamp::from(now) + delay.until.saturating_duration_since(Instant::now()),
            delays_used: delay.delays_used,
        };
        if let Err(error) = self.write(&kept) {
            tracing::warn!(%error, "the delay is not remembered when the agent ends");
        }
    }

    pub(crate) fn forget_delay(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a delay that is over is still remembered");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn write(&self, kept: &KeptDelay) -> io::Result<()> {
        let staged = self.path.with_extension("new");
        let mut file = os::create_private_file(&staged)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        drop(file);
        os::replace_file(&staged, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_delay_is_kept_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::in_folder(folder.path());
        let now = SystemTime::now();
        assert_eq!(memory.delay(now), None);
        let hour = Duration::from_secs(3600);
        let delay = Delay {
            standing: Standing::Granted,
            deadline: "2024-01-01T12:00:00Z".parse().unwrap(),
            until: Instant::now() + hour,
            delays_used: 2,
        };
        memory.keep_delay(&delay, now);
        let kept = Memory::in_folder(folder.path())
            .delay(now + hour / 2)
            .unwrap();
        assert_eq!((kept.deadline, kept.delays_used), (delay.deadline, 2));
        let left = kept.until - Instant::now();
        assert!(left <= hour / 2 && left > hour / 3, "{left:?}");
        let over = memory.delay(now + hour * 2).unwrap();
        assert!(over.until <= Instant::now(), "it is to be asked at once");
        memory.forget_delay();
        assert_eq!(memory.delay(now), None);
    }

    #[test]
    fn a_damaged_file_is_no_delay() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(
            Memory::in_folder(folder.path()).delay(SystemTime::now()),
            None
        );
    }
}
