//! The copying part of a backup: one category after the other, file after file.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;

use super::copy::{Copied, Copier, CopyError, Paths};
use super::destination;
use super::manifest::{CategoryManifest, FileEntry, Resumed};
use super::names::{Category, FolderName};
use super::plan::BackupError;
use super::progress::{Cancelled, Meter, Progress};
use super::record::{CopiedFile, Earlier, Record};
use super::relative_path::RelativePath;
use super::skipped::{Reason, Skipped};
use super::walk::{SourceFile, Tree};
use super::work::Work;

/// What all categories of one run share.
pub(crate) struct Run<'a> {
    pub(crate) root: &'a Path,
    pub(crate) work: &'a Work,
    pub(crate) copier: Copier<'a>,
    pub(crate) report: &'a mut dyn FnMut(&Progress),
}

/// One category at work.
struct Files<'a, 'b> {
    category: &'a Category,
    tree: &'a Tree,
    /// Where its copies go.
    base: &'a Path,
    work: &'a Work,
    copier: &'a mut Copier<'b>,
    meter: Meter<'a>,
    earlier: Earlier,
    record: Record,
    resumed: Resumed,
}

impl Run<'_> {
    pub(crate) fn category(
        &mut self,
        category: &Category,
        folder: Option<FolderName>,
        tree: &Tree,
    ) -> Result<CategoryManifest, BackupError> {
        let base = match &folder {
            None => self.root.to_owned(),
            Some(folder) => self.root.join(folder.as_str()),
        };
        destination::make_folder(&base)?;
        let mut skipped = tree.skipped.clone();
        for path in &tree.folders {
            if let Err(error) = destination::make_folder(&base.join(path.as_path())) {
                skipped.push(Skipped {
                    path: path.clone(),
                    why: Reason::unwritable(&error),
                });
            }
        }
        let wanted: HashSet<&RelativePath> = tree.files.iter().map(|file| &file.path).collect();
        let record = self.work.record(&category.name);
        let earlier = Earlier::read(&record, &tree.root, &wanted);
        let mut work = Files {
            record: Record::begin(&record, &tree.root, &earlier)?,
            resumed: Resumed {
                bytes_again: earlier.bytes_again,
                ..Resumed::default()
            },
            category,
            tree,
            base: &base,
            work: self.work,
            copier: &mut self.copier,
            meter: Meter::start(category.name.clone(), tree.bytes(), &mut *self.report),
            earlier,
        };
        let mut files = Vec::with_capacity(tree.files.len());
        for file in &tree.files {
            match work.file(file) {
                Ok(entry) => files.push(entry),
                Err(CopyError::Skip(why)) => {
                    work.meter.settle(file.size, 0);
                    let path = file.path.clone();
                    skipped.push(Skipped { path, why });
                }
                Err(CopyError::Destination(error)) => return Err(error.into()),
                Err(CopyError::Cancelled) => return Err(Cancelled.into()),
            }
        }
        work.meter.finish();
        let error = failure(&skipped);
        Ok(CategoryManifest {
            source: tree.root.clone().into_os_string().into(),
            folder,
            success: error.is_none(),
            error,
            resumed: work.resumed,
            files,
            skipped,
        })
    }
}

impl Files<'_, '_> {
    /// Takes a file over from an earlier run, or copies it.
    fn file(&mut self, file: &SourceFile) -> Result<FileEntry, CopyError> {
        let from = self.tree.root.join(file.path.as_path());
        let to = self.base.join(file.path.as_path());
        let shown = file.path.display();
        let earlier = self.earlier.copy_of(&file.path).cloned();
        if let Some(earlier) = &earlier
            && self.is_whole(&from, &to, earlier, &shown)?
        {
            let entry = earlier.file.clone();
            self.meter.settle(file.size, entry.size);
            self.resumed.files += 1;
            self.resumed.bytes += entry.size;
            return Ok(entry);
        }
        let partial = self.work.partial(&self.category.name, &file.path);
        let again = match &earlier {
            Some(earlier) => earlier.file.size,
            None => partial.symlink_metadata().map_or(0, |left| left.len()),
        };
        if again > 0 {
            self.record.again(again);
            self.resumed.bytes_again += again;
        }
        let unwritable = |error| CopyError::Skip(Reason::unwritable(&error));
        destination::make_room(&to).map_err(unwritable)?;
        let paths = Paths {
            from: &from,
            partial: &partial,
            to: &to,
        };
        let begun = Timestamp::now();
        let record = &mut self.record;
        let settle = |copied: &Copied| {
            if let Ok(file) = entry(&file.path, copied) {
                record.copied(CopiedFile { file, begun });
            }
        };
        let copied = self.copier.copy(&paths, &shown, &mut self.meter, settle)?;
        self.meter.settle(file.size, copied.size);
        entry(&file.path, &copied).map_err(CopyError::Destination)
    }

    /// Whether an earlier copy is there, and is still what a copy made now would be.
    fn is_whole(
        &mut self,
        from: &Path,
        to: &Path,
        earlier: &CopiedFile,
        shown: &str,
    ) -> Result<bool, Cancelled> {
        let Ok(now) = from.symlink_metadata() else {
            return Ok(false);
        };
        let modified = now.modified().and_then(timestamp);
        if !now.is_file() || !modified.is_ok_and(|modified| earlier.is_of(now.len(), modified)) {
            return Ok(false);
        }
        self.meter.begin(shown.to_owned());
        let FileEntry { size, sha256, .. } = earlier.file;
        self.copier.has_content(to, size, sha256, &mut self.meter)
    }
}

fn entry(path: &RelativePath, copied: &Copied) -> io::Result<FileEntry> {
    Ok(FileEntry {
        path: path.clone(),
        size: copied.size,
        modified: timestamp(copied.modified)?,
        sha256: copied.sha256,
    })
}

/// The time of a file as the manifest has it.
pub(crate) fn timestamp(time: SystemTime) -> io::Result<Timestamp> {
    Timestamp::try_from(time).map_err(io::Error::other)
}

/// Says how many files are missing that should be there, and names the first.
fn failure(skipped: &[Skipped]) -> Option<String> {
    let mut failures = skipped
        .iter()
        .filter(|skipped| skipped.why.cause.is_failure());
    let first = failures.next()?;
    let more = match failures.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let Reason { cause, detail } = &first.why;
    let detail = detail
        .as_deref()
        .map(|detail| format!(" ({detail})"))
        .unwrap_or_default();
    Some(format!(
        "could not copy `{}`: {cause}{detail}{more}",
        first.path.display()
    ))
}
