//! Logs that this program must not touch.

use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::outbox::{Outbox, OutboxIdentity, SetAsideReason};
use migration_ipc_testkit::disk::SimDisk;

use crate::bench::{ID, contents, open, small};

const OTHER_ID: OutboxId = OutboxId::from_bytes([8; 16]);

fn filled() -> SimDisk {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    while disk.files().len() < 3 {
        outbox.append(&[b'x'; 100]).unwrap();
        outbox.sync().unwrap();
    }
    disk
}

/// What the format promises for all its versions: 16 bytes at two places.
fn as_version(bytes: &mut [u8], version: u32) {
    for copy in [0, 64] {
        bytes[copy + 8..copy + 12].copy_from_slice(&version.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[copy..copy + 12]);
        bytes[copy + 12..copy + 16].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[test]
fn a_log_of_a_newer_version_is_set_aside_whole() {
    let disk = filled();
    let files = disk.files();
    let (newest, _) = files.last().unwrap();
    let mut bytes = disk.content(newest).unwrap();
    as_version(&mut bytes, 2);
    disk.put(newest, &bytes);
    let before: Vec<_> = files.iter().map(|(name, _)| disk.content(name)).collect();

    // Whenever the machine stops while the files are renamed: in the end all of them are.
    for crash in 0..5 {
        let disk = disk.fork();
        disk.crash_at_sync(crash);
        let _ = Outbox::open(Arc::new(disk.clone()), small(), OTHER_ID);
        let disk = disk.restart();
        let (mut outbox, report) = Outbox::open(Arc::new(disk.clone()), small(), OTHER_ID).unwrap();
        assert_eq!(outbox.waiting_messages(), 0);
        assert_eq!(outbox.id(), OTHER_ID);
        for set_aside in &report.set_aside {
            assert_eq!(set_aside.reason, SetAsideReason::OtherVersion(2));
        }
        let mut kept: Vec<_> = disk.files();
        kept.retain(|(name, _)| name.starts_with("set-aside-"));
        kept.sort_by_key(|(name, _)| name.get(12..).map(str::to_owned));
        let kept: Vec<_> = kept.iter().map(|(name, _)| disk.content(name)).collect();
        assert_eq!(kept, before);
        outbox.append(b"new").unwrap();
        outbox.sync().unwrap();
    }
}

#[test]
fn two_newer_logs_are_kept_apart() {
    let disk = filled();
    for _ in 0..2 {
        let (name, _) = disk.files().remove(0);
        let mut bytes = disk.content(&name).unwrap();
        as_version(&mut bytes, 9);
        disk.put("outbox-0000000000000009.log", &bytes);
        open(&disk);
    }
    let files = disk.files();
    let kept = |prefix: &str| {
        files
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .count()
    };
    assert_eq!(kept("set-aside-1-"), 4);
    assert_eq!(kept("set-aside-2-"), 2);
}

/// Somebody copies a file from another folder, or renames one.
#[test]
fn a_segment_of_another_outbox_is_set_aside() {
    let disk = filled();
    let expected = contents(&open(&disk).0);
    let other = SimDisk::new(0);
    Outbox::open(Arc::new(other.clone()), small(), OTHER_ID).unwrap();
    let foreign = other.content("outbox-0000000000000001.log").unwrap();
    // Renamed, it does not say what it is called.
    disk.put("outbox-0000000000000007.log", &foreign);
    let (outbox, report) = open(&disk);
    assert_eq!(report.identity, OutboxIdentity::Found);
    assert_eq!(outbox.id(), ID);
    assert_eq!(contents(&outbox), expected);
    assert_eq!(report.set_aside[0].reason, SetAsideReason::Misplaced);
    let kept = "set-aside-1-outbox-0000000000000007.log";
    assert_eq!(report.set_aside[0].files, [kept]);
    assert_eq!(disk.content(kept), Some(foreign));
    assert_eq!(open(&disk).1.set_aside, []);
}

#[test]
fn other_files_are_left_alone() {
    let disk = filled();
    disk.put("state.redb", b"not the outbox's");
    disk.put("outbox-1.log", b"nor this");
    let (_, report) = open(&disk);
    assert_eq!(report.damaged, []);
    assert_eq!(disk.content("outbox-1.log").unwrap(), b"nor this");
}
