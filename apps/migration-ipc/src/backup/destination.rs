//! The folder that a backup is written to.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use migration_ipc::storage::disk::retry_held;
use walkdir::WalkDir;

use super::manifest::Manifest;
use super::relative_path::RelativePath;
use super::work::Work;
use crate::os;

/// How many names for the manifest are tried; a source has rarely more than one of them.
const MANIFEST_NAMES: u32 = 100;

/// Why a folder cannot be the destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DestinationError {
    #[error(
        "the backup folder `{}` lies inside the source `{}` and would be copied into itself; \
         choose one outside",
        destination.display(), source_folder.display()
    )]
    InsideSource {
        destination: PathBuf,
        source_folder: PathBuf,
    },
    #[error(
        "the source `{}` lies inside the backup folder `{}`, whose content a backup replaces; \
         choose another folder",
        source_folder.display(), destination.display()
    )]
    AroundSource {
        destination: PathBuf,
        source_folder: PathBuf,
    },
    #[error(
        "`{}` is not empty and holds no backup, and its content would be replaced; choose an \
         empty or new folder",
        .0.display()
    )]
    NotOurs(PathBuf),
    #[error("cannot use the backup folder `{}`: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// A folder that belongs to one backup: new, empty, or with an earlier backup in it.
#[derive(Debug)]
pub(crate) struct Destination {
    /// Canonical, so that paths of any length work below it on Windows.
    pub(crate) root: PathBuf,
    pub(crate) previous: Option<Previous>,
}

/// The earlier backup, finished or not.
#[derive(Debug)]
pub(crate) struct Previous {
    /// The name of its manifest.
    name: String,
    pub(crate) manifest: Manifest,
}

impl Destination {
    /// Creates the folder if need be. Nothing is created or changed when this fails.
    pub(crate) fn claim(path: &Path, sources: &[&Path]) -> Result<Self, DestinationError> {
        let failed = |error| DestinationError::Io {
            path: path.to_owned(),
            error,
        };
        let resolved = resolve(path).map_err(failed)?;
        for source in sources {
            refuse_nesting(&resolved, source)?;
        }
        let previous = find_manifest(&resolved).map_err(failed)?;
        if previous.is_none() && !is_vacant(&resolved).map_err(failed)? {
            return Err(DestinationError::NotOurs(resolved));
        }
        os::create_private_folders(&resolved).map_err(failed)?;
        Ok(Self {
            root: resolved.canonicalize().map_err(failed)?,
            previous,
        })
    }

    /// Where the manifest goes: to the first name that none of the `taken` names at the top equals
    /// on any system, and with which the work folder's name is free too. The earlier one's comes
    /// first; what was begun beside it can be gone on with.
    pub(crate) fn manifest(&self, taken: &BTreeSet<String>) -> PathBuf {
        let previous = self.previous.iter().map(|previous| previous.name.clone());
        let is_free = |name: &String| {
            let work = Work::beside(Path::new(name)).name();
            !taken.contains(name) && !taken.contains(&*work.to_string_lossy())
        };
        let name = previous
            .chain(manifest_names())
            .find(is_free)
            .unwrap_or_else(|| "migration-ipc-manifest.json".to_owned());
        self.root.join(name)
    }

    /// The work folder of the earlier backup.
    pub(crate) fn previous_work(&self) -> Option<Work> {
        let previous = self.previous.as_ref()?;
        Some(Work::beside(&self.root.join(&previous.name)))
    }

    /// Removes everything that is neither `expected` nor below one of the `kept` folders.
    pub(crate) fn prune(
        &self,
        expected: &BTreeSet<PathBuf>,
        kept: &BTreeSet<PathBuf>,
    ) -> io::Result<()> {
        let mut entries = WalkDir::new(&self.root).min_depth(1).into_iter();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let relative = entry
                .path()
                .strip_prefix(&self.root)
                .map_err(io::Error::other)?;
            let folder = entry.file_type().is_dir();
            if kept.contains(relative) {
                if folder {
                    entries.skip_current_dir();
                }
            } else if !expected.contains(relative) {
                remove(entry.path(), folder)?;
                if folder {
                    entries.skip_current_dir();
                }
            }
        }
        Ok(())
    }
}

/// Makes a folder at `path`, in place of whatever else is there. Its parent is a real folder.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => remove(path, false)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    os::create_private_folders(path)
}

/// Makes room for a file at `path`: a folder there is removed, a file stays until it is replaced.
pub(crate) fn make_room(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => remove(path, true),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path, folder: bool) -> io::Result<()> {
    retry_held(|| {
        if folder {
            fs::remove_dir_all(path)
        } else {
            os::remove_file_or_link(path)
        }
    })
}

fn manifest_names() -> impl Iterator<Item = String> {
    let numbered = (1..MANIFEST_NAMES).map(|number| format!("manifest-{number}.json"));
    std::iter::once("manifest.json".to_owned()).chain(numbered)
}

fn refuse_nesting(destination: &Path, source: &Path) -> Result<(), DestinationError> {
    let both = || (destination.to_owned(), source.to_owned());
    if destination.starts_with(source) {
        let (destination, source_folder) = both();
        Err(DestinationError::InsideSource {
            destination,
            source_folder,
        })
    } else if source.starts_with(destination) {
        let (destination, source_folder) = both();
        Err(DestinationError::AroundSource {
            destination,
            source_folder,
        })
    } else {
        Ok(())
    }
}

/// The canonical form of a path that need not exist yet: of its nearest existing ancestor, with
/// the rest behind it.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for ancestor in absolute.ancestors() {
        match ancestor.canonicalize() {
            Ok(existing) => {
                let rest = absolute.strip_prefix(ancestor).map_err(io::Error::other)?;
                let missing = !rest.as_os_str().is_empty();
                return Ok(if missing {
                    existing.join(rest)
                } else {
                    existing
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether nothing is in a folder, or what a backup makes before its first manifest.
fn is_vacant(folder: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let works: BTreeSet<PathBuf> = manifest_names()
        .map(|name| Work::beside(Path::new(&name)).name())
        .collect();
    for entry in entries {
        if !works.contains(Path::new(&entry?.file_name())) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn find_manifest(folder: &Path) -> io::Result<Option<Previous>> {
    for name in manifest_names() {
        let path = folder.join(&name);
        if path.try_exists()?
            && let Ok(manifest) = Manifest::read(&path)
        {
            return Ok(Some(Previous { name, manifest }));
        }
    }
    Ok(None)
}

/// The paths of `relative` and of all folders that lead to it.
pub(crate) fn with_ancestors(relative: &RelativePath) -> impl Iterator<Item = PathBuf> {
    relative
        .as_path()
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_inside_its_source_is_refused_before_anything_is_made() {
        let source = tempfile::tempdir().unwrap();
        let root = source.path().canonicalize().unwrap();
        let inside = source.path().join("a/backups");
        let error = Destination::claim(&inside, &[&root]).unwrap_err();
        assert!(
            matches!(error, DestinationError::InsideSource { .. }),
            "{error}"
        );
        assert!(!source.path().join("a").exists());
        let error = Destination::claim(&root, &[&root]).unwrap_err();
        assert!(
            matches!(error, DestinationError::InsideSource { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_source_inside_its_destination_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let source = outer.path().join("docs");
        fs::create_dir(&source).unwrap();
        let source = source.canonicalize().unwrap();
        let error = Destination::claim(outer.path(), &[&source]).unwrap_err();
        assert!(
            matches!(error, DestinationError::AroundSource { .. }),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_does_not_hide_that_a_destination_is_inside_its_source() {
        let source = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let root = source.path().canonicalize().unwrap();
        let link = elsewhere.path().join("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        let error = Destination::claim(&link.join("backups"), &[&root]).unwrap_err();
        assert!(
            matches!(error, DestinationError::InsideSource { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_sibling_with_a_common_prefix_is_not_inside() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().canonicalize().unwrap();
        Destination::claim(&root.join("docs-backup"), &[&root.join("docs")]).unwrap();
    }

    #[test]
    fn a_folder_with_foreign_content_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
        fs::write(folder.path().join("manifest.json"), "{}").unwrap();
        let error = Destination::claim(folder.path(), &[]).unwrap_err();
        assert!(matches!(error, DestinationError::NotOurs(_)), "{error}");
    }

    #[test]
    fn what_a_backup_makes_before_its_first_manifest_is_no_foreign_content() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifest.work")).unwrap();
        Destination::claim(folder.path(), &[]).unwrap();
    }

    #[test]
    fn the_manifest_gives_way_to_files_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let destination = Destination::claim(folder.path(), &[]).unwrap();
        let name = |taken: &[&str]| {
            let taken = taken.iter().map(|&name| name.to_owned()).collect();
            let manifest = destination.manifest(&taken);
            manifest.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(name(&[]), "manifest.json");
        assert_eq!(
            name(&["manifest.json", "manifest-1.json"]),
            "manifest-2.json"
        );
        assert_eq!(name(&["manifest.work"]), "manifest-1.json");
    }
}
