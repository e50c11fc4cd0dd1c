//! Crashes, and failures of the disk, at every step.

use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_store::{
    Begin, Effects, Mail, OutboxKey, Refusal, Store, StoreError, StoredOutcome, Work,
};
use migration_ipc_testkit::disk::SimDisk;

use crate::support::{begin, count, counted, json, key, message, open, time, try_open, work};

/// Messages of a run, in batches of three.
const MESSAGES: u64 = 15;

/// What each message does, by its number: rows, a reply, mail, or a refusal.
fn effects(seq: u64) -> Effects {
    let stored = count("stored").put("effects", seq.to_be_bytes(), "stored");
    match seq % 5 {
        0 => stored.reply("BACKUP_REQUEST", json("{}")),
        1 => {
            let mail = Mail {
                message: message(&seq.to_string()),
                expires: Some(time(100)),
            };
            stored.mail("2000", mail)
        }
        2 => stored.update(|_| Err(Refusal::new("no"))),
        _ => stored,
    }
}

fn outcome(seq: u64) -> StoredOutcome {
    match seq % 5 {
        0 => StoredOutcome::Replied {
            message_type: "BACKUP_REQUEST".into(),
            payload: "{}".into(),
        },
        2 => StoredOutcome::Rejected {
            code: ErrorCode::HandlerFailed,
            text: "no".into(),
        },
        _ => StoredOutcome::Handled,
    }
}

/// Sends all that is not done, and returns the numbers that were acknowledged before a failure.
fn run(store: &mut Store, alice: &OutboxKey) -> (Vec<u64>, Result<(), StoreError>) {
    let ledger = store.ledger();
    let mut acknowledged = Vec::new();
    for batch in (1..=MESSAGES).collect::<Vec<_>>().chunks(3) {
        let mut works = Vec::new();
        let mut sent = Vec::new();
        for &seq in batch {
            match ledger.begin(alice, None, seq) {
                Begin::New(ticket) => {
                    works.push(work(ticket, effects(seq)));
                    sent.push(seq);
                }
                Begin::Done(known) => {
                    assert_eq!(known, outcome(seq));
                    acknowledged.push(seq);
                }
                Begin::Busy => panic!("{seq} is busy"),
            }
        }
        match store.commit(&mut works) {
            Ok(outcomes) => {
                assert!(
                    outcomes
                        .into_iter()
                        .eq(sent.iter().map(|seq| outcome(*seq)))
                );
                acknowledged.extend(sent);
            }
            Err(error) => return (acknowledged, Err(error)),
        }
    }
    (acknowledged, Ok(()))
}

/// Each message is stored as a whole or not at all, and what was acknowledged is stored.
fn check(store: &Store, alice: &OutboxKey, acknowledged: &[u64]) {
    let reader = store.reader();
    let journal = reader.journal(0, 100).unwrap();
    let letters = reader.dead_letters(0, 100).unwrap();
    let mail = reader.mail_of("2000", 0, 100).unwrap();
    let ledger = store.ledger();
    let mut stored = 0;
    for seq in 1..=MESSAGES {
        let id = format!("{}-{seq}", alice.outbox);
        let is_done = match ledger.begin(alice, None, seq) {
            Begin::Done(known) => {
                assert_eq!(known, outcome(seq));
                true
            }
            // Dropping the ticket puts it off: the later ones are busy.
            Begin::New(_) | Begin::Busy => false,
        };
        assert!(
            is_done || !acknowledged.contains(&seq),
            "{seq} was acknowledged and is lost"
        );
        let row = reader.get("effects", seq.to_be_bytes()).unwrap();
        assert_eq!(row.is_some(), is_done && seq % 5 != 2, "effects of {seq}");
        stored += u64::from(row.is_some());
        let listed = journal.iter().filter(|entry| entry.id == *id).count();
        assert_eq!(listed, usize::from(is_done), "journal of {seq}");
        let letters = letters
            .iter()
            .filter(|kept| kept.letter.message.id == *id)
            .count();
        assert_eq!(
            letters,
            usize::from(is_done && seq % 5 == 2),
            "dead letter of {seq}"
        );
        let text = seq.to_string();
        let mail = mail
            .iter()
            .filter(|kept| kept.mail.message.id == *text)
            .count();
        assert_eq!(mail, usize::from(is_done && seq % 5 == 1), "mail of {seq}");
    }
    assert_eq!(counted(store, "stored"), stored, "each effect once");
}

#[test]
fn a_crash_at_any_sync_leaves_each_message_whole_or_absent() {
    let alice = key("1000", 1);
    let mut crashes = 0;
    for seed in 0..8 {
        for sync in 0.. {
            let disk = SimDisk::new(seed << 32 | sync);
            disk.crash_at_sync(sync);
            let acknowledged = match try_open(&disk) {
                Ok((mut store, _)) => run(&mut store, &alice).0,
                Err(_) => Vec::new(),
            };
            if disk.is_running() {
                assert!(sync > 5, "a run has a sync for each of its 5 commits");
                break;
            }
            crashes += 1;
            let disk = disk.restart();
            // The machine stops again while the store is opened or goes on.
            disk.crash_at_sync(seed % 4);
            if let Ok((store, _)) = try_open(&disk) {
                check(&store, &alice, &acknowledged);
            }
            let disk = disk.restart();
            disk.cancel_faults();
            let mut store = open(&disk);
            check(&store, &alice, &acknowledged);
            drop(store);
            store = open(&disk);
            let (acknowledged, result) = run(&mut store, &alice);
            result.unwrap();
            assert_eq!(acknowledged.len() as u64, MESSAGES);
            check(&store, &alice, &acknowledged);
        }
    }
    assert!(crashes > 80, "{crashes}");
}

#[test]
fn a_failing_sync_fails_its_commit_and_a_later_one_succeeds() {
    let alice = key("1000", 1);
    for sync in 0..20 {
        let disk = SimDisk::new(sync);
        let mut store = open(&disk);
        disk.fail_sync(sync);
        let mut acknowledged;
        let mut failures = 0;
        loop {
            let result;
            (acknowledged, result) = run(&mut store, &alice);
            match result {
                Ok(()) => break,
                Err(error) => assert!(error.to_string().contains("state.redb"), "{error}"),
            }
            failures += 1;
            assert!(failures < 3);
        }
        assert_eq!(disk.counts().failed_syncs, u64::from(failures > 0));
        assert_eq!(acknowledged.len() as u64, MESSAGES);
        // All of it must be on the disk, not only in what can be read of the file.
        let disk = disk.restart();
        check(&open(&disk), &alice, &acknowledged);
    }
}

#[test]
fn a_full_disk_fails_the_commit_until_there_is_room() {
    let alice = key("1000", 1);
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let ledger = store.ledger();
    disk.limit_room(Some(64 * 1024));
    let big = || Effects::new().put("big", "row", vec![1; 8 * 1024 * 1024]);
    for _ in 0..2 {
        let first = begin(&ledger, &alice, 1);
        let second = begin(&ledger, &alice, 2);
        let mut works = vec![work(first, big()), work(second, count("a"))];
        let error = store.commit(&mut works).unwrap_err();
        assert!(
            matches!(error, StoreError::Failed { .. } | StoreError::Disk { .. }),
            "{error}"
        );
        assert!(works.is_empty());
        assert_eq!(ledger.highest(&alice), 0);
    }
    assert_eq!(counted(&store, "a"), 0);
    disk.limit_room(None);
    let mut works = vec![work(begin(&ledger, &alice, 1), big())];
    store.commit(&mut works).unwrap();
    assert_eq!(
        store.reader().get("big", "row").unwrap().unwrap().len(),
        8 * 1024 * 1024
    );
    store.commit(&mut vec![Work::of(count("a"))]).unwrap();
    assert_eq!(counted(&store, "a"), 1);
}
