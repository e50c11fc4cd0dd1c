//! What of one category is copied already, written down while a backup runs, so that a backup that
//! was interrupted goes on where it was.
//!
//! The record is a file of lines. Each has the first digits of the SHA-256 of its text before it,
//! so that a line that was torn by a crash or damaged later is not believed; what it said is
//! copied again. The first line names the source, without which no other counts.
//!
//! A line is written before its file is put in place: a file of this backup is never in place
//! without one. That the file really got there, and is still what it was, the next run finds out
//! from the copy itself.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::manifest::{ContentHash, FileEntry};
use super::relative_path::{RelativePath, WrittenPath};
use crate::os;

/// What the first line says; another text is not one of our records.
const FORMAT: &str = "migration-ipc-record/1";

/// The longest line that is read. A path of Windows has at most 32,767 UTF-16 units, each of which
/// takes at most six bytes as JSON and four as hexadecimal digits.
const MAX_LINE: u64 = 512 * 1024;

/// How many hexadecimal digits of the SHA-256 of a line precede it.
const CHECK_DIGITS: usize = 16;

/// A file that was modified this shortly before it was copied may have been modified once more
/// without its time telling: file systems keep times only so precisely, FAT the coarsest.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
enum Line {
    Begin {
        format: String,
        source: WrittenPath,
    },
    Copied(CopiedFile),
    /// These bytes had been copied before and are being copied once more.
    Again {
        bytes: u64,
    },
}

/// A copy that is in place, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopiedFile {
    #[serde(flatten)]
    pub(crate) file: FileEntry,
    /// When copying it began.
    pub(crate) begun: Timestamp,
}

impl CopiedFile {
    /// Whether a source file of this size and time is still the one that was copied.
    pub(crate) fn is_of(&self, size: u64, modified: Timestamp) -> bool {
        let settled = SignedDuration::try_from(SETTLED)
            .ok()
            .and_then(|settled| modified.checked_add(settled).ok());
        self.file.size == size
            && self.file.modified == modified
            && settled.is_some_and(|settled| settled <= self.begun)
    }
}

/// What earlier runs of the same backup wrote down.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    copied: HashMap<RelativePath, CopiedFile>,
    /// How many bytes were copied more than once so far.
    pub(crate) bytes_again: u64,
}

impl Earlier {
    /// Reads a record of this source, and of it the `wanted` files, which bounds what is kept. A
    /// record that is missing, or of another source, says nothing; a damaged one says what is
    /// intact.
    pub(crate) fn read(path: &Path, source: &Path, wanted: &HashSet<&RelativePath>) -> Self {
        let mut earlier = Self::default();
        match File::open(path) {
            Ok(file) => {
                if let Err(error) = earlier.fill(file, source, wanted) {
                    tracing::warn!(path = %path.display(), %error, "the record of a backup was not read to its end");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the record of a backup cannot be read");
            }
        }
        earlier
    }

    fn fill(
        &mut self,
        file: File,
        source: &Path,
        wanted: &HashSet<&RelativePath>,
    ) -> io::Result<()> {
        let expected = WrittenPath::from(source.as_os_str().to_owned());
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        let mut damaged = 0_u64;
        let mut begun = false;
        loop {
            text.clear();
            if (&mut reader).take(MAX_LINE).read_until(b'\n', &mut text)? == 0 {
                break;
            }
            match parse(&text) {
                Some(Line::Begin { format, source }) if !begun => {
                    begun = format == FORMAT && source == expected;
                }
                Some(Line::Copied(copied)) if begun => {
                    if wanted.contains(&copied.file.path) {
                        self.copied.insert(copied.file.path.clone(), copied);
                    }
                }
                Some(Line::Again { bytes }) if begun => {
                    self.bytes_again = self.bytes_again.saturating_add(bytes);
                }
                Some(_) => {}
                None => damaged += 1,
            }
            if !begun {
                break;
            }
        }
        if damaged > 0 {
            tracing::warn!(
                damaged,
                "the record of a backup has damaged lines; their files are copied again"
            );
        }
        Ok(())
    }

    pub(crate) fn copy_of(&self, path: &RelativePath) -> Option<&CopiedFile> {
        self.copied.get(path)
    }
}

/// A record that is being written.
#[derive(Debug)]
pub(crate) struct Record {
    /// `None` once writing has failed. A backup needs no record; only one that is interrupted
    /// has more to do without it.
    file: Option<File>,
}

impl Record {
    /// Begins a record with what is known from earlier runs. One that is there is replaced in one
    /// step, by one that is no longer than what it has to say.
    pub(crate) fn begin(path: &Path, source: &Path, earlier: &Earlier) -> io::Result<Self> {
        let staged = path.with_extension("new");
        let mut writer = BufWriter::new(os::create_private_file(&staged)?);
        let begin = Line::Begin {
            format: FORMAT.to_owned(),
            source: source.as_os_str().to_owned().into(),
        };
        writer.write_all(&written(&begin)?)?;
        if earlier.bytes_again > 0 {
            let bytes = earlier.bytes_again;
            writer.write_all(&written(&Line::Again { bytes })?)?;
        }
        for copied in earlier.copied.values() {
            writer.write_all(&written(&Line::Copied(copied.clone()))?)?;
        }
        let file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        os::replace_file(&staged, path)?;
        Ok(Self { file: Some(file) })
    }

    /// A copy is about to be put in place.
    pub(crate) fn copied(&mut self, copied: CopiedFile) {
        self.append(&Line::Copied(copied));
    }

    /// Bytes that had been copied before are about to be copied once more.
    pub(crate) fn again(&mut self, bytes: u64) {
        self.append(&Line::Again { bytes });
    }

    fn append(&mut self, line: &Line) {
        let Some(file) = &mut self.file else {
            return;
        };
        // One call for the whole line: only a crash of the system can tear it.
        if let Err(error) = written(line).and_then(|text| file.write_all(&text)) {
            tracing::warn!(%error, "the record of the backup ends here");
            self.file = None;
        }
    }
}

/// A line as it is in the file.
fn written(line: &Line) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(line)?;
    Ok(format!("{} {json}\n", check_of(json.as_bytes())).into_bytes())
}

/// A line of the file, if it is intact.
fn parse(text: &[u8]) -> Option<Line> {
    let text = text.strip_suffix(b"\n")?;
    let (check, json) = text.split_at_checked(CHECK_DIGITS)?;
    let json = json.strip_prefix(b" ")?;
    if check_of(json).as_bytes() != check {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn check_of(json: &[u8]) -> String {
    let mut digits = ContentHash(Sha256::digest(json).into()).to_string();
    digits.truncate(CHECK_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SOURCE: &str = "/home/alice";

    fn relative(path: &str) -> RelativePath {
        RelativePath::new(Path::new(path)).unwrap()
    }

    fn copied(path: &str) -> CopiedFile {
        CopiedFile {
            file: FileEntry {
                path: relative(path),
                size: 5,
                modified: "2024-01-01T12:00:00Z".parse().unwrap(),
                sha256: ContentHash([7; 32]),
            },
            begun: "2024-01-02T12:00:00Z".parse().unwrap(),
        }
    }

    struct Scratch(tempfile::TempDir);

    impl Scratch {
        fn with(names: &[&str]) -> Self {
            let scratch = Self(tempfile::tempdir().unwrap());
            let mut record = scratch.begin(&Earlier::default());
            names.iter().for_each(|name| record.copied(copied(name)));
            scratch
        }

        fn path(&self) -> std::path::PathBuf {
            self.0.path().join("files.record")
        }

        fn begin(&self, earlier: &Earlier) -> Record {
            Record::begin(&self.path(), Path::new(SOURCE), earlier).unwrap()
        }

        fn read(&self) -> Earlier {
            self.read_of(SOURCE)
        }

        fn read_of(&self, source: &str) -> Earlier {
            let wanted = [relative("a"), relative("b"), relative("c")];
            Earlier::read(&self.path(), Path::new(source), &wanted.iter().collect())
        }

        fn text(&self) -> Vec<u8> {
            fs::read(self.path()).unwrap()
        }
    }

    fn names(earlier: &Earlier) -> Vec<String> {
        let mut names: Vec<_> = earlier.copied.keys().map(RelativePath::display).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_written_is_read_and_kept_when_the_next_run_begins() {
        let scratch = Scratch::with(&["a", "b"]);
        let earlier = scratch.read();
        assert_eq!(earlier.copy_of(&relative("a")), Some(&copied("a")));
        let mut record = scratch.begin(&earlier);
        record.again(3);
        record.copied(copied("c"));
        drop(record);
        assert_eq!(names(&scratch.read()), ["a", "b", "c"]);
        let mut record = scratch.begin(&scratch.read());
        record.again(4);
        assert_eq!(scratch.read().bytes_again, 7);
    }

    #[test]
    fn it_stays_as_short_as_what_it_says() {
        let scratch = Scratch::with(&["a", "b", "gone from the source"]);
        for _ in 0..10 {
            let mut record = scratch.begin(&scratch.read());
            record.copied(copied("a"));
        }
        let lines = scratch.text().iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(lines, 4, "the first, two files, and `a` once more");
    }

    #[test]
    fn any_damaged_byte_costs_at_most_the_lines_it_touches() {
        let scratch = Scratch::with(&["a", "b", "c"]);
        let intact = scratch.text();
        let first = intact.iter().position(|&byte| byte == b'\n').unwrap();
        for at in 0..intact.len() {
            let mut damaged = intact.clone();
            damaged[at] ^= 0x15;
            fs::write(scratch.path(), &damaged).unwrap();
            let earlier = scratch.read();
            let least = if at <= first { 0 } else { 1 };
            assert!(earlier.copied.len() >= least, "byte {at}");
            for path in ["a", "b", "c"].map(relative) {
                let found = earlier.copy_of(&path);
                let expected = copied(&path.display());
                assert!(found.is_none_or(|found| *found == expected), "byte {at}");
            }
        }
    }

    #[test]
    fn a_record_cut_off_anywhere_keeps_its_whole_lines() {
        let scratch = Scratch::with(&["a", "b", "c"]);
        let intact = scratch.text();
        for end in 0..intact.len() {
            fs::write(scratch.path(), &intact[..end]).unwrap();
            let whole = intact[..end].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(
                scratch.read().copied.len(),
                whole.saturating_sub(1),
                "{end}"
            );
        }
    }

    #[test]
    fn the_record_of_another_source_says_nothing() {
        let scratch = Scratch::with(&["a"]);
        assert_eq!(names(&scratch.read_of("/home/bob")), [""; 0]);
    }

    #[test]
    fn something_that_is_no_record_says_nothing_however_long_it_is() {
        let scratch = Scratch::with(&[]);
        let length = usize::try_from(MAX_LINE).unwrap() * 2;
        fs::write(scratch.path(), vec![b'x'; length]).unwrap();
        assert_eq!(names(&scratch.read()), [""; 0]);
        fs::remove_file(scratch.path()).unwrap();
        assert_eq!(names(&scratch.read()), [""; 0]);
    }

    #[test]
    fn a_file_that_was_modified_just_before_its_copy_is_not_trusted() {
        let modified: Timestamp = "2024-01-01T12:00:00Z".parse().unwrap();
        let begun = |text: &str| CopiedFile {
            begun: text.parse().unwrap(),
            ..copied("a")
        };
        assert!(begun("2024-01-01T12:00:02Z").is_of(5, modified));
        assert!(!begun("2024-01-01T12:00:01.9Z").is_of(5, modified));
        assert!(
            !begun("2023-12-31T12:00:00Z").is_of(5, modified),
            "the future"
        );
        assert!(!copied("a").is_of(6, modified));
        assert!(!copied("a").is_of(5, "2024-01-01T12:00:01Z".parse().unwrap()));
    }
}
