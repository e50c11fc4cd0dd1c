//! The checker: walks the sources and compares a backup with them, byte by byte.
//!
//! It trusts neither the manifest nor what the backup reported. A file of the source that the
//! backup lacks, has differently or has too much is found, and so is a manifest that says
//! something else than the source does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::copy::BUFFER;
use super::manifest::{
    CategoryManifest, ContentHash, FileEntry, Manifest, ManifestError, Resumed, State,
};
use super::names::FolderName;
use super::progress::{Cancel, Cancelled};
use super::relative_path::RelativePath;
use super::run::timestamp;
use super::skipped::Cause;
use super::walk::{Placeholders, Tree, WalkError, walk};
use super::work::Work;
use crate::os;

/// What a check compared and found.
#[derive(Debug, Default)]
pub(crate) struct CheckReport {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// What the manifest says about runs that were interrupted.
    pub(crate) resumed: Resumed,
    pub(crate) differences: Vec<Difference>,
}

/// One way in which a backup is not its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The file or folder, with its category; empty for the backup as a whole.
    pub(crate) path: String,
    pub(crate) kind: Kind,
}

/// What is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Unfinished,
    CategoryMissing,
    CategoryFailed(String),
    Missing,
    Extra,
    /// The first byte that differs, counted from 0.
    ByteDiffers(u64),
    LengthDiffers {
        source: u64,
        backup: u64,
    },
    NotInManifest,
    OnlyInManifest,
    ManifestSize {
        source: u64,
        manifest: u64,
    },
    ManifestTime {
        source: Timestamp,
        manifest: Timestamp,
    },
    ManifestHash,
    Unreadable(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        match &self.kind {
            Kind::Unfinished => f.write_str("the backup was not finished"),
            Kind::CategoryMissing => f.write_str("the manifest has no such category"),
            Kind::CategoryFailed(error) => write!(f, "the backup of the category failed: {error}"),
            Kind::Missing => f.write_str("missing in the backup"),
            Kind::Extra => f.write_str("in the backup but not in the source"),
            Kind::ByteDiffers(at) => write!(f, "byte {at} differs from the source"),
            Kind::LengthDiffers { source, backup } => {
                write!(f, "{backup} bytes in the backup, {source} in the source")
            }
            Kind::NotInManifest => f.write_str("missing in the manifest"),
            Kind::OnlyInManifest => f.write_str("in the manifest but not in the source"),
            Kind::ManifestSize { source, manifest } => {
                write!(
                    f,
                    "{manifest} bytes in the manifest, {source} in the source"
                )
            }
            Kind::ManifestTime { source, manifest } => {
                write!(
                    f,
                    "modified {source} by the source, {manifest} by the manifest"
                )
            }
            Kind::ManifestHash => f.write_str("the manifest has another hash than the source"),
            Kind::Unreadable(error) => write!(f, "cannot be compared: {error}"),
        }
    }
}

/// Why a check could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error("the manifest names the source of `{0}` in a way that this system cannot read")]
    Source(FolderName),
}

impl From<Cancelled> for CheckError {
    fn from(cancelled: Cancelled) -> Self {
        WalkError::from(cancelled).into()
    }
}

/// Compares the backup that `manifest` describes with `sources`; with none given, with those that
/// the manifest names.
pub(crate) fn check(
    manifest_path: &Path,
    sources: &BTreeMap<FolderName, PathBuf>,
    cancel: &Cancel,
) -> Result<CheckReport, CheckError> {
    let manifest = Manifest::read(manifest_path)?;
    let named;
    let sources = if sources.is_empty() {
        named = sources_of(&manifest)?;
        &named
    } else {
        sources
    };
    let mut check = Check {
        cancel,
        report: CheckReport::default(),
    };
    if manifest.state == State::Unfinished {
        check.differs("", Kind::Unfinished);
    }
    let root = manifest_path.parent().unwrap_or(Path::new("."));
    let own = Own {
        manifest: manifest_path.file_name().map(PathBuf::from),
        work: Work::beside(manifest_path).name(),
    };
    for (name, source) in sources {
        match manifest.categories.get(name) {
            None => check.differs(name.as_str(), Kind::CategoryMissing),
            Some(category) => {
                check.category(name, source, category, root, &own)?;
            }
        }
    }
    check.strays(root, &manifest, &own)?;
    Ok(check.report)
}

fn sources_of(manifest: &Manifest) -> Result<BTreeMap<FolderName, PathBuf>, CheckError> {
    let source = |(name, category): (&FolderName, &CategoryManifest)| {
        let exact = category.source.clone().exact();
        let exact = exact.ok_or_else(|| CheckError::Source(name.clone()))?;
        Ok((name.clone(), PathBuf::from(exact)))
    };
    manifest.categories.iter().map(source).collect()
}

/// What lies beside the copies and is none.
struct Own {
    manifest: Option<PathBuf>,
    work: PathBuf,
}

impl Own {
    fn has(&self, path: &Path) -> bool {
        self.manifest.as_deref() == Some(path) || path.starts_with(&self.work)
    }
}

struct Check<'a> {
    cancel: &'a Cancel,
    report: CheckReport,
}

impl Check<'_> {
    fn differs(&mut self, path: impl Into<String>, kind: Kind) {
        self.report.differences.push(Difference {
            path: path.into(),
            kind,
        });
    }

    fn category(
        &mut self,
        name: &FolderName,
        source: &Path,
        category: &CategoryManifest,
        root: &Path,
        own: &Own,
    ) -> Result<(), CheckError> {
        self.report.resumed += category.resumed;
        if let Some(error) = &category.error {
            self.differs(name.as_str(), Kind::CategoryFailed(error.clone()));
        }
        let base = category
            .folder
            .as_ref()
            .map_or(root.to_owned(), |it| root.join(it.as_str()));
        let source = walk(source, Placeholders::Fetch, self.cancel)?;
        let backup = walk(&base, Placeholders::Fetch, self.cancel)?;
        let mut listed: BTreeMap<&RelativePath, &FileEntry> = category
            .files
            .iter()
            .map(|entry| (&entry.path, entry))
            .collect();
        let in_cloud: BTreeSet<&RelativePath> = category
            .skipped
            .iter()
            .filter(|skipped| skipped.why.cause == Cause::CloudPlaceholder)
            .map(|skipped| &skipped.path)
            .collect();

        for file in source
            .files
            .iter()
            .filter(|file| !in_cloud.contains(&file.path))
        {
            self.cancel.check()?;
            let shown = format!("{name}: {}", file.path.display());
            let paths = Paths {
                source: source.root.join(file.path.as_path()),
                backup: backup.root.join(file.path.as_path()),
            };
            self.file(&shown, &paths, listed.remove(&file.path))?;
        }
        for path in listed.into_keys() {
            self.differs(format!("{name}: {}", path.display()), Kind::OnlyInManifest);
        }
        let own = |path: &RelativePath| category.folder.is_none() && own.has(path.as_path());
        self.shape(name, &source, &backup, own);
        Ok(())
    }

    /// Folders that are missing, and files and folders that are too much.
    fn shape(
        &mut self,
        name: &FolderName,
        source: &Tree,
        backup: &Tree,
        own: impl Fn(&RelativePath) -> bool,
    ) {
        let files = |tree: &Tree| -> BTreeSet<RelativePath> {
            tree.files.iter().map(|file| file.path.clone()).collect()
        };
        let folders =
            |tree: &Tree| -> BTreeSet<RelativePath> { tree.folders.iter().cloned().collect() };
        for folder in folders(source).difference(&folders(backup)) {
            self.differs(format!("{name}: {}", folder.display()), Kind::Missing);
        }
        let links = backup.skipped.iter().map(|skipped| skipped.path.clone());
        let backup_has = &(&files(backup) | &folders(backup)) | &links.collect();
        let source_has = &files(source) | &folders(source);
        for path in backup_has.difference(&source_has).filter(|path| !own(path)) {
            self.differs(format!("{name}: {}", path.display()), Kind::Extra);
        }
    }

    fn file(
        &mut self,
        shown: &str,
        paths: &Paths,
        entry: Option<&FileEntry>,
    ) -> Result<(), Cancelled> {
        match compare(paths, self.cancel) {
            Ok(compared) => {
                self.report.files += 1;
                self.report.bytes += compared.size;
                let kinds = compared.kinds_against(entry);
                kinds.into_iter().for_each(|kind| self.differs(shown, kind));
            }
            Err(CompareError::Cancelled(cancelled)) => return Err(cancelled),
            Err(CompareError::Missing) => self.differs(shown, Kind::Missing),
            Err(CompareError::Io(error)) => {
                self.differs(shown, Kind::Unreadable(error.to_string()));
            }
        }
        Ok(())
    }

    /// What lies beside the manifest of a backup with a folder per category.
    fn strays(&mut self, root: &Path, manifest: &Manifest, own: &Own) -> Result<(), CheckError> {
        let mut folders = BTreeSet::new();
        for category in manifest.categories.values() {
            let Some(folder) = &category.folder else {
                return Ok(()); // everything beside the manifest was compared
            };
            folders.insert(PathBuf::from(folder.clone()));
        }
        let failed = |error| WalkError::Source {
            path: root.to_owned(),
            error,
        };
        for entry in root.read_dir().map_err(failed)? {
            let name = PathBuf::from(entry.map_err(failed)?.file_name());
            if !folders.contains(&name) && !own.has(&name) {
                self.differs(name.to_string_lossy(), Kind::Extra);
            }
        }
        Ok(())
    }
}

/// One file in both places.
struct Paths {
    source: PathBuf,
    backup: PathBuf,
}

/// A source file as it is, and where its backup differs.
struct Compared {
    size: u64,
    modified: Timestamp,
    sha256: ContentHash,
    difference: Option<Kind>,
}

enum CompareError {
    Missing,
    Io(io::Error),
    Cancelled(Cancelled),
}

impl From<io::Error> for CompareError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Compared {
    fn kinds_against(self, entry: Option<&FileEntry>) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.difference.into_iter().collect();
        let Some(entry) = entry else {
            kinds.push(Kind::NotInManifest);
            return kinds;
        };
        if entry.size != self.size {
            kinds.push(Kind::ManifestSize {
                source: self.size,
                manifest: entry.size,
            });
        }
        if entry.modified != self.modified {
            kinds.push(Kind::ManifestTime {
                source: self.modified,
                manifest: entry.modified,
            });
        }
        if entry.sha256 != self.sha256 {
            kinds.push(Kind::ManifestHash);
        }
        kinds
    }
}

fn compare(paths: &Paths, cancel: &Cancel) -> Result<Compared, CompareError> {
    let mut source = os::open_source(&paths.source)?;
    let mut backup = match os::open_source(&paths.backup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CompareError::Missing),
        opened => opened?,
    };
    let modified = timestamp(source.metadata()?.modified()?)?;
    let backup_size = backup.metadata()?.len();
    let (mut ours, mut theirs) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut difference = None;
    loop {
        cancel.check().map_err(CompareError::Cancelled)?;
        let read = read_full(&mut source, &mut ours)?;
        let copied = read_full(&mut backup, &mut theirs)?;
        if read == 0 {
            break;
        }
        let common = read.min(copied);
        if difference.is_none() && ours[..common] != theirs[..common] {
            let at = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            difference = Some(Kind::ByteDiffers(size + at as u64));
        }
        hash.update(&ours[..read]);
        size += read as u64;
    }
    if size != backup_size {
        difference = Some(Kind::LengthDiffers {
            source: size,
            backup: backup_size,
        });
    }
    Ok(Compared {
        size,
        modified,
        sha256: ContentHash(hash.finalize().into()),
        difference,
    })
}

/// Fills the buffer unless the file ends before.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
