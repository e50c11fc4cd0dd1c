//! Which files are segments of the log, and how they follow one another.

use std::collections::VecDeque;
use std::io;

use crate::disk::{Disk, DiskFile};

use super::error::OutboxError;
use super::files::{segment_name, segment_number, set_aside_prefix};
use super::format::{FoundHeader, HEADERS_LEN, Position};
use super::report::{Damage, SetAside, SetAsideReason};

/// A segment's file.
pub(super) struct Candidate {
    pub(super) number: u64,
    pub(super) file: Box<dyn DiskFile>,
    pub(super) len: u64,
    pub(super) header: FoundHeader,
}

/// The segments on the disk, in their order.
pub(super) fn find(disk: &dyn Disk) -> Result<Vec<Candidate>, OutboxError> {
    let names = disk
        .list()
        .map_err(OutboxError::disk("list", "the outbox"))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment_number(name))
        .collect();
    numbers.sort_unstable();
    let candidate = |number| {
        let name = segment_name(number);
        (|| -> io::Result<_> {
            let file = disk.open(&name)?;
            let len = file.len()?;
            let header = FoundHeader::read(&read_from_start(&*file, len, HEADERS_LEN)?);
            Ok(Candidate {
                number,
                file,
                len,
                header,
            })
        })()
        .map_err(OutboxError::disk("open", &name))
    };
    numbers.into_iter().map(candidate).collect()
}

/// Reads a file of this length, but not more than the limit. Blocks that cannot be read are zeros,
/// and so damage; when none can the error is the disk's.
pub(super) fn read_from_start(file: &dyn DiskFile, len: u64, limit: usize) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 4096;
    let mut bytes = vec![0; usize::try_from(len).map_or(limit, |len| len.min(limit))];
    let Err(whole) = file.read_at(0, &mut bytes) else {
        return Ok(bytes);
    };
    let mut offset = 0;
    let mut any = false;
    for block in bytes.chunks_mut(BLOCK) {
        match file.read_at(offset, block) {
            Ok(()) => any = true,
            Err(_) => block.fill(0),
        }
        offset += BLOCK as u64;
    }
    if any { Ok(bytes) } else { Err(whole) }
}

/// Renames what this program must not touch: the whole log when any of it has another version,
/// and intact segments that belong to another outbox.
pub(super) fn set_aside_unusable(
    disk: &dyn Disk,
    candidates: &mut Vec<Candidate>,
) -> Result<Vec<SetAside>, OutboxError> {
    let other_version = candidates.iter().find_map(|one| match one.header {
        FoundHeader::OtherVersion(version) => Some(version),
        FoundHeader::Good(..) | FoundHeader::Lost => None,
    });
    let (reason, unusable) = if let Some(version) = other_version {
        let mut all = std::mem::take(candidates);
        // Those by which the log is known to be another's go last: if this is interrupted, the rest
        // follows the next time.
        all.sort_by_key(|one| matches!(one.header, FoundHeader::OtherVersion(_)));
        (SetAsideReason::OtherVersion(version), all)
    } else {
        let id = candidates
            .iter()
            .rev()
            .filter(|one| is_in_place(one))
            .find_map(|one| one.header.good())
            .map(|header| header.id);
        let misplaced = candidates
            .extract_if(.., |one| match one.header.good() {
                Some(header) => !is_in_place(one) || Some(header.id) != id,
                None => false,
            })
            .collect();
        (SetAsideReason::Misplaced, misplaced)
    };
    if unusable.is_empty() {
        return Ok(Vec::new());
    }
    let names = disk
        .list()
        .map_err(OutboxError::disk("list", "the outbox"))?;
    let prefix = set_aside_prefix(&names);
    let mut files = Vec::new();
    for Candidate { number, file, .. } in unusable {
        // Windows does not rename an open file of every kind.
        drop(file);
        let name = segment_name(number);
        let to = format!("{prefix}{name}");
        disk.rename(&name, &to)
            .and_then(|()| disk.sync())
            .map_err(OutboxError::disk("set aside", &name))?;
        files.push(to);
    }
    Ok(vec![SetAside { reason, files }])
}

fn is_in_place(candidate: &Candidate) -> bool {
    candidate
        .header
        .good()
        .is_some_and(|header| header.number == candidate.number)
}

/// A segment that counts, and its length if a later one knows it.
pub(super) struct Link {
    pub(super) candidate: Candidate,
    pub(super) known_end: Option<usize>,
    /// Whether a later segment was begun in good order, so that all that this one has was durable.
    pub(super) is_followed: bool,
}

/// The segments as their headers join them.
pub(super) struct Chain {
    /// In the order of the log.
    pub(super) valid: Vec<Link>,
    pub(super) void: VecDeque<u64>,
    /// Segments that are gone although the log goes on before them.
    pub(super) missing: Vec<Damage>,
}

impl Chain {
    pub(super) fn follow(candidates: Vec<Candidate>) -> Self {
        let mut chain = Self {
            valid: Vec::new(),
            void: VecDeque::new(),
            missing: Vec::new(),
        };
        // What the segment behind says that it follows; nothing if that cannot be read.
        let mut follows: Option<Position> = None;
        let mut is_followed = false;
        for candidate in candidates.into_iter().rev() {
            let known_end = match follows {
                Some(position) if candidate.number > position.segment => {
                    chain.void.push_front(candidate.number);
                    continue;
                }
                Some(position) if candidate.number == position.segment => {
                    Some((position.offset as usize).max(HEADERS_LEN))
                }
                Some(position) => {
                    chain.missing.push(Damage {
                        file: segment_name(position.segment),
                        offset: 0,
                        bytes: u64::from(position.offset),
                        kept_in: None,
                    });
                    None
                }
                None => None,
            };
            follows = candidate.header.good().map(|header| header.follows);
            let has_header = follows.is_some();
            chain.valid.push(Link {
                candidate,
                known_end,
                is_followed,
            });
            is_followed |= has_header;
        }
        chain.valid.reverse();
        chain
    }
}
