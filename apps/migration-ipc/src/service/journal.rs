//! The journal in pages, and where the service that keeps it can be asked for them.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use migration_ipc::Endpoint;
use migration_ipc::storage::{Reader, StoreError};

use crate::operator::{JournalLine, JournalPage};
use crate::os;

/// How many entries a page has at most, and how many bytes, at most by one entry more: half of what
/// a message may have.
const PAGE_ENTRIES: usize = 2000;
const PAGE_BYTES: usize = 512 * 1024;

/// The file of the data folder that says where the service listens.
const ENDPOINT_FILE: &str = "endpoint";

/// The page of the journal that begins after an entry. Blocks.
pub(crate) fn page(reader: &Reader, after: u64) -> Result<JournalPage, StoreError> {
    let found = reader.journal(after, PAGE_ENTRIES)?;
    let is_full = found.len() == PAGE_ENTRIES;
    let mut page = JournalPage {
        entries: Vec::with_capacity(found.len()),
        next: None,
    };
    let mut bytes = 0;
    let mut found = found.into_iter().peekable();
    while let Some(entry) = found.next() {
        let number = entry.number;
        let line = JournalLine::from(entry);
        bytes += serde_json::to_string(&line).map_or(0, |json| json.len());
        page.entries.push(line);
        if bytes >= PAGE_BYTES || (is_full && found.peek().is_none()) {
            page.next = Some(number);
            break;
        }
    }
    Ok(page)
}

/// Writes down where the service listens, for those who can read its data folder. Blocks.
pub(crate) fn publish_endpoint(folder: &Path, endpoint: &Endpoint) -> io::Result<()> {
    let staged = folder.join("endpoint.new");
    let mut file = os::create_private_file(&staged)?;
    file.write_all(endpoint.to_string().as_bytes())?;
    drop(file);
    os::replace_file(&staged, &folder.join(ENDPOINT_FILE))
}

/// Where the service of a data folder listens, if it runs. Blocks.
pub(crate) fn published_endpoint(folder: &Path) -> io::Result<String> {
    fs::read_to_string(folder.join(ENDPOINT_FILE))
}
