//! A list of backed-up files, as an agent makes one: paths that share their folders, sizes, times, and
//! digests in which nothing comes twice.

use std::fmt::Write as _;
use std::hint::black_box;

use migration_ipc::{MessagePayload, Sender};
use serde::{Deserialize, Serialize};

/// What the usual large manifest takes as JSON, in bytes.
pub(crate) const USUAL: usize = 64 * 1024;

/// One file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct File {
    path: String,
    size: u64,
    modified: String,
    sha256: String,
}

/// A part of a manifest, of a type that nobody acknowledges.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    files: Vec<File>,
}

impl MessagePayload for Manifest {
    const TYPE: &'static str = "MANIFEST_PART";
    const SENDER: Sender = Sender::Agent;
}

const FOLDERS: [&str; 6] = [
    "Documents",
    r"Documents\Projects\Migration",
    r"AppData\Local\Microsoft\Outlook",
    r"Pictures\2023\Summer",
    "Desktop",
    r"AppData\Roaming\Mozilla\Firefox\Profiles\x1y2z3.default-release",
];

const NAMES: [&str; 8] = [
    "Report",
    "Invoice",
    "Meeting notes",
    "IMG",
    "Budget",
    "archive",
    "Contract",
    "draft",
];

const EXTENSIONS: [&str; 6] = ["docx", "xlsx", "pdf", "jpg", "pst", "txt"];

/// The same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        let place = self.next() % words.len() as u64;
        usize::try_from(place).map_or("", |place| words[place])
    }
}

impl Manifest {
    /// One of about so many bytes of JSON.
    pub(crate) fn of_length(bytes: usize) -> Self {
        let mut numbers = Numbers(1);
        let mut files = Vec::new();
        let mut length = 0;
        while length < bytes {
            let file = file(&mut numbers);
            // Backslashes are written twice; 64 bytes are names, quotes and digits.
            length += file.path.len() + file.path.matches('\\').count() + 64 + 64 + 24;
            files.push(file);
        }
        Self { files }
    }

    /// Keeps the compiler from leaving out what was decoded.
    pub(crate) fn consume(&self) {
        black_box(self.files.iter().map(|file| file.size).sum::<u64>());
    }
}

fn file(numbers: &mut Numbers) -> File {
    let folder = numbers.of(&FOLDERS);
    let name = numbers.of(&NAMES);
    let extension = numbers.of(&EXTENSIONS);
    let number = numbers.next() % 10_000;
    let second = numbers.next() % 60;
    let minute = numbers.next() % 60;
    let mut sha256 = String::with_capacity(64);
    for _ in 0..4 {
        // Writing to a text does not fail.
        let _ = write!(sha256, "{:016x}", numbers.next());
    }
    File {
        path: format!(r"C:\Users\jdoe\{folder}\{name} {number}.{extension}"),
        size: numbers.next() % 5_000_000,
        modified: format!("2024-06-14T09:{minute:02}:{second:02}Z"),
        sha256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_about_as_long_as_asked() {
        for bytes in [1000, USUAL] {
            let json = serde_json::to_string(&Manifest::of_length(bytes)).unwrap_or_default();
            assert!(
                json.len().abs_diff(bytes) < bytes / 10 + 300,
                "{}",
                json.len()
            );
        }
    }
}
