//! The folder beside the manifest that has what is not in the backup yet: copies being made, and
//! the records of what is copied. While it is there, the backup can go on where it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::destination::make_folder;
use super::manifest::ContentHash;
use super::names::FolderName;
use super::relative_path::RelativePath;

/// What its name ends in; the rest is the manifest's name.
const EXTENSION: &str = "work";

/// The work folder of one backup.
#[derive(Debug)]
pub(crate) struct Work {
    folder: PathBuf,
}

impl Work {
    /// The work folder beside a manifest.
    pub(crate) fn beside(manifest: &Path) -> Self {
        Self {
            folder: manifest.with_extension(EXTENSION),
        }
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        make_folder(&self.folder)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its name beside the manifest.
    pub(crate) fn name(&self) -> PathBuf {
        self.folder
            .file_name()
            .map(PathBuf::from)
            .unwrap_or_default()
    }

    /// Where the record of a category is.
    pub(crate) fn record(&self, category: &FolderName) -> PathBuf {
        self.folder.join(format!("{category}.record"))
    }

    /// Where the copy of a file is made: always in the same place, so that the next run finds how
    /// much of it there was.
    pub(crate) fn partial(&self, category: &FolderName, file: &RelativePath) -> PathBuf {
        let mut name = Sha256::new();
        name.update(category.as_str());
        name.update([0]);
        name.update(file.as_path().as_os_str().as_encoded_bytes());
        let name = ContentHash(name.finalize().into());
        self.folder.join(format!("{name}.partial"))
    }

    /// Removes the folder: there is nothing to go on with any more.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
