//! The simulated disk keeps what was synced, and nothing else for certain.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::ErrorKind;

use migration_ipc_store::disk::{Disk, DiskFile};
use migration_ipc_testkit::disk::SimDisk;

const SEEDS: u64 = 200;

fn durable_file(disk: &SimDisk) -> Box<dyn DiskFile> {
    let file = disk.create("file").unwrap();
    file.write_at(0, &[1; 2048]).unwrap();
    file.sync().unwrap();
    disk.sync().unwrap();
    file
}

#[test]
fn what_was_synced_survives() {
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let file = durable_file(&disk);
        disk.crash();
        assert!(file.len().is_err());
        assert!(disk.list().is_err());
        let after = disk.restart();
        assert!(disk.list().is_err(), "a handle from before is dead");
        assert_eq!(after.content("file"), Some(vec![1; 2048]));
    }
}

/// Nothing, everything, what came first, and sectors at random: all of it happens.
#[test]
fn what_was_not_synced_may_survive_in_any_way() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let file = durable_file(&disk);
        file.write_at(0, &[2; 1024]).unwrap();
        file.write_at(1024, &[3; 2048]).unwrap();
        assert_eq!(disk.content("file").unwrap().len(), 3072);
        let content = disk.restart().content("file").unwrap();
        for (place, byte) in content.iter().enumerate() {
            let written = if place < 1024 { 2 } else { 3 };
            assert!([0, 1, written].contains(byte), "{byte} at {place}");
        }
        outcomes.insert(content);
    }
    let [old, mut new] = [vec![1; 2048], vec![2; 1024]];
    new.resize(3072, 3);
    assert!(outcomes.contains(&old));
    assert!(outcomes.contains(&new));
    assert!(outcomes.len() > 20, "{}", outcomes.len());
}

#[test]
fn names_survive_by_themselves() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let file = durable_file(&disk);
        disk.create("new").unwrap().sync().unwrap();
        disk.rename("file", "renamed").unwrap();
        file.sync().unwrap();
        outcomes.insert(disk.restart().list().unwrap());
    }
    let outcomes: Vec<_> = outcomes.iter().map(|names| names.join(" ")).collect();
    assert_eq!(outcomes, ["file", "file new", "new renamed", "renamed"]);
}

/// As on Linux: what a failed sync could not write is seen until the machine stops, and is not
/// written by the next one.
#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let disk = SimDisk::new(seed);
        let file = durable_file(&disk);
        file.write_at(0, &[2; 512]).unwrap();
        disk.fail_sync(0);
        file.sync().unwrap_err();
        file.sync().unwrap();
        assert_eq!(disk.content("file").unwrap()[0], 2);
        lost += u64::from(disk.restart().content("file").unwrap()[511] == 1);
    }
    assert!((SEEDS / 8..SEEDS).contains(&lost), "{lost}");
}

#[test]
fn the_machine_stops_at_the_sync_that_was_asked_for() {
    let disk = SimDisk::new(0);
    disk.crash_at_sync(1);
    let file = disk.create("file").unwrap();
    file.sync().unwrap();
    assert!(disk.is_running());
    disk.sync().unwrap_err();
    assert!(!disk.is_running());
    file.write_at(0, b"x").unwrap_err();
    assert_eq!(disk.counts().crashes, 1);
    assert!(disk.restart().is_running());
}

#[test]
fn a_full_disk_takes_what_fits() {
    let disk = SimDisk::new(0);
    let file = durable_file(&disk);
    disk.limit_room(Some(10));
    file.write_at(100, b"no more room is needed").unwrap();
    let error = file.write_at(2040, &[2; 30]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 2058);
    file.set_len(2050).unwrap();
    let error = file.set_len(2059).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    file.set_len(2058).unwrap();
    disk.remove("file").unwrap();
    disk.sync().unwrap();
    let file = disk.create("other").unwrap();
    file.write_at(0, &[3; 2058]).unwrap();
    file.write_at(2058, b"x").unwrap_err();
    assert_eq!(disk.counts().full, 3);
}

#[test]
fn a_read_only_disk_can_be_read() {
    let disk = SimDisk::new(0);
    let file = durable_file(&disk);
    disk.set_read_only(true);
    let error = file.write_at(0, b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(disk.create("new").is_err());
    assert!(disk.remove("file").is_err());
    assert!(file.read_at(0, &mut [0; 5]).is_ok());
    assert_eq!(disk.counts().read_only, 3);
}

#[test]
fn a_fork_goes_its_own_way() {
    let disk = SimDisk::new(0);
    let file = durable_file(&disk);
    let fork = disk.fork();
    file.write_at(0, b"x").unwrap();
    fork.flip("file", 0, 0xff);
    fork.crash();
    assert_eq!(disk.content("file").unwrap()[0], b'x');
    assert_eq!(fork.restart().content("file").unwrap()[0], 0xfe);
}
