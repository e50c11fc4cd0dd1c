//! A whole backup: scanned first, so that its size is known, then copied.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::copy::Copier;
use super::destination::{self, Destination, DestinationError};
use super::manifest::{CategoryManifest, Manifest, Resumed};
use super::names::{Category, FolderName};
use super::progress::{Cancel, Cancelled, Progress};
use super::run::Run;
use super::walk::{Placeholders, Tree, WalkError, walk};
use super::work::Work;
use crate::os;

/// What to back up, and where to.
#[derive(Debug, Clone)]
pub(crate) struct BackupJob {
    pub(crate) user: String,
    pub(crate) categories: Vec<Category>,
    pub(crate) destination: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) placeholders: Placeholders,
}

/// Where the copies lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Beside the manifest; for an agent that has one category.
    Flat,
    /// In one folder per category beside the manifest. A backup of some categories leaves the
    /// others as they are.
    PerCategory,
}

/// What a backup came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupReport {
    pub(crate) manifest_path: PathBuf,
    pub(crate) categories: BTreeMap<FolderName, CategoryReport>,
}

/// What one category came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CategoryReport {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Why files are missing that should be there.
    pub(crate) error: Option<String>,
    pub(crate) resumed: Resumed,
}

impl BackupReport {
    /// Forgets how the backup came about, once everybody who has to know of it does: the next one
    /// copies everything anew. Until then, and after a backup that is not complete, the next one
    /// takes over what this one copied.
    pub(crate) fn settle(&self) -> io::Result<()> {
        Work::beside(&self.manifest_path).remove()
    }
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("cannot write to the backup folder: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A scanned backup, ready to be copied.
#[derive(Debug)]
pub(crate) struct BackupPlan {
    job: BackupJob,
    /// Per category of the job, in its order: what there is, or why it cannot be read.
    trees: Vec<Result<Tree, String>>,
}

impl BackupPlan {
    /// Walks the sources. Nothing is written. A source that cannot be read is a failed category,
    /// not an error.
    pub(crate) fn scan(job: BackupJob, cancel: &Cancel) -> Result<Self, Cancelled> {
        let mut trees = Vec::with_capacity(job.categories.len());
        for category in &job.categories {
            trees.push(match walk(&category.source, job.placeholders, cancel) {
                Ok(tree) => Ok(tree),
                Err(WalkError::Cancelled(cancelled)) => return Err(cancelled),
                Err(error @ WalkError::Source { .. }) => Err(error.to_string()),
            });
        }
        Ok(Self { job, trees })
    }

    /// The size of all files that were found.
    pub(crate) fn bytes(&self) -> u64 {
        self.trees.iter().flatten().map(Tree::bytes).sum()
    }

    /// Copies everything, and writes the manifest first and last: a folder whose manifest says
    /// `unfinished` is not a backup.
    pub(crate) fn execute(
        &self,
        cancel: &Cancel,
        report: &mut dyn FnMut(&Progress),
    ) -> Result<BackupReport, BackupError> {
        let roots: Vec<&Path> = self
            .trees
            .iter()
            .flatten()
            .map(|tree| tree.root.as_path())
            .collect();
        let destination = Destination::claim(&self.job.destination, &roots)?;
        let manifest_path = destination.manifest(&self.top_names());
        let work = Work::beside(&manifest_path);
        if let Some(previous) = destination.previous_work()
            && previous.folder() != work.folder()
        {
            previous.remove()?;
        }
        work.create()?;
        let mut manifest = Manifest::begin(self.job.user.clone(), Timestamp::now());
        manifest.categories = self.carried_over(&destination);
        manifest.write(&manifest_path, &work)?;

        let mut run = Run {
            root: &destination.root,
            work: &work,
            copier: Copier::new(cancel),
            report,
        };
        for (category, tree) in self.job.categories.iter().zip(&self.trees) {
            let copied = match tree {
                Ok(tree) => run.category(category, self.folder_of(category), tree)?,
                Err(error) => self.unreadable(category, error),
            };
            manifest.categories.insert(category.name.clone(), copied);
        }
        if self
            .job
            .categories
            .iter()
            .all(|category| manifest.categories[&category.name].success)
        {
            self.prune(&destination, &manifest, &manifest_path, &work)?;
        }
        os::flush_folder(&destination.root)?;
        manifest.finish(Timestamp::now());
        manifest.write(&manifest_path, &work)?;
        Ok(self.summary(&manifest, manifest_path))
    }

    fn folder_of(&self, category: &Category) -> Option<FolderName> {
        match self.job.layout {
            Layout::Flat => None,
            Layout::PerCategory => Some(category.name.clone()),
        }
    }

    /// The names beside the manifest, in lower case because some systems do not tell cases apart.
    fn top_names(&self) -> BTreeSet<String> {
        let lower = |name: &std::ffi::OsStr| name.to_string_lossy().to_lowercase();
        let trees = self.trees.iter().flatten();
        let paths = trees.flat_map(|tree| {
            tree.files
                .iter()
                .map(|file| &file.path)
                .chain(&tree.folders)
        });
        let flat = paths.filter_map(|path| path.as_path().iter().next().map(lower));
        match self.job.layout {
            Layout::Flat => flat.collect(),
            Layout::PerCategory => self
                .job
                .categories
                .iter()
                .map(|it| it.name.as_str().to_lowercase())
                .collect(),
        }
    }

    /// Categories of the earlier backup that this one leaves alone.
    fn carried_over(&self, destination: &Destination) -> BTreeMap<FolderName, CategoryManifest> {
        let mut earlier = match (&destination.previous, self.job.layout) {
            (Some(previous), Layout::PerCategory) => previous.manifest.categories.clone(),
            _ => BTreeMap::new(),
        };
        earlier.retain(|name, category| {
            category.folder.is_some() && self.job.categories.iter().all(|it| it.name != *name)
        });
        earlier
    }

    fn unreadable(&self, category: &Category, error: &str) -> CategoryManifest {
        CategoryManifest {
            source: category.source.clone().into_os_string().into(),
            folder: self.folder_of(category),
            success: false,
            error: Some(error.to_owned()),
            resumed: Resumed::default(),
            files: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Removes what an earlier backup had and the sources have no more.
    fn prune(
        &self,
        destination: &Destination,
        manifest: &Manifest,
        manifest_path: &Path,
        work: &Work,
    ) -> io::Result<()> {
        let mut expected = BTreeSet::new();
        expected.extend(manifest_path.file_name().map(PathBuf::from));
        for (category, tree) in self.job.categories.iter().zip(&self.trees) {
            let base = self
                .folder_of(category)
                .map(PathBuf::from)
                .unwrap_or_default();
            expected.extend((!base.as_os_str().is_empty()).then(|| base.clone()));
            let files = manifest.categories[&category.name]
                .files
                .iter()
                .map(|file| &file.path);
            let folders = tree.iter().flat_map(|tree| &tree.folders);
            for path in files.chain(folders) {
                expected.extend(destination::with_ancestors(path).map(|path| base.join(path)));
            }
        }
        let of_this_job = |name: &FolderName| {
            self.job
                .categories
                .iter()
                .any(|category| category.name == *name)
        };
        let kept = manifest
            .categories
            .iter()
            .filter(|(name, _)| !of_this_job(name));
        let kept = kept.filter_map(|(_, category)| category.folder.clone().map(PathBuf::from));
        destination.prune(&expected, &kept.chain([work.name()]).collect())
    }

    fn summary(&self, manifest: &Manifest, manifest_path: PathBuf) -> BackupReport {
        let of = |category: &CategoryManifest| CategoryReport {
            files: category.files.len() as u64,
            bytes: category.files.iter().map(|file| file.size).sum(),
            error: category.error.clone(),
            resumed: category.resumed,
        };
        let names = self.job.categories.iter().map(|category| &category.name);
        let categories = names
            .map(|name| (name.clone(), of(&manifest.categories[name])))
            .collect();
        BackupReport {
            manifest_path,
            categories,
        }
    }
}

impl From<FolderName> for PathBuf {
    fn from(name: FolderName) -> Self {
        String::from(name).into()
    }
}

#[cfg(test)]
mod tests;
