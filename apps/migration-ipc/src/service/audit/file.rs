//! The files: one JSON object per line, bounded by taking turns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::os;

/// The file that is written now. The ones before it have a number behind their name, the oldest the
/// highest.
const FILE: &str = "audit.jsonl";

/// How long a file becomes. A record takes some 300 bytes, so one has about 25,000 of them.
pub(super) const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// How many files there are, with the one that is written now: 32 MiB in all, which somebody who does
/// nothing but cause records fills in two days.
pub(super) const FILES: usize = 4;

/// The files of a folder, open for writing.
#[derive(Debug)]
pub(super) struct AuditFiles {
    folder: PathBuf,
    limit: u64,
    file: Option<File>,
    length: u64,
    /// Whether the last line may have no end: the next record must not become a part of it.
    torn: bool,
}

impl AuditFiles {
    /// Opens the files, which are made for this account alone. Blocks.
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        let mut files = Self {
            folder: folder.to_owned(),
            limit,
            file: None,
            length: 0,
            torn: false,
        };
        files.reopen()?;
        Ok(files)
    }

    /// Appends lines, and begins a new file when one is full. Blocks. When it fails, none, some or all
    /// of them are written.
    pub(super) fn append(&mut self, lines: &[String]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines {
            let pending = self.length + bytes.len() as u64;
            if pending > 0 && pending + line.len() as u64 >= self.limit {
                self.write(&bytes)?;
                bytes.clear();
                self.turn()?;
            }
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
        }
        self.write(&bytes)
    }

    /// What was written survives a power cut from now on. Blocks.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if self.torn {
            file.write_all(b"\n")?;
            self.length += 1;
        }
        // Until all of it is written, it may be a part.
        self.torn = true;
        file.write_all(bytes)?;
        self.torn = false;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The full file becomes the first of the older ones, and the oldest goes.
    fn turn(&mut self) -> io::Result<()> {
        self.sync()?;
        self.file = None;
        for number in (1..FILES).rev() {
            let older = path(&self.folder, number);
            match fs::rename(path(&self.folder, number - 1), older) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<()> {
        let path = path(&self.folder, 0);
        let (file, length) = match path.symlink_metadata() {
            Ok(found) if found.is_file() => {
                let mut file = OpenOptions::new().read(true).append(true).open(&path)?;
                self.torn = !ends_with_line(&mut file, found.len())?;
                (file, found.len())
            }
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("`{}` is not a regular file", path.display()),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.torn = false;
                (os::create_private_file(&path)?, 0)
            }
            Err(error) => return Err(error),
        };
        self.file = Some(file);
        self.length = length;
        Ok(())
    }
}

fn path(folder: &Path, number: usize) -> PathBuf {
    match number {
        0 => folder.join(FILE),
        _ => folder.join(format!("{FILE}.{number}")),
    }
}

fn ends_with_line(file: &mut File, length: u64) -> io::Result<bool> {
    if length == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AuditLine {
    Record(Map<String, Value>),
    /// A line that is no record: its writer was killed, or the disk was full.
    Torn,
}

/// Reads the log of a folder, whether its service runs or not, the oldest records first. Blocks. `None`
/// if there is none.
pub(crate) fn read(
    folder: &Path,
    mut take: impl FnMut(AuditLine) -> io::Result<()>,
) -> io::Result<Option<()>> {
    // The newest first: a file that a running service renames meanwhile is found twice, never missed.
    let mut files: Vec<Vec<u8>> = Vec::new();
    for number in 0..FILES {
        match File::open(path(folder, number)) {
            Ok(file) => {
                let mut bytes = Vec::new();
                // What is far over the limit is not ours.
                file.take(2 * FILE_BYTES).read_to_end(&mut bytes)?;
                match files.last_mut() {
                    Some(newer) if is_beginning(newer, &bytes) => *newer = bytes,
                    Some(_) | None => files.push(bytes),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    for bytes in files.into_iter().rev() {
        for line in bytes.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let record = serde_json::from_slice(line);
                take(record.map_or(AuditLine::Torn, AuditLine::Record))?;
            }
        }
    }
    Ok(Some(()))
}

/// Whether both are the same file, read twice while it grew.
fn is_beginning(earlier: &[u8], later: &[u8]) -> bool {
    !earlier.is_empty() && later.starts_with(earlier)
}
