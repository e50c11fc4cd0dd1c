//! Messages that were appended together: before their write is known to have been durable they count
//! together or not at all, and afterwards each for itself.

use std::collections::BTreeMap;
use std::ops::Range;

use migration_ipc_store::disk::Disk as _;
use migration_ipc_store::outbox::OutboxError;
use migration_ipc_testkit::disk::SimDisk;

use crate::bench::{Model, contents, open, try_open};

/// Two messages; then, in one write, a message, a group of four, and another message, which may fill
/// the segment.
struct Written {
    disk: SimDisk,
    before: BTreeMap<u64, Vec<u8>>,
    after: BTreeMap<u64, Vec<u8>>,
    group: Range<u64>,
    file: String,
    /// The bytes of the last write in its file.
    last_write: Range<usize>,
}

fn written(fills_the_segment: bool) -> Written {
    let disk = SimDisk::new(1);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    model.append(&mut outbox);
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();
    let before = contents(&outbox);
    let (file, start) = disk.files().remove(0);
    model.append(&mut outbox);
    let group = model.append_group(&mut outbox, 4);
    model.append(&mut outbox);
    if fills_the_segment {
        while outbox.next_seq() < 20 {
            model.append(&mut outbox);
        }
    }
    model.sync(&mut outbox).unwrap();
    let end = disk.content(&file).unwrap().len();
    Written {
        after: contents(&outbox),
        before,
        group,
        file,
        last_write: start..end,
        disk,
    }
}

impl Written {
    /// The same with this done to the file.
    fn with(&self, change: impl FnOnce(&mut Vec<u8>)) -> SimDisk {
        let disk = self.disk.fork();
        let mut bytes = disk.content(&self.file).unwrap();
        change(&mut bytes);
        disk.put(&self.file, &bytes);
        disk
    }

    /// How many of the group are there.
    fn members(&self, found: &BTreeMap<u64, Vec<u8>>) -> usize {
        found.range(self.group.clone()).count()
    }
}

#[test]
fn a_write_that_is_cut_anywhere_has_all_of_a_group_or_nothing() {
    let written = written(false);
    let mut seen = [0, 0];
    for end in written.last_write.clone() {
        let disk = written.with(|bytes| bytes.truncate(end));
        let (outbox, _) = open(&disk);
        let found = contents(&outbox);
        assert!(
            written
                .before
                .iter()
                .all(|(seq, body)| found.get(seq) == Some(body))
        );
        let members = written.members(&found);
        assert!([0, 4].contains(&members), "cut at {end}: {members}");
        seen[members / 4] += 1;
    }
    assert!(!seen.contains(&0), "{seen:?}");
}

/// What is written may reach the disk in any order: the end of a write, and not its middle. And the
/// machine may stop again while the log is mended.
#[test]
fn what_is_left_of_a_group_never_comes_back() {
    let written = written(false);
    for at in written.last_write.clone() {
        let disk = written.with(|bytes| bytes[at] ^= 0x10);
        for crash in 0..8 {
            let disk = disk.fork();
            disk.reseed(at as u64 * 8 + crash);
            disk.crash_at_sync(crash);
            drop(try_open(&disk));
            let again = disk.restart();
            again.crash_at_sync(crash % 3);
            drop(try_open(&again));
            let mut disk = again.restart();
            for _ in 0..2 {
                let (mut outbox, _) = open(&disk);
                let found = contents(&outbox);
                let members = written.members(&found);
                assert!(
                    [0, 4].contains(&members),
                    "byte {at}, crash {crash}: {members}"
                );
                let others = written.after.len() - 4;
                assert!(
                    found.len() - members >= others - 1,
                    "byte {at}: others are lost"
                );
                let next = outbox.append(b"next").unwrap();
                assert!(next > written.group.end, "{next} is given again");
                outbox.sync().unwrap();
                outbox.settle(next);
                outbox.sync().unwrap();
                disk.crash();
                disk = disk.restart();
            }
        }
    }
}

#[test]
fn once_a_write_was_durable_damage_costs_one_message_of_a_group() {
    // The next write goes behind it, or begins the next segment.
    for (fills_the_segment, files) in [(false, 1), (true, 2)] {
        let written = written(fills_the_segment);
        let disk = written.disk.fork();
        let (mut outbox, _) = open(&disk);
        outbox.append(b"later").unwrap();
        outbox.sync().unwrap();
        drop(outbox);
        assert_eq!(disk.files().len(), files);
        let good = disk.content(&written.file).unwrap();
        for at in written.last_write.clone() {
            let disk = disk.fork();
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            disk.put(&written.file, &bytes);
            let found = contents(&open(&disk).0);
            let kept = written.after.keys().filter(|seq| found.contains_key(seq));
            assert_eq!(kept.count(), written.after.len() - 1, "byte {at}");
        }
    }
}

/// One that was settled in the write that it came with stays settled, whatever rots later.
#[test]
fn a_settled_message_of_a_group_does_not_come_back() {
    let disk = SimDisk::new(1);
    let (mut outbox, _) = open(&disk);
    let bodies = [b"one", b"two", b"six"];
    let group = outbox.append_all(&bodies).unwrap();
    outbox.settle(group.start + 1);
    outbox.sync().unwrap();
    outbox.append(b"later").unwrap();
    outbox.sync().unwrap();
    drop(outbox);
    let (file, len) = disk.files().remove(0);
    let good = disk.content(&file).unwrap();
    // The records of the group, and not the one that says what is settled.
    for at in 128..128 + 3 * (24 + 3) {
        assert!(at < len);
        let disk = disk.fork();
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        disk.put(&file, &bytes);
        let found = contents(&open(&disk).0);
        assert!(!found.contains_key(&(group.start + 1)), "byte {at}");
        assert!(found.len() >= 2, "byte {at}: {found:?}");
    }
}

/// The disk is full when the log is opened, so that what is left of a group can be settled only with
/// the next messages, and the machine stops then, too.
#[test]
fn what_is_left_of_a_group_never_comes_back_from_a_full_disk() {
    let written = written(false);
    for at in written.last_write.clone() {
        for crash in 0..4 {
            let disk = written.with(|bytes| bytes[at] ^= 0x10);
            disk.reseed(at as u64 * 4 + crash);
            disk.limit_room(Some(0));
            let (mut outbox, _) = open(&disk);
            disk.limit_room(None);
            for _ in 0..3 {
                outbox.append(&[b'x'; 300]).unwrap();
            }
            disk.crash_at_sync(crash);
            drop(outbox.sync());
            drop(outbox);
            disk.cancel_faults();
            disk.crash();
            let found = contents(&open(&disk.restart()).0);
            let members = written.members(&found);
            assert!(
                [0, 4].contains(&members),
                "byte {at}, crash {crash}: {members}"
            );
        }
    }
}

/// Fuzzing found that messages that were kept at first were gone the next time: what showed that they
/// had been durable was the remains of another group, which were taken out. A segment that was begun
/// later shows it, even if the one between them is gone.
#[test]
fn what_is_kept_of_damaged_groups_stays() {
    let disk = SimDisk::new(1);
    let (mut outbox, _) = open(&disk);
    let mut ends = Vec::new();
    while disk.files().len() < 3 {
        outbox
            .append_all(&[[b'x'; 50], [b'y'; 50], [b'z'; 50]])
            .unwrap();
        outbox.sync().unwrap();
        if disk.files().len() == 1 {
            ends.push(disk.files()[0].1);
        }
    }
    drop(outbox);
    let files = disk.files();
    disk.remove(&files[1].0).unwrap();
    let (first, _) = &files[0];
    let mut bytes = disk.content(first).unwrap();
    // The end of each of the last two groups of the first segment.
    let groups = ends.len();
    for end in &ends[groups - 2..] {
        bytes[end - 1] ^= 0x10;
    }
    disk.put(first, &bytes);
    let kept = contents(&open(&disk).0);
    let all = 3 * groups as u64;
    let lost: Vec<u64> = (1..=all).filter(|seq| !kept.contains_key(seq)).collect();
    assert_eq!(lost, [all - 3, all]);
    disk.crash();
    assert_eq!(contents(&open(&disk.restart()).0), kept);
}

#[test]
fn a_group_without_room_is_not_taken_in() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let long = vec![0; 1_100_000];
    let seven = vec![&long[..]; 7];
    assert_eq!(outbox.append_all(&seven).unwrap(), 1..8);
    let two = [&long[..]; 2];
    assert!(matches!(
        outbox.append_all(&two),
        Err(OutboxError::BatchFull)
    ));
    let too_long = [b"x".to_vec(), vec![0; 2_000_000]];
    let refused = outbox.append_all(&too_long);
    assert!(matches!(
        refused,
        Err(OutboxError::TooLarge { size: 2_000_000 })
    ));
    outbox.sync().unwrap();
    assert_eq!(outbox.append_all(&two).unwrap(), 8..10);
    assert!(outbox.append_all(&[] as &[&[u8]]).unwrap().is_empty());
    outbox.sync().unwrap();
    assert_eq!(outbox.waiting_messages(), 9);
}

#[test]
fn the_last_numbers_are_not_given_to_a_part_of_a_group() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    outbox.number_from(migration_ipc_store::outbox::MAX_SEQ - 1);
    let three = [b"x"; 3];
    assert!(matches!(
        outbox.append_all(&three),
        Err(OutboxError::Exhausted)
    ));
    assert_eq!(outbox.append_all(&three[..2]).unwrap().count(), 2);
    assert!(matches!(outbox.append(b"x"), Err(OutboxError::Exhausted)));
}
