//! The walk over a source: what is a file to copy, and what is left out.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::progress::{Cancel, Cancelled};
use super::relative_path::RelativePath;
use super::skipped::{Cause, Reason, Skipped};
use crate::os;

/// What to do with files whose content lies with a cloud provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Placeholders {
    /// Leave them out, so that a backup does not fetch a whole cloud drive.
    #[default]
    Skip,
    /// Read them like any other file, which fetches their content.
    Fetch,
}

/// A regular file of the source as the walk found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: RelativePath,
    pub(crate) size: u64,
}

/// Everything below one source, in a stable order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The canonical folder that all paths are relative to.
    pub(crate) root: PathBuf,
    pub(crate) folders: Vec<RelativePath>,
    pub(crate) files: Vec<SourceFile>,
    pub(crate) skipped: Vec<Skipped>,
}

impl Tree {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Why a source cannot be walked at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error("cannot read the source `{}`: {error}", path.display())]
    Source { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Walks `source`, a folder or a single file. Only `source` itself may be reached through a link.
pub(crate) fn walk(
    source: &Path,
    placeholders: Placeholders,
    cancel: &Cancel,
) -> Result<Tree, WalkError> {
    let failed = |error| WalkError::Source {
        path: source.to_owned(),
        error,
    };
    let start = source.canonicalize().map_err(failed)?;
    let metadata = start.metadata().map_err(failed)?;
    let root = match start.parent() {
        Some(parent) if !metadata.is_dir() => parent.to_owned(),
        _ => {
            start.read_dir().map_err(failed)?;
            start.clone()
        }
    };
    let mut tree = Tree {
        root,
        ..Tree::default()
    };
    let mut entries = WalkDir::new(&start).sort_by_file_name().into_iter();
    while let Some(entry) = entries.next() {
        cancel.check()?;
        match entry {
            Ok(entry) => {
                if !tree.add(&entry, placeholders) && entry.file_type().is_dir() {
                    entries.skip_current_dir();
                }
            }
            Err(error) => tree.add_error(error),
        }
    }
    Ok(tree)
}

impl Tree {
    /// Sorts one entry in; `false` means that it was left out.
    fn add(&mut self, entry: &DirEntry, placeholders: Placeholders) -> bool {
        let Some(path) = self.relative(entry.path()) else {
            return true; // the root itself
        };
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                self.add_error(error);
                return false;
            }
        };
        if let Some(cause) = left_out(&metadata, placeholders) {
            self.skipped.push(Skipped {
                path,
                why: cause.into(),
            });
            return false;
        }
        if metadata.is_dir() {
            self.folders.push(path);
        } else {
            self.files.push(SourceFile {
                path,
                size: metadata.len(),
            });
        }
        true
    }

    fn add_error(&mut self, error: walkdir::Error) {
        let Some(path) = error.path().and_then(|path| self.relative(path)) else {
            return;
        };
        let error = error
            .into_io_error()
            .unwrap_or_else(|| io::ErrorKind::Other.into());
        self.skipped.push(Skipped {
            path,
            why: Reason::unreadable(&error),
        });
    }

    fn relative(&self, path: &Path) -> Option<RelativePath> {
        RelativePath::new(path.strip_prefix(&self.root).ok()?).ok()
    }
}

fn left_out(metadata: &Metadata, placeholders: Placeholders) -> Option<Cause> {
    if os::is_cloud_placeholder(metadata) {
        return match placeholders {
            Placeholders::Skip => Some(Cause::CloudPlaceholder),
            Placeholders::Fetch => None,
        };
    }
    if metadata.is_symlink() || os::is_reparse_point(metadata) {
        return Some(Cause::Link);
    }
    (!metadata.is_dir() && !metadata.is_file()).then_some(Cause::SpecialFile)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn walk_all(source: &Path) -> Tree {
        walk(source, Placeholders::Skip, &Cancel::default()).unwrap()
    }

    fn names(tree: &Tree) -> Vec<String> {
        tree.files.iter().map(|file| file.path.display()).collect()
    }

    #[test]
    fn files_and_folders_come_in_order_with_their_sizes() {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir_all(source.path().join("b/empty")).unwrap();
        fs::write(source.path().join("b/2"), "22").unwrap();
        fs::write(source.path().join("a"), "").unwrap();
        let tree = walk_all(source.path());
        assert_eq!(names(&tree), ["a", "b/2"]);
        assert_eq!(tree.folders.len(), 2);
        assert_eq!(tree.bytes(), 2);
    }

    #[test]
    fn a_single_file_is_a_source_too() {
        let source = tempfile::tempdir().unwrap();
        let file = source.path().join("only.txt");
        fs::write(&file, "1").unwrap();
        fs::write(source.path().join("other"), "1").unwrap();
        assert_eq!(names(&walk_all(&file)), ["only.txt"]);
    }

    #[test]
    fn a_missing_source_is_an_error_that_names_it() {
        let source = tempfile::tempdir().unwrap();
        let missing = source.path().join("nowhere");
        let error = walk(&missing, Placeholders::Skip, &Cancel::default()).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }

    #[test]
    fn a_cancelled_walk_ends() {
        let source = tempfile::tempdir().unwrap();
        let cancel = Cancel::default();
        cancel.cancel();
        let result = walk(source.path(), Placeholders::Skip, &cancel);
        assert!(matches!(result, Err(WalkError::Cancelled(_))));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_special_files_are_left_out_by_name() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;

        let source = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("secret"), "not ours").unwrap();
        symlink(elsewhere.path(), source.path().join("folder")).unwrap();
        symlink(source.path(), source.path().join("loop")).unwrap();
        symlink("nowhere", source.path().join("dangling")).unwrap();
        let _listener = UnixListener::bind(source.path().join("socket")).unwrap();

        let tree = walk_all(source.path());
        assert_eq!(names(&tree), [""; 0]);
        let skipped: Vec<_> = tree
            .skipped
            .iter()
            .map(|skipped| (skipped.path.display(), skipped.why.cause))
            .collect();
        let expected = [
            ("dangling", Cause::Link),
            ("folder", Cause::Link),
            ("loop", Cause::Link),
            ("socket", Cause::SpecialFile),
        ];
        assert_eq!(
            skipped,
            expected.map(|(name, cause)| (name.to_owned(), cause))
        );
    }
}
