//! What the ledger says of messages that come again, out of turn, or from many outboxes.

use std::collections::HashSet;

use migration_ipc_protocol::limits::DELIVERY_WINDOW;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_store::ledger::MAX_OUTBOXES_PER_ACCOUNT;
use migration_ipc_store::{Begin, Effects, MAX_REPLY, Refusal, Store, StoredOutcome};
use migration_ipc_testkit::disk::SimDisk;

use crate::support::{begin, begin_in, count, counted, done, json, key, open, work};

fn is_busy(begin: &Begin) -> bool {
    matches!(begin, Begin::Busy)
}

#[test]
fn accounts_and_outboxes_have_numbers_of_their_own() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let (alice, bob) = (key("1000", 1), key("1001", 1));
    let ticket = begin(&ledger, &alice, 5);
    store
        .commit(&mut vec![work(ticket, Effects::new())])
        .unwrap();
    assert_eq!([&alice, &bob].map(|key| ledger.highest(key)), [5, 0]);
    let _bobs = begin(&ledger, &bob, 5);
    let _another = begin(&ledger, &key("1000", 2), 5);
    assert_eq!(done(&ledger, &alice, 5), StoredOutcome::Handled);
}

#[test]
fn what_is_in_progress_is_busy_elsewhere_and_holds_up_what_is_behind_it_there() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let first = begin(&ledger, &alice, 1);
    // The same connection goes on while the first one is being committed.
    let second = begin(&ledger, &alice, 2);
    assert_eq!(ledger.highest(&alice), 2);
    // Another connection sends all of it again.
    for seq in 1..=3 {
        assert!(is_busy(&ledger.begin(&alice, None, seq)));
    }
    let _other_stream = begin_in(&ledger, &alice, Some("t"), 4);
    let mut works = vec![work(first, count("a")), work(second, count("a"))];
    store.commit(&mut works).unwrap();
    assert_eq!(counted(&store, "a"), 2);
    assert!(
        is_busy(&ledger.begin(&alice, None, 5)),
        "3 was put off and has not come again"
    );
    for seq in 1..=2 {
        assert_eq!(done(&ledger, &alice, seq), StoredOutcome::Handled);
    }
    let _third = begin(&ledger, &alice, 3);
    assert!(is_busy(&ledger.begin(&alice, None, 3)));
}

#[test]
fn a_message_behind_one_that_was_put_off_is_not_committed() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let [first, second, third] = [1, 2, 3].map(|seq| begin(&ledger, &alice, seq));
    let busy = Effects::new()
        .put("t", "k", "v")
        .reject(ErrorCode::Busy, "later");
    let mut works = vec![work(first, busy), work(second, count("a"))];
    let outcomes = store.commit(&mut works).unwrap();
    assert!(
        outcomes.iter().all(StoredOutcome::is_put_off),
        "{outcomes:?}"
    );
    let outcomes = store.commit(&mut vec![work(third, count("a"))]).unwrap();
    assert!(outcomes[0].is_put_off());
    let reader = store.reader();
    assert_eq!(
        (counted(&store, "a"), reader.get("t", "k").unwrap()),
        (0, None)
    );
    assert!(reader.journal(0, 9).unwrap().is_empty());
    assert!(reader.dead_letters(0, 9).unwrap().is_empty());
    let again = [1, 2, 3].map(|seq| work(begin(&ledger, &alice, seq), count("a")));
    let outcomes = store.commit(&mut again.into()).unwrap();
    assert_eq!(outcomes, [const { StoredOutcome::Handled }; 3]);
    assert_eq!(counted(&store, "a"), 3);
}

/// A connection was lost with 1 put off and 2 still in its handler. On the next one 1 began again,
/// which made it "not put off", and 2 was committed before it.
#[test]
fn a_message_does_not_overtake_one_that_has_begun_again() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let [first, second] = [1, 2].map(|seq| begin(&ledger, &alice, seq));
    drop(first);
    let first = begin(&ledger, &alice, 1);
    let outcomes = store.commit(&mut vec![work(second, count("a"))]).unwrap();
    assert!(outcomes[0].is_put_off());
    let second = begin(&ledger, &alice, 2);
    let mut works = vec![work(first, count("a")), work(second, count("a"))];
    let outcomes = store.commit(&mut works).unwrap();
    assert_eq!(outcomes, [const { StoredOutcome::Handled }; 2]);
}

#[test]
fn a_panic_in_an_update_is_the_rejection_of_its_own_message() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let panics = count("a").update(|_| panic!("on purpose"));
    let mut works = vec![
        work(begin(&ledger, &alice, 1), count("a")),
        work(begin(&ledger, &alice, 2), panics),
        work(begin(&ledger, &alice, 3), count("a")),
    ];
    let outcomes = store.commit(&mut works).unwrap();
    let code = |outcome: &StoredOutcome| match outcome {
        StoredOutcome::Rejected { code, .. } => Some(code.clone()),
        _ => None,
    };
    assert_eq!(
        outcomes.iter().map(code).collect::<Vec<_>>(),
        [None, Some(ErrorCode::HandlerPanicked), None]
    );
    assert_eq!(counted(&store, "a"), 2);
}

#[test]
fn a_rejection_keeps_its_effects_and_a_long_reply_does_not() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let long = json(&format!(r#""{}""#, "x".repeat(MAX_REPLY)));
    let mut works = vec![
        work(
            begin(&ledger, &alice, 1),
            count("a").reject(ErrorCode::BadPayload, "no"),
        ),
        work(begin(&ledger, &alice, 2), count("a").reply("T", long)),
    ];
    store.commit(&mut works).unwrap();
    assert_eq!(counted(&store, "a"), 1);
    match done(&ledger, &alice, 2) {
        StoredOutcome::Rejected { text, .. } => assert!(text.contains("over the limit"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.reader().dead_letters(0, 9).unwrap().len(), 2);
}

#[test]
fn rows_show_what_the_message_and_those_before_it_changed() {
    let mut store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let rows = |store: &Store| store.reader().scan("t", "k").unwrap();
    let pair = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    let before = Effects::new()
        .put("t", "k1", "a")
        .put("t", "k2", "b")
        .put("t", "x", "c");
    let ticket = begin(&ledger, &alice, 1);
    store.commit(&mut vec![work(ticket, before)]).unwrap();
    let expected = [pair("k0", "new"), pair("k2", "b"), pair("k3", "d")];
    let effects = Effects::new()
        .put("t", "k3", "d")
        .delete("t", "k1")
        .update(move |rows| {
            rows.put("t", "k0", "new");
            match rows.scan("t", "k")? == expected && rows.get("t", "k1")?.is_none() {
                true => Ok(()),
                false => Err(Refusal::new("other rows")),
            }
        });
    let ticket = begin(&ledger, &alice, 2);
    let outcomes = store.commit(&mut vec![work(ticket, effects)]).unwrap();
    assert_eq!(outcomes, [StoredOutcome::Handled]);
    assert_eq!(
        rows(&store),
        [pair("k0", "new"), pair("k2", "b"), pair("k3", "d")]
    );
}

#[test]
fn the_outbox_that_was_used_longest_ago_is_forgotten_unless_it_has_work() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let ledger = store.ledger();
    let outbox = |number: usize| key("1000", u8::try_from(number).unwrap());
    let mut commit = |number: usize| {
        let reply = Effects::new().reply("T", json("{}"));
        let ticket = begin(&ledger, &outbox(number), 1);
        store.commit(&mut vec![work(ticket, reply)]).unwrap();
    };
    for number in 0..MAX_OUTBOXES_PER_ACCOUNT {
        commit(number);
    }
    let in_progress = begin(&ledger, &outbox(0), 2);
    commit(MAX_OUTBOXES_PER_ACCOUNT);
    let remembered = |store: &Store| -> HashSet<usize> {
        let all = 0..=MAX_OUTBOXES_PER_ACCOUNT;
        all.filter(|number| store.ledger().highest(&outbox(*number)) > 0)
            .collect()
    };
    let expected: HashSet<usize> = (0..=MAX_OUTBOXES_PER_ACCOUNT)
        .filter(|number| *number != 1)
        .collect();
    assert_eq!(remembered(&store), expected);
    store
        .commit(&mut vec![work(in_progress, Effects::new())])
        .unwrap();
    drop(ledger);
    drop(store);
    let store = open(&disk.restart());
    assert_eq!(remembered(&store), expected);
    // Nothing of its first life is left when it comes back.
    let ledger = store.ledger();
    let _ticket = begin(&ledger, &outbox(1), 1);
}

#[test]
fn there_is_no_room_when_all_outboxes_have_work() {
    let store = open(&SimDisk::new(1));
    let ledger = store.ledger();
    let outboxes = 0..u8::try_from(MAX_OUTBOXES_PER_ACCOUNT).unwrap();
    let tickets: Vec<_> = outboxes
        .map(|number| begin(&ledger, &key("1000", number), 1))
        .collect();
    let one_more = key("1000", 200);
    assert!(is_busy(&ledger.begin(&one_more, None, 1)));
    let _other_account = begin(&ledger, &key("1001", 200), 1);
    drop(tickets);
    let _ticket = begin(&ledger, &one_more, 1);
}

#[test]
fn outcomes_are_forgotten_with_the_window() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let ledger = store.ledger();
    let alice = key("1000", 1);
    let mut commit = |seq: u64| {
        let reply = Effects::new().reply("T", json(&seq.to_string()));
        let ticket = begin(&ledger, &alice, seq);
        store.commit(&mut vec![work(ticket, reply)]).unwrap();
    };
    let replied = |seq: u64| StoredOutcome::Replied {
        message_type: "T".into(),
        payload: seq.to_string().into(),
    };
    commit(1);
    commit(2);
    commit(DELIVERY_WINDOW + 1);
    assert_eq!(done(&ledger, &alice, 1), StoredOutcome::Handled);
    assert_eq!(done(&ledger, &alice, 2), replied(2));
    assert_eq!(
        done(&ledger, &alice, DELIVERY_WINDOW + 1),
        replied(DELIVERY_WINDOW + 1)
    );
    commit(u64::MAX);
    assert_eq!(
        done(&ledger, &alice, DELIVERY_WINDOW + 1),
        StoredOutcome::Handled
    );
    assert_eq!(done(&ledger, &alice, u64::MAX), replied(u64::MAX));
}
