//! Files that are not as they were written.

use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::disk::{Disk, Folder};
use migration_ipc_store::{OpenReport, Store, StoreError, Work};
use migration_ipc_testkit::disk::SimDisk;

use crate::support::{FILE, begin, count, counted, json, key, open, options, try_open, work};

/// A store with some of everything, after a crash or closed in good order.
fn filled(end: End) -> SimDisk {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let ledger = store.ledger();
    let alice = key("1000", 1);
    for seq in 1..=20 {
        let effects = count("a")
            .put("users", seq.to_string(), "x".repeat(500))
            .reply("BACKUP_REQUEST", json("{}"));
        store
            .commit(&mut vec![work(begin(&ledger, &alice, seq), effects)])
            .unwrap();
    }
    match end {
        End::Crash => disk.restart(),
        End::Close => {
            store.close().unwrap();
            disk
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Crash,
    Close,
}

/// Whether everything is there. Panics when something else is.
fn is_complete(disk: &SimDisk) -> Result<bool, StoreError> {
    let (store, report) = try_open(disk)?;
    assert_eq!(report.set_aside, None);
    let reader = store.reader();
    let rows = reader.scan("users", "")?;
    let journal = reader.journal(0, 100)?;
    assert!(
        journal
            .iter()
            .map(|entry| entry.number)
            .eq(1..=journal.len() as u64)
    );
    for (_, value) in &rows {
        assert_eq!(value, &[b'x'; 500]);
    }
    let alice = key("1000", 1);
    let highest = store.ledger().highest(&alice);
    assert_eq!(highest, rows.len() as u64);
    assert_eq!(highest, journal.len() as u64);
    assert_eq!(highest, counted(&store, "a"));
    Ok(highest == 20)
}

#[test]
fn a_flipped_byte_is_a_clear_error_or_harmless() {
    for end in [End::Close, End::Crash] {
        let disk = filled(end);
        let content = disk.content(FILE).unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        let used: Vec<usize> = (512..content.len())
            .filter(|at| content[*at] != 0)
            .collect();
        // Every bit that says which commit counts, a bit of every other byte of the header, and
        // samples of the rest: most of them of places in use.
        let mut flips: Vec<(usize, u8)> =
            (0..64).map(|bit| (8 + bit / 8, 1 << (bit % 8))).collect();
        flips.extend((0..512).map(|place| (place, 1 << rng.u8(..8))));
        for _ in 0..400 {
            flips.push((used[rng.usize(..used.len())], 1 << rng.u8(..8)));
        }
        for _ in 0..50 {
            flips.push((rng.usize(512..content.len()), 1 << rng.u8(..8)));
        }
        let (mut errors, mut older) = (0, Vec::new());
        for (place, mask) in flips {
            let disk = disk.fork();
            disk.flip(FILE, place, mask);
            match is_complete(&disk) {
                Ok(true) => {}
                Ok(false) => older.push((place, mask)),
                Err(error) => {
                    errors += 1;
                    assert!(
                        matches!(error, StoreError::Damaged { .. }),
                        "{place}: {error}"
                    );
                    let text = error.to_string();
                    assert!(
                        text.contains(FILE) && text.contains("move it away"),
                        "{text}"
                    );
                }
            }
        }
        // The one bit that says which of the two newest commits counts has no checksum. After a
        // crash it is as a crash in the middle of the newest commit would have left it.
        let expected: &[(usize, u8)] = match end {
            End::Close => &[],
            End::Crash => &[(9, 1)],
        };
        assert_eq!(older, expected, "{end:?}");
        assert!(errors > 200, "{errors}");
    }
}

#[test]
fn a_file_that_was_cut_or_is_something_else_is_a_clear_error() {
    let disk = filled(End::Close);
    let content = disk.content(FILE).unwrap();
    let mut files: Vec<Vec<u8>> = [0, 1, 8, 100, 320, 512, 4096, 4097]
        .into_iter()
        .chain((8192..content.len()).step_by(4096))
        .map(|length| content[..length].to_vec())
        .collect();
    files.push([content, vec![0; 100]].concat());
    files.push(b"something else entirely".to_vec());
    for file in files {
        disk.put(FILE, &file);
        match try_open(&disk) {
            Err(StoreError::Damaged { name, .. }) => assert_eq!(&*name, FILE),
            other => panic!("{} bytes: {other:?}", file.len()),
        }
        assert_eq!(disk.content(FILE).unwrap(), file, "it stays as it is");
    }
}

/// A store with another number in its schema.
fn with_schema(schema: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
    transaction
        .open_table(meta)
        .unwrap()
        .insert("schema", schema)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    std::fs::read(path).unwrap()
}

#[test]
fn the_store_of_a_newer_version_is_set_aside_and_kept() {
    let disk = SimDisk::new(1);
    let newer = with_schema(b"3");
    for expected in ["state.redb.schema-3", "state.redb.schema-3.1"] {
        disk.put(FILE, &newer);
        let (mut store, report) = try_open(&disk).unwrap();
        let set_aside = report.set_aside.unwrap();
        assert_eq!((set_aside.name.as_str(), set_aside.schema), (expected, 3));
        assert!(disk.content(expected).is_some());
        store.commit(&mut vec![Work::of(count("a"))]).unwrap();
        drop(store);
        let (store, report) = try_open(&disk).unwrap();
        assert_eq!(report, OpenReport::default());
        assert_eq!(counted(&store, "a"), 1);
    }
    // The version that wrote it finds everything when its file is given its name again.
    disk.rename("state.redb.schema-3", FILE).unwrap();
    assert!(try_open(&disk).unwrap().1.set_aside.is_some());
}

#[test]
fn a_store_of_before_this_crate_is_not_touched() {
    let disk = SimDisk::new(1);
    disk.put(FILE, &with_schema(b"1"));
    let error = try_open(&disk).unwrap_err().to_string();
    assert!(error.contains("its schema is 1"), "{error}");
    disk.put(FILE, &with_schema(b"no number"));
    let error = try_open(&disk).unwrap_err().to_string();
    assert!(error.contains("`meta`"), "{error}");
}

#[test]
fn a_read_only_folder_is_a_clear_error_and_loses_nothing() {
    let disk = SimDisk::new(1);
    disk.set_read_only(true);
    let error = try_open(&disk).unwrap_err();
    assert!(matches!(error, StoreError::Disk { .. }), "{error}");
    let disk = filled(End::Crash);
    disk.set_read_only(true);
    let error = try_open(&disk).unwrap_err();
    assert!(error.to_string().contains(FILE), "{error}");
    disk.set_read_only(false);
    assert!(is_complete(&disk).unwrap());
}

#[test]
fn what_is_left_of_an_unfinished_beginning_is_replaced() {
    let disk = SimDisk::new(1);
    disk.put("state.redb.new", b"half of a store");
    drop(open(&disk));
    assert!(disk.content("state.redb.new").is_none());
}

#[test]
fn a_store_lives_in_a_real_folder() {
    let folder = tempfile::tempdir().unwrap();
    for expected in 1..=3 {
        let disk = Arc::new(Folder::open(folder.path().join("data")).unwrap());
        let fresh = OutboxId::from_bytes([expected; 16]);
        let (mut store, _) = Store::open(disk, FILE, options(), fresh).unwrap();
        assert_eq!(store.outbox(), OutboxId::from_bytes([1; 16]), "made once");
        store.commit(&mut vec![Work::of(count("a"))]).unwrap();
        assert_eq!(counted(&store, "a"), u64::from(expected));
        store.close().unwrap();
    }
}
