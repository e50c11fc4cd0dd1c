//! Keeps copies of damaged bytes.

use std::io;
use std::ops::Range;

use tracing::warn;

use crate::disk::Disk;

use super::error::{OutboxError, is_full};
use super::files::{damage_name, is_damage_name};
use super::limits::MAX_KEPT_DAMAGE_FILES;

/// Copies these ranges of a segment into a file of their own, each after a line that says where it
/// was. Gives its name; `None` when there is no room for it.
pub(super) fn keep(
    disk: &dyn Disk,
    segment: u64,
    bytes: &[u8],
    ranges: &[Range<usize>],
) -> Result<Option<String>, OutboxError> {
    let mut copy = Vec::new();
    for range in ranges {
        let (start, end) = (range.start, range.end.min(bytes.len()));
        copy.extend_from_slice(format!("bytes {start} to {end}:\n").as_bytes());
        copy.extend_from_slice(bytes.get(start..end).unwrap_or_default());
        copy.push(b'\n');
    }
    let mut attempt = 1;
    loop {
        let name = damage_name(segment, attempt);
        match write_new(disk, &name, &copy) {
            Ok(()) => return Ok(Some(name)),
            // Of an earlier time; of this damage if it could not be taken out then.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let same = holds(disk, &name, &copy).map_err(OutboxError::disk("read", &name))?;
                if same {
                    return Ok(Some(name));
                }
                attempt += 1;
            }
            Err(error) => {
                // Part of it may be there.
                let _ = disk.remove(&name);
                return if is_full(&error) {
                    Ok(None)
                } else {
                    Err(OutboxError::disk("write", &name)(error))
                };
            }
        }
    }
}

fn write_new(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let file = disk.create(name)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    disk.sync()
}

fn holds(disk: &dyn Disk, name: &str, expected: &[u8]) -> io::Result<bool> {
    let file = disk.open(name)?;
    if file.len()? != expected.len() as u64 {
        return Ok(false);
    }
    let mut bytes = vec![0; expected.len()];
    file.read_at(0, &mut bytes)?;
    Ok(bytes == expected)
}

/// Removes the oldest copies when there are too many.
pub(super) fn forget_oldest(disk: &dyn Disk) {
    let Ok(mut names) = disk.list() else {
        return;
    };
    names.retain(|name| is_damage_name(name));
    names.sort_unstable();
    let surplus = names.len().saturating_sub(MAX_KEPT_DAMAGE_FILES);
    for name in &names[..surplus] {
        if let Err(error) = disk.remove(name) {
            warn!(file = name, %error, "cannot remove an old file of damaged bytes");
        }
    }
}
