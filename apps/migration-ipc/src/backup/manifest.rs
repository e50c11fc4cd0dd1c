//! `manifest.json`: what a backup holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::names::FolderName;
use super::relative_path::{RelativePath, WrittenPath};
use super::skipped::Skipped;
use super::work::Work;
use crate::os;

/// What the member `format` says; another text is not one of our manifests.
const FORMAT: &str = "migration-ipc-backup/1";

/// The description of one backup folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    format: String,
    pub(crate) state: State,
    /// The name under which the agent announced its user.
    pub(crate) user: String,
    pub(crate) started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) finished: Option<Timestamp>,
    pub(crate) categories: BTreeMap<FolderName, CategoryManifest>,
}

/// What can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The backup is running, or ended before its end.
    Unfinished,
    /// Every file of the source is here, but for those that the rules leave out.
    Complete,
    /// Files that should be here are missing; `skipped` says which and why.
    Incomplete,
}

/// One category of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CategoryManifest {
    /// The folder that was copied.
    pub(crate) source: WrittenPath,
    /// The folder beside the manifest that holds the copies; absent if they lie beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) folder: Option<FolderName>,
    pub(crate) success: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// What was not copied anew because the run before this one was interrupted.
    #[serde(default, skip_serializing_if = "Resumed::is_nothing")]
    pub(crate) resumed: Resumed,
    pub(crate) files: Vec<FileEntry>,
    pub(crate) skipped: Vec<Skipped>,
}

/// What a backup that was interrupted had of use, and what was done twice for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resumed {
    /// Copies that the last run found whole, and did not make again.
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Bytes that any run had copied, and that had to be copied again.
    pub(crate) bytes_again: u64,
}

impl Resumed {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Resumed {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.bytes_again += other.bytes_again;
    }
}

impl std::iter::Sum for Resumed {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// For people; empty if nothing was resumed.
impl std::fmt::Display for Resumed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_nothing() {
            return Ok(());
        }
        write!(
            f,
            " ({} files, {} bytes taken over from an interrupted run; {} bytes copied twice)",
            self.files, self.bytes, self.bytes_again
        )
    }
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    #[serde(flatten)]
    pub(crate) path: RelativePath,
    pub(crate) size: u64,
    pub(crate) modified: Timestamp,
    pub(crate) sha256: ContentHash,
}

/// A SHA-256, written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentHash(pub(crate) [u8; 32]);

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self}"))
    }
}

impl std::fmt::Display for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        parse_hash(&digits).ok_or_else(|| de::Error::custom("a SHA-256 has 64 hexadecimal digits"))
    }
}

fn parse_hash(digits: &str) -> Option<ContentHash> {
    let mut hash = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ContentHash(hash))
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("cannot read the manifest `{}`: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("`{}` is not a manifest of a backup: {error}", path.display())]
    Malformed {
        path: PathBuf,
        error: serde_json::Error,
    },
    #[error("`{}` has the format `{format}`; this version reads `{FORMAT}`", path.display())]
    Foreign { path: PathBuf, format: String },
}

impl Manifest {
    pub(crate) fn begin(user: String, started: Timestamp) -> Self {
        Self {
            format: FORMAT.to_owned(),
            state: State::Unfinished,
            user,
            started,
            finished: None,
            categories: BTreeMap::new(),
        }
    }

    /// Sets the state that follows from the categories.
    pub(crate) fn finish(&mut self, finished: Timestamp) {
        let complete = self.categories.values().all(|category| category.success);
        self.state = if complete {
            State::Complete
        } else {
            State::Incomplete
        };
        self.finished = Some(finished);
    }

    pub(crate) fn read(path: &Path) -> Result<Self, ManifestError> {
        let unreadable = |error| ManifestError::Unreadable {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(unreadable)?;
        let manifest: Self = serde_json::from_reader(BufReader::new(file)).map_err(|error| {
            ManifestError::Malformed {
                path: path.to_owned(),
                error,
            }
        })?;
        if manifest.format == FORMAT {
            Ok(manifest)
        } else {
            Err(ManifestError::Foreign {
                path: path.to_owned(),
                format: manifest.format,
            })
        }
    }

    /// Writes the manifest so that readers, also after a power cut, see the old one or this one.
    pub(crate) fn write(&self, path: &Path, work: &Work) -> io::Result<()> {
        let staged = work.folder().join("manifest.new");
        let mut writer = BufWriter::new(os::create_private_file(&staged)?);
        serde_json::to_writer_pretty(&mut writer, self)?;
        writer.write_all(b"\n")?;
        let file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        drop(file);
        os::replace_file(&staged, path)?;
        os::flush_folder(path.parent().unwrap_or(Path::new(".")))
    }
}
