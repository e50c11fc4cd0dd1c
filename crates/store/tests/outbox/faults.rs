//! Disks that are full, read-only or failing, and callers that ask too much.

use std::sync::Arc;

use migration_ipc_store::outbox::{
    MAX_BATCH_BYTES, MAX_RECORD_BODY, MAX_SEQ, Outbox, OutboxError, OutboxOptions,
};
use migration_ipc_testkit::disk::SimDisk;

use crate::bench::{ID, Model, contents, open, try_open};

#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();

    disk.limit_room(Some(40));
    for _ in 0..3 {
        model.append(&mut outbox);
        let error = model.sync(&mut outbox).unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(
            error.to_string().contains("outbox-0000000000000001.log"),
            "{error}"
        );
        model.check(&outbox);
    }
    disk.limit_room(None);
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();
    model.check(&outbox);

    disk.crash();
    let (outbox, report) = open(&disk.restart());
    assert_eq!(report.damaged, []);
    assert_eq!(contents(&outbox), model.waiting);
}

/// Otherwise nothing could ever make room on a disk that the outbox itself has filled.
#[test]
fn settling_makes_room_on_a_full_disk() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    while disk.files().len() < 3 {
        model.append(&mut outbox);
        model.sync(&mut outbox).unwrap();
    }
    disk.limit_room(Some(0));
    let settled: Vec<u64> = model.waiting.keys().copied().collect();
    for seq in settled.into_iter().rev().skip(1) {
        model.settle(&mut outbox, seq);
    }
    model.sync(&mut outbox).unwrap();
    model.check(&outbox);
    disk.crash();
    let (outbox, _) = open(&disk.restart());
    assert_eq!(contents(&outbox), model.waiting);
}

/// What waits can be sent although nothing can be written, not even a mended log.
#[test]
fn a_full_disk_does_not_keep_a_log_from_being_opened() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    for _ in 0..4 {
        model.append(&mut outbox);
    }
    model.sync(&mut outbox).unwrap();
    let (name, len) = disk.files().remove(0);
    disk.flip(&name, len - 1, 1);
    let lost = model.waiting.pop_last().unwrap().0;

    disk.limit_room(Some(0));
    let (mut outbox, report) = open(&disk);
    assert_eq!(contents(&outbox), model.waiting);
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.damaged[0].kept_in, None);
    let refused = outbox.append(b"new").unwrap();
    assert!(refused > lost);
    assert!(outbox.sync().unwrap_err().is_full());

    disk.limit_room(None);
    let seq = outbox.append(b"new").unwrap();
    assert!(seq > refused);
    outbox.sync().unwrap();
    model.waiting.insert(seq, b"new".to_vec());
    let (outbox, report) = open(&disk);
    assert_eq!(report.damaged.len(), 1);
    assert!(report.damaged[0].kept_in.is_some());
    assert_eq!(contents(&outbox), model.waiting);
    assert_eq!(open(&disk).1.damaged, []);
}

#[test]
fn a_read_only_disk_is_an_error_and_loses_nothing() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();
    let before = disk.content("outbox-0000000000000001.log");

    disk.set_read_only(true);
    let error = try_open(&disk).unwrap_err();
    assert!(matches!(error, OutboxError::Disk { .. }), "{error}");
    assert!(try_open(&SimDisk::new(1)).is_ok());
    assert_eq!(disk.content("outbox-0000000000000001.log"), before);
    assert!(disk.counts().read_only > 0);

    disk.set_read_only(false);
    assert_eq!(contents(&open(&disk).0), model.waiting);
}

/// The disk fails again and again, with every sync and with every new segment. What was durable can
/// be read all the time; when the disk has recovered the outbox goes on.
#[test]
fn a_disk_that_keeps_failing_costs_only_what_was_not_durable() {
    let disk = SimDisk::new(3);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();
    for _ in 0..5 {
        for sync in 0..8 {
            disk.fail_sync(sync);
        }
        model.append(&mut outbox);
        model.sync(&mut outbox).unwrap_err();
        model.check(&outbox);
    }
    disk.cancel_faults();
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();
    model.check(&outbox);
    disk.crash();
    let (outbox, report) = open(&disk.restart());
    assert_eq!(contents(&outbox), model.waiting);
    assert_eq!(report.damaged, []);
}

/// A process writes, its sync fails, and it dies; the next one finds everything in the system's
/// memory and nothing of it on the disk.
#[test]
fn what_is_read_after_a_failed_sync_is_written_again() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let (mut outbox, _) = open(&disk);
        outbox.append(b"body").unwrap();
        for sync in 0..8 {
            disk.fail_sync(sync);
        }
        outbox.sync().unwrap_err();
        disk.cancel_faults();
        let found = contents(&open(&disk).0);
        disk.crash();
        assert_eq!(contents(&open(&disk.restart()).0), found, "seed {seed}");
    }
}

#[test]
fn a_group_of_messages_costs_one_write_and_one_sync() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) =
        Outbox::open(Arc::new(disk.clone()), OutboxOptions::default(), ID).unwrap();
    let before = disk.counts();
    for number in 0..64 {
        outbox.append(&crate::bench::body(number)).unwrap();
    }
    outbox.sync().unwrap();
    for seq in 1..=64 {
        outbox.settle(seq);
    }
    outbox.sync().unwrap();
    outbox.sync().unwrap();
    let after = disk.counts();
    assert_eq!(after.writes - before.writes, 2);
    assert_eq!(after.file_syncs - before.file_syncs, 2);
    assert_eq!(after.name_syncs, before.name_syncs);
}

#[test]
fn what_is_too_much_is_refused_and_changes_nothing() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let error = outbox.append(&vec![0; MAX_RECORD_BODY + 1]).unwrap_err();
    assert!(matches!(error, OutboxError::TooLarge { .. }), "{error}");
    let largest = vec![1; MAX_RECORD_BODY];
    let mut appended = 0;
    while outbox.append(&largest).is_ok() {
        appended += 1;
    }
    assert_eq!(appended, MAX_BATCH_BYTES / (MAX_RECORD_BODY + 24));
    let error = outbox.append(&largest).unwrap_err();
    assert!(matches!(error, OutboxError::BatchFull), "{error}");
    outbox.sync().unwrap();
    outbox.append(&largest).unwrap();
    outbox.sync().unwrap();
    let (outbox, report) = open(&disk);
    assert_eq!(report.waiting, appended + 1);
    assert_eq!(outbox.read(appended as u64 + 1).unwrap(), largest);
}

#[test]
fn numbers_go_on_from_what_the_receiver_has_seen() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    outbox.number_from(100);
    assert_eq!(outbox.append(b"a").unwrap(), 100);
    outbox.number_from(50);
    assert_eq!(outbox.append(b"b").unwrap(), 101);
    outbox.sync().unwrap();
    assert_eq!(outbox.settled_floor(), 100);
    let (mut outbox, _) = open(&disk);
    assert_eq!(outbox.append(b"c").unwrap(), 102);
    outbox.number_from(u64::MAX);
    let error = outbox.append(b"d").unwrap_err();
    assert!(matches!(error, OutboxError::Exhausted), "{error}");
    outbox.sync().unwrap();
    let (mut outbox, _) = open(&disk);
    outbox.number_from(MAX_SEQ);
    assert_eq!(outbox.append(b"last").unwrap(), MAX_SEQ);
    outbox.sync().unwrap();
    assert_eq!(outbox.read(MAX_SEQ).unwrap(), b"last");
    let (mut outbox, _) = open(&disk);
    assert!(outbox.append(b"e").is_err());
    assert_eq!(outbox.waiting_messages(), 4);
}

/// A message that is dropped before it was ever durable leaves nothing behind.
#[test]
fn a_message_can_be_settled_before_it_is_durable() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let dropped = outbox.append(b"old").unwrap();
    let kept = outbox.append(b"new").unwrap();
    outbox.settle(dropped);
    outbox.settle(99);
    outbox.sync().unwrap();
    assert_eq!(outbox.waiting().collect::<Vec<_>>(), [kept]);
    assert_eq!(outbox.settled_floor(), kept);
    assert!(!outbox.needs_sync());
    let (outbox, _) = open(&disk);
    assert_eq!(outbox.waiting().collect::<Vec<_>>(), [kept]);
}

/// A virus scanner holds the oldest segment. Were the next one removed all the same, the settled
/// messages of the oldest would wait again: that they are settled is written in the next one.
#[test]
fn a_segment_that_cannot_be_removed_holds_up_the_later_ones() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    let mut model = Model::default();
    while disk.files().len() < 4 {
        model.append(&mut outbox);
        model.sync(&mut outbox).unwrap();
    }
    disk.fail_removals(3);
    let settled: Vec<u64> = model.waiting.keys().copied().collect();
    for seq in settled {
        model.settle(&mut outbox, seq);
    }
    model.sync(&mut outbox).unwrap();
    assert_eq!(disk.counts().failed_removals, 2);
    assert_eq!(disk.files().len(), 4);
    model.append(&mut outbox);
    model.sync(&mut outbox).unwrap();
    assert_eq!(disk.counts().failed_removals, 3);
    assert_eq!(disk.files().len(), 1, "{:?}", disk.files());
    assert_eq!(contents(&open(&disk).0), model.waiting);
}

/// A segment could not be begun, its messages were refused, and after a power failure its file is
/// there all the same. The one that was begun in its place says that it is void.
#[test]
fn a_segment_that_failed_to_begin_never_comes_back() {
    let disk = SimDisk::new(0);
    let (mut outbox, _) = open(&disk);
    while disk.content(SECOND).is_none() {
        let before = disk.fork();
        outbox.append(&[b'x'; 100]).unwrap();
        outbox.sync().unwrap();
        if disk.content(SECOND).is_some() {
            let refused = disk.content(SECOND).unwrap();
            let (mut outbox, _) = open(&before);
            let expected = contents(&outbox);
            before.fail_sync(0);
            outbox.append(&[b'x'; 100]).unwrap();
            outbox.sync().unwrap_err();
            let seq = outbox.append(b"accepted").unwrap();
            outbox.sync().unwrap();
            before.put(SECOND, &refused);
            let (outbox, _) = open(&before);
            let mut found = contents(&outbox);
            assert_eq!(found.remove(&seq).unwrap(), b"accepted");
            assert_eq!(found, expected);
            assert_eq!(before.content(SECOND), None);
        }
    }
}

const SECOND: &str = "outbox-0000000000000002.log";
