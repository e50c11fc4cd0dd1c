//! Bytes that rot: whatever is intact is kept, the rest is reported, and no message is ever wrong.

use std::collections::BTreeMap;

use fastrand::Rng;
use migration_ipc_store::disk::Disk;
use migration_ipc_store::outbox::{MAX_KEPT_DAMAGE_FILES, OutboxIdentity};
use migration_ipc_testkit::disk::SimDisk;

use crate::bench::{ID, Model, contents, open, try_open};

/// Three segments and a bit, with settled messages in between.
fn small_log() -> (SimDisk, Model) {
    let disk = SimDisk::new(1);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    for round in 0..12 {
        for _ in 0..3 {
            model.append(&mut outbox);
        }
        if round % 3 == 2 {
            let seq = model.waiting.keys().nth(2).copied().unwrap();
            model.settle(&mut outbox, seq);
        }
        model.sync(&mut outbox).unwrap();
    }
    let segments = disk.files().len();
    assert!((3..=6).contains(&segments), "{:?}", disk.files());
    (disk, model)
}

/// Every message that was ever there, by its number.
fn all_bodies(model: &Model) -> BTreeMap<u64, Vec<u8>> {
    (1..=model.highest)
        .map(|seq| (seq, crate::bench::body(seq)))
        .collect()
}

/// Opens a damaged log, which must lose at most so many messages, and checks that it is sound again
/// and that no number is given twice.
fn open_damaged(disk: &SimDisk, model: &Model, may_lose: usize) -> usize {
    let (outbox, report) = open(disk);
    let found = contents(&outbox);
    let all = all_bodies(model);
    for (seq, body) in &found {
        assert_eq!(all.get(seq), Some(body), "message {seq} is wrong");
    }
    let lost = model
        .waiting
        .keys()
        .filter(|seq| !found.contains_key(seq))
        .count();
    assert!(lost <= may_lose, "{lost} lost: {report:?}");
    let damage = report.damaged.len();
    for damage in report.damaged {
        if let Some(file) = damage.kept_in {
            let kept = disk.content(&file).unwrap();
            assert!(kept.len() as u64 > damage.bytes, "{file}");
        }
    }
    drop(outbox);

    // What was found out is durable, and the damage is reported once.
    disk.crash();
    let disk = disk.restart();
    let (mut outbox, report) = open(&disk);
    assert_eq!(contents(&outbox), found);
    assert_eq!(report.damaged, []);
    let seq = outbox.append(b"next").unwrap();
    outbox.sync().unwrap();
    assert!(seq > model.highest, "{seq} is given again");
    assert_eq!(outbox.read(seq).unwrap(), b"next");
    damage
}

#[test]
fn a_flipped_byte_at_any_place_costs_one_message_at_most() {
    let (disk, model) = small_log();
    for (name, len) in disk.files() {
        for offset in 0..len {
            let copy = disk.fork();
            copy.flip(&name, offset, [0x01, 0x80, 0xff][offset % 3]);
            assert_eq!(open_damaged(&copy, &model, 1), 1, "{name} at {offset}");
        }
    }
}

#[test]
fn a_byte_of_the_header_does_not_cost_the_id() {
    let (disk, _) = small_log();
    for offset in 0..128 {
        let copy = disk.fork();
        for (name, _) in disk.files() {
            copy.flip(&name, offset, 0x20);
        }
        let (outbox, report) = open(&copy);
        assert_eq!(report.identity, OutboxIdentity::Found);
        assert_eq!(outbox.id(), ID);
    }
}

/// As if the blocks of one place had been lost: the header of the newest segment, or of all.
#[test]
fn without_any_header_the_messages_are_still_there() {
    let (disk, model) = small_log();
    let files = disk.files();
    for (name, _) in &files {
        let mut bytes = disk.content(name).unwrap();
        bytes[..128].fill(0);
        disk.put(name, &bytes);
    }
    let (outbox, report) = open(&disk);
    assert_eq!(report.identity, OutboxIdentity::Lost);
    assert_eq!(report.damaged.len(), files.len());
    assert_eq!(contents(&outbox), model.waiting);
}

#[test]
fn a_file_cut_at_any_length_keeps_what_is_before() {
    let (disk, model) = small_log();
    let files = disk.files();
    let (newest, _) = files.last().unwrap();
    for (name, len) in &files {
        let whole = disk.content(name).unwrap();
        let mut lost_before = 0;
        for cut in (0..*len).rev() {
            let copy = disk.fork();
            copy.put(name, &whole[..cut]);
            let (outbox, report) = open(&copy);
            let found = contents(&outbox);
            let all = all_bodies(&model);
            for (seq, body) in &found {
                assert_eq!(all.get(seq), Some(body), "message {seq} is wrong");
            }
            let lost = model
                .waiting
                .keys()
                .filter(|seq| !found.contains_key(seq))
                .count();
            // A byte less costs one message more at most, and none comes back.
            assert!(
                (lost_before..=lost_before + 1).contains(&lost),
                "{name} at {cut}"
            );
            lost_before = lost;
            // Only of the newest segment nobody knows how long it was.
            if name != newest {
                assert!(!report.damaged.is_empty(), "{name} at {cut}");
            }
        }
    }
}

#[test]
fn a_missing_segment_is_reported() {
    let (disk, model) = small_log();
    let files = disk.files();
    let (name, _) = &files[1];
    disk.remove(name).unwrap();
    disk.sync().unwrap();
    let (outbox, report) = open(&disk);
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(&report.damaged[0].file, name);
    let found = contents(&outbox);
    assert!(
        found
            .iter()
            .all(|(seq, body)| all_bodies(&model)[seq] == *body)
    );
}

/// Longer stretches of garbage, in any number and at any place.
#[test]
fn garbage_is_never_taken_for_a_message() {
    let (disk, model) = small_log();
    let all = all_bodies(&model);
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let copy = disk.fork();
        for (name, _) in disk.files() {
            let mut bytes = disk.content(&name).unwrap();
            for _ in 0..rng.usize(..4) {
                let start = rng.usize(..bytes.len());
                let end = (start + rng.usize(1..200)).min(bytes.len());
                match rng.u8(..3) {
                    0 => bytes[start..end]
                        .iter_mut()
                        .for_each(|byte| *byte = rng.u8(..)),
                    // A stretch of the same file, with whole records in it.
                    1 => {
                        let stretch = bytes[start..end].to_vec();
                        let to = rng.usize(..=bytes.len() - stretch.len());
                        bytes[to..to + stretch.len()].copy_from_slice(&stretch);
                    }
                    _ => bytes.truncate(end),
                }
            }
            copy.put(&name, &bytes);
        }
        let (mut outbox, _) = open(&copy);
        for (seq, body) in contents(&outbox) {
            assert_eq!(all.get(&seq), Some(&body), "seed {seed}");
        }
        let seq = outbox.append(b"next").unwrap();
        outbox.sync().unwrap();
        let (outbox, _) = open(&copy);
        assert_eq!(outbox.read(seq).unwrap(), b"next", "seed {seed}");
    }
}

/// A message was durable, and sent, and its record is damaged: its number may be known to the
/// receiver, for whom a second message of that number would be the first one again.
#[test]
fn a_number_that_was_in_the_damage_is_not_given_again() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    for _ in 0..3 {
        outbox.append(b"body").unwrap();
    }
    outbox.sync().unwrap();
    let (name, len) = disk.files().remove(0);
    disk.flip(&name, len - 1, 1);
    let (outbox, report) = open(&disk);
    assert_eq!(outbox.waiting().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(report.damaged[0].bytes, 28);
    drop(outbox);

    // Not even when the machine stops before the next message.
    disk.crash();
    let (mut outbox, report) = open(&disk.restart());
    assert_eq!(report.damaged, []);
    assert!(outbox.append(b"new").unwrap() > 3);
}

/// The same with intact records behind the damage, and the machine stops while it is mended.
#[test]
fn the_numbers_in_the_damage_are_known_before_it_is_mended() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    for _ in 0..3 {
        outbox.append(b"body").unwrap();
    }
    outbox.sync().unwrap();
    let (name, len) = disk.files().remove(0);
    outbox.settle(1);
    outbox.sync().unwrap();
    disk.flip(&name, len - 1, 1);
    for crash in 0..8 {
        for seed in 0..8 {
            let disk = disk.fork();
            disk.reseed(seed);
            disk.crash_at_sync(crash);
            let _ = try_open(&disk);
            let (mut outbox, _) = open(&disk.restart());
            assert_eq!(outbox.waiting().collect::<Vec<_>>(), [2]);
            assert!(outbox.append(b"new").unwrap() > 3, "crash at {crash}");
        }
    }
}

/// Later segments tell which numbers were given.
#[test]
fn damage_in_an_older_segment_skips_no_numbers() {
    let (disk, model) = small_log();
    let (name, len) = disk.files().remove(0);
    disk.flip(&name, len / 2, 1);
    let (mut outbox, _) = open(&disk);
    assert_eq!(outbox.append(b"next").unwrap(), model.highest + 1);
}

/// The damage appears while the outbox is open.
#[test]
fn a_message_that_rots_later_is_an_error_and_can_be_settled() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let seq = outbox.append(b"body").unwrap();
    outbox.sync().unwrap();
    let (name, len) = disk.files().remove(0);
    disk.flip(&name, len - 1, 1);
    let error = outbox.read(seq).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the message with the number 1 is damaged on the disk"
    );
    outbox.settle(seq);
    outbox.sync().unwrap();
    assert_eq!(outbox.waiting_messages(), 0);
}

#[test]
fn only_so_many_copies_of_damage_are_kept() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    for _ in 0..40 {
        outbox.append(b"body").unwrap();
        outbox.sync().unwrap();
        let mut logs = disk
            .files()
            .into_iter()
            .filter(|(name, _)| name.ends_with(".log"));
        let (name, len) = logs.next_back().unwrap();
        disk.flip(&name, len - 1, 1);
        outbox = open(&disk).0;
    }
    let files = disk.files();
    let kept = files.iter().filter(|(name, _)| name.contains("damaged"));
    assert_eq!(kept.count(), MAX_KEPT_DAMAGE_FILES);
}
