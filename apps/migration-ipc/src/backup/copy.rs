//! The copy of one file, verified.

use std::fs::Metadata;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::manifest::ContentHash;
use super::progress::{Cancel, Cancelled, Meter};
use super::skipped::{Cause, Reason};
use crate::os;

/// How much is read at a time: enough that system calls do not count, little enough that a
/// cancelled backup ends at once.
pub(crate) const BUFFER: usize = 256 * 1024;

/// How often a file that changes while it is copied is tried.
const ATTEMPTS: u32 = 3;

/// What was copied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) size: u64,
    pub(crate) modified: SystemTime,
    pub(crate) sha256: ContentHash,
}

/// Why a file was not copied.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// This file stays out; the next may work.
    Skip(Reason),
    /// The destination takes nothing any more.
    Destination(io::Error),
    Cancelled,
}

impl From<Cancelled> for CopyError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl CopyError {
    fn reading(error: &io::Error) -> Self {
        Self::Skip(Reason::unreadable(error))
    }

    fn writing(error: io::Error) -> Self {
        use ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | ReadOnlyFilesystem => Self::Destination(error),
            _ => Self::Skip(Reason::unwritable(&error)),
        }
    }
}

/// Copies files one after the other through one buffer.
pub(crate) struct Copier<'a> {
    buffer: Box<[u8]>,
    cancel: &'a Cancel,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(cancel: &'a Cancel) -> Self {
        Self {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            cancel,
        }
    }

    /// Copies `from` to `to`, whose folder exists; what is at `to` is replaced in one step, and
    /// only by a copy of a file that did not change meanwhile.
    pub(crate) fn copy(
        &mut self,
        from: &Path,
        to: &Path,
        shown: &str,
        meter: &mut Meter<'_>,
    ) -> Result<Copied, CopyError> {
        for _ in 0..ATTEMPTS {
            meter.begin(shown.to_owned());
            if let Some(copied) = self.attempt(from, to, meter)? {
                return Ok(copied);
            }
        }
        Err(CopyError::Skip(Cause::Changed.into()))
    }

    /// One attempt; `None` if the file changed during it.
    fn attempt(
        &mut self,
        from: &Path,
        to: &Path,
        meter: &mut Meter<'_>,
    ) -> Result<Option<Copied>, CopyError> {
        let reading = |error: io::Error| CopyError::reading(&error);
        let source = os::open_source(from).map_err(reading)?;
        let before = source.metadata().map_err(reading)?;
        let folder = to.parent().unwrap_or(Path::new("."));
        let mut staged = tempfile::Builder::new()
            .prefix(".partial-")
            .tempfile_in(folder)
            .map_err(CopyError::writing)?;

        let mut hash = Sha256::new();
        let mut size = 0;
        // One byte more than expected is enough to see that the file grew.
        let mut content = (&source).take(before.len().saturating_add(1));
        loop {
            self.cancel.check()?;
            let read = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => &self.buffer[..read],
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(CopyError::reading(&error)),
            };
            hash.update(read);
            staged.write_all(read).map_err(CopyError::writing)?;
            size += read.len() as u64;
            meter.moved(read.len() as u64);
        }

        let after = source.metadata().map_err(reading)?;
        let modified = before.modified().map_err(reading)?;
        if size != before.len() || !unchanged(&before, &after) {
            return Ok(None);
        }
        put_in_place(staged, to, modified).map_err(CopyError::writing)?;
        Ok(Some(Copied {
            size,
            modified,
            sha256: ContentHash(hash.finalize().into()),
        }))
    }
}

fn unchanged(before: &Metadata, after: &Metadata) -> bool {
    before.len() == after.len() && before.modified().ok() == after.modified().ok()
}

fn put_in_place(staged: NamedTempFile, to: &Path, modified: SystemTime) -> io::Result<()> {
    staged.as_file().set_modified(modified)?;
    os::flush_file(staged.as_file())?;
    staged.persist(to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::names::FolderName;
    use super::super::progress::Progress;
    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new(content: &[u8]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("from"), content).unwrap();
            Self { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn copy(&self, report: &mut dyn FnMut(&Progress)) -> Result<Copied, CopyError> {
            self.copy_unless(&Cancel::default(), report)
        }

        fn copy_unless(
            &self,
            cancel: &Cancel,
            report: &mut dyn FnMut(&Progress),
        ) -> Result<Copied, CopyError> {
            let mut meter = Meter::start(FolderName::from_any("files"), 0, report);
            Copier::new(cancel).copy(&self.path("from"), &self.path("to"), "from", &mut meter)
        }

        fn leftovers(&self) -> usize {
            fs::read_dir(self.folder.path()).unwrap().count()
        }
    }

    #[test]
    fn content_and_modification_time_are_the_sources() {
        let bench = Bench::new(b"hello");
        let copied = bench.copy(&mut |_| ()).unwrap();
        assert_eq!(fs::read(bench.path("to")).unwrap(), b"hello");
        assert_eq!(
            bench.path("to").metadata().unwrap().modified().unwrap(),
            copied.modified
        );
        assert_eq!(
            copied.sha256.to_string(),
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
    }

    #[test]
    fn a_file_that_changes_during_every_attempt_is_left_out_with_its_old_copy_untouched() {
        let bench = Bench::new(&vec![1; 8 * BUFFER]);
        fs::write(bench.path("to"), "the last good copy").unwrap();
        let source = bench.path("from");
        let mut grow = |_: &Progress| {
            use std::io::Write as _;
            fs::OpenOptions::new()
                .append(true)
                .open(&source)
                .unwrap()
                .write_all(b"more")
                .unwrap();
        };
        let error = bench.copy(&mut grow).unwrap_err();
        assert!(matches!(
            error,
            CopyError::Skip(Reason {
                cause: Cause::Changed,
                ..
            })
        ));
        assert_eq!(fs::read(bench.path("to")).unwrap(), b"the last good copy");
        assert_eq!(bench.leftovers(), 2);
    }

    #[test]
    fn a_file_that_changes_once_is_copied_anew() {
        let bench = Bench::new(&vec![1; 8 * BUFFER]);
        let source = bench.path("from");
        let mut changed = false;
        let mut shrink_once = |progress: &Progress| {
            if progress.bytes_done > 0 && !std::mem::replace(&mut changed, true) {
                fs::write(&source, "short").unwrap();
            }
        };
        assert_eq!(bench.copy(&mut shrink_once).unwrap().size, 5);
        assert_eq!(fs::read(bench.path("to")).unwrap(), b"short");
    }

    #[test]
    fn cancelling_leaves_nothing_behind() {
        let bench = Bench::new(&vec![1; 8 * BUFFER]);
        let cancel = Cancel::default();
        let mut stop = |progress: &Progress| {
            if progress.bytes_done > 0 {
                cancel.cancel();
            }
        };
        let error = bench.copy_unless(&cancel, &mut stop).unwrap_err();
        assert!(matches!(error, CopyError::Cancelled));
        assert_eq!(bench.leftovers(), 1);
    }

    #[test]
    fn a_file_that_is_gone_has_vanished() {
        let bench = Bench::new(b"");
        fs::remove_file(bench.path("from")).unwrap();
        let error = bench.copy(&mut |_| ()).unwrap_err();
        assert!(matches!(
            error,
            CopyError::Skip(Reason {
                cause: Cause::Vanished,
                ..
            })
        ));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_took_the_files_place_is_not_followed() {
        let bench = Bench::new(b"");
        fs::write(bench.path("secret"), "not ours").unwrap();
        fs::remove_file(bench.path("from")).unwrap();
        std::os::unix::fs::symlink(bench.path("secret"), bench.path("from")).unwrap();
        let error = bench.copy(&mut |_| ()).unwrap_err();
        assert!(matches!(
            error,
            CopyError::Skip(Reason {
                cause: Cause::Unreadable,
                ..
            })
        ));
        assert!(!bench.path("to").exists());
    }
}
