//! What a commit stores, and what it leaves out.

use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_store::{Effects, JournalOutcome, Refusal, StoredOutcome, Work};
use migration_ipc_testkit::disk::SimDisk;

use crate::support::{begin, count, counted, done, json, key, open, origin, work};

#[test]
fn effects_outcome_and_journal_are_there_after_it() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let alice = key("1000", 1);
    let ledger = store.ledger();
    let mut works = vec![
        work(
            begin(&ledger, &alice, 1),
            count("a").put("users", "1000", "{}"),
        ),
        work(
            begin(&ledger, &alice, 2),
            Effects::new().reply("BACKUP_REQUEST", json(r#"{"a":1}"#)),
        ),
    ];
    let outcomes = store.commit(&mut works).unwrap();
    assert!(works.is_empty());
    let replied = StoredOutcome::Replied {
        message_type: "BACKUP_REQUEST".into(),
        payload: r#"{"a":1}"#.into(),
    };
    assert_eq!(outcomes, [StoredOutcome::Handled, replied.clone()]);
    drop(store);
    let store = open(&disk.restart());
    let ledger = store.ledger();
    assert_eq!(ledger.highest(&alice), 2);
    assert_eq!(done(&ledger, &alice, 1), StoredOutcome::Handled);
    assert_eq!(done(&ledger, &alice, 2), replied);
    let reader = store.reader();
    let user = reader.get("users", "1000").unwrap();
    assert_eq!(user.as_deref(), Some(b"{}".as_slice()));
    let journal = reader.journal(0, 10).unwrap();
    let outcomes = journal.iter().map(|entry| (entry.number, &entry.outcome));
    let expected = [(1, &JournalOutcome::Handled), (2, &JournalOutcome::Replied)];
    assert!(outcomes.eq(expected), "{journal:?}");
    assert_eq!(reader.journal(1, 10).unwrap(), journal[1..]);
}

#[test]
fn a_refusal_undoes_its_own_message_only_and_leaves_a_dead_letter() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let alice = key("1000", 1);
    let ledger = store.ledger();
    let refused = count("a").put("users", "1000", "lost").update(|rows| {
        assert_eq!(
            rows.get("users", "1000")?.as_deref(),
            Some(b"lost".as_slice())
        );
        Err(Refusal::new("no"))
    });
    let mut works = vec![
        work(begin(&ledger, &alice, 1), count("a")),
        work(begin(&ledger, &alice, 2), refused),
        work(begin(&ledger, &alice, 3), count("a")),
    ];
    let outcomes = store.commit(&mut works).unwrap();
    let rejected = StoredOutcome::Rejected {
        code: ErrorCode::HandlerFailed,
        text: "no".into(),
    };
    assert_eq!(outcomes[1], rejected);
    assert_eq!(counted(&store, "a"), 2);
    assert_eq!(store.reader().get("users", "1000").unwrap(), None);
    let letters = store.reader().dead_letters(0, 10).unwrap();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].letter;
    assert_eq!(
        (&*letter.account, letter.session.as_deref()),
        ("1000", Some("console"))
    );
    assert_eq!(
        (&*letter.text, &letter.code),
        ("no", &Some(ErrorCode::HandlerFailed))
    );
    assert_eq!(
        letter.message.payload.as_ref().unwrap().get(),
        r#"{"progress":45}"#
    );
    assert_eq!(done(&ledger, &alice, 2), rejected);
}

#[test]
fn a_message_without_a_number_is_listed_and_leaves_no_dead_letter() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let work = Work {
        origin: Some(origin("1000", "plain")),
        ..Work::of(Effects::new().reject(ErrorCode::BadPayload, "no"))
    };
    store.commit(&mut vec![work, Work::of(count("a"))]).unwrap();
    assert_eq!(store.reader().journal(0, 10).unwrap().len(), 1);
    assert_eq!(store.reader().dead_letters(0, 10).unwrap().len(), 0);
    assert_eq!(counted(&store, "a"), 1);
}
