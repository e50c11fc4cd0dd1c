//! The copy of one file, verified.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write as _};
use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

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

    /// Copies `paths.from` to `paths.to`, whose folder exists; what is there is replaced in one
    /// step, and only by a copy of a file that did not change meanwhile. `settle` is called before
    /// that step, when the copy is whole.
    ///
    /// After an error of the file itself nothing of the copy is left; after any other what was
    /// copied stays at `paths.partial`.
    pub(crate) fn copy(
        &mut self,
        paths: &Paths<'_>,
        shown: &str,
        meter: &mut Meter<'_>,
        settle: impl FnOnce(&Copied),
    ) -> Result<Copied, CopyError> {
        let copied = self
            .copy_to_partial(paths, shown, meter)
            .and_then(|copied| {
                settle(&copied);
                os::replace_file(paths.partial, paths.to).map_err(CopyError::writing)?;
                Ok(copied)
            });
        if let Err(CopyError::Skip(_)) = &copied {
            // There may be none.
            let _ = fs::remove_file(paths.partial);
        }
        copied
    }

    fn copy_to_partial(
        &mut self,
        paths: &Paths<'_>,
        shown: &str,
        meter: &mut Meter<'_>,
    ) -> Result<Copied, CopyError> {
        for _ in 0..ATTEMPTS {
            meter.begin(shown.to_owned());
            if let Some(copied) = self.attempt(paths, meter)? {
                return Ok(copied);
            }
        }
        Err(CopyError::Skip(Cause::Changed.into()))
    }

    /// One attempt; `None` if the file changed during it.
    fn attempt(
        &mut self,
        paths: &Paths<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<Option<Copied>, CopyError> {
        let reading = |error: io::Error| CopyError::reading(&error);
        let source = os::open_source(paths.from).map_err(reading)?;
        let before = source.metadata().map_err(reading)?;
        let mut partial = os::create_private_file(paths.partial).map_err(CopyError::writing)?;
        // One byte more than expected is enough to see that the file grew.
        let content = (&source).take(before.len().saturating_add(1));
        let (size, sha256) = self.read_through(content, meter, |part| {
            partial.write_all(part).map_err(CopyError::writing)
        })?;
        let after = source.metadata().map_err(reading)?;
        let modified = before.modified().map_err(reading)?;
        if size != before.len() || !unchanged(&before, &after) {
            return Ok(None);
        }
        complete(&partial, modified).map_err(CopyError::writing)?;
        Ok(Some(Copied {
            size,
            modified,
            sha256,
        }))
    }

    /// Whether a copy is there and has this size and content. It is read to its end.
    pub(crate) fn has_content(
        &mut self,
        copy: &Path,
        size: u64,
        sha256: ContentHash,
        meter: &mut Meter<'_>,
    ) -> Result<bool, Cancelled> {
        let Ok(file) = os::open_source(copy) else {
            return Ok(false);
        };
        if !file.metadata().is_ok_and(|metadata| metadata.len() == size) {
            return Ok(false);
        }
        match self.read_through(&file, meter, |_| Ok(())) {
            Ok(found) => Ok(found == (size, sha256)),
            Err(CopyError::Cancelled) => Err(Cancelled),
            Err(CopyError::Skip(_) | CopyError::Destination(_)) => Ok(false),
        }
    }

    /// Reads to the end; returns how much there was, and its hash.
    fn read_through(
        &mut self,
        mut content: impl Read,
        meter: &mut Meter<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), CopyError>,
    ) -> Result<(u64, ContentHash), CopyError> {
        let mut hash = Sha256::new();
        let mut size = 0;
        loop {
            self.cancel.check()?;
            let part = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => &self.buffer[..read],
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(CopyError::reading(&error)),
            };
            hash.update(part);
            take(part)?;
            size += part.len() as u64;
            meter.moved(part.len() as u64);
        }
        Ok((size, ContentHash(hash.finalize().into())))
    }
}

/// Where a file is, where its copy is made, and where that goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paths<'a> {
    pub(crate) from: &'a Path,
    /// On the file system of `to`.
    pub(crate) partial: &'a Path,
    pub(crate) to: &'a Path,
}

fn unchanged(before: &Metadata, after: &Metadata) -> bool {
    before.len() == after.len() && before.modified().ok() == after.modified().ok()
}

fn complete(partial: &File, modified: SystemTime) -> io::Result<()> {
    partial.set_modified(modified)?;
    os::flush_file(partial)
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
            let paths = Paths {
                from: &self.path("from"),
                partial: &self.path("partial"),
                to: &self.path("to"),
            };
            let to = paths.to;
            let old = fs::read(to).ok();
            let settle = |_: &Copied| assert_eq!(fs::read(to).ok(), old, "told too late");
            Copier::new(cancel).copy(&paths, "from", &mut meter, settle)
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
    fn cancelling_leaves_no_copy_but_what_was_made_of_it() {
        let bench = Bench::new(&vec![1; 8 * BUFFER]);
        let cancel = Cancel::default();
        let mut stop = |progress: &Progress| {
            if progress.bytes_done > 0 {
                cancel.cancel();
            }
        };
        let error = bench.copy_unless(&cancel, &mut stop).unwrap_err();
        assert!(matches!(error, CopyError::Cancelled));
        assert!(!bench.path("to").exists());
        assert!(bench.path("partial").metadata().unwrap().len() > 0);
    }

    #[test]
    fn a_copy_is_known_by_its_content() {
        let bench = Bench::new(b"hello");
        let copied = bench.copy(&mut |_| ()).unwrap();
        let cancel = Cancel::default();
        let has_content = |size| {
            let report = &mut |_: &Progress| ();
            let mut meter = Meter::start(FolderName::from_any("files"), 0, report);
            Copier::new(&cancel)
                .has_content(&bench.path("to"), size, copied.sha256, &mut meter)
                .unwrap()
        };
        assert!(has_content(5));
        assert!(!has_content(6));
        fs::write(bench.path("to"), "hallo").unwrap();
        assert!(!has_content(5));
        fs::remove_file(bench.path("to")).unwrap();
        assert!(!has_content(5));
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
