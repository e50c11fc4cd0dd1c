//! Mail, dead letters and the journal: order, bounds, and what goes when.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_store::state::{
    MAX_DEAD_LETTERS_PER_ACCOUNT, MAX_MAIL_BYTES_PER_ACCOUNT, MAX_MAIL_PER_ACCOUNT,
};
use migration_ipc_store::{
    DeadLetter, Direction, Effects, Journal, Mail, Store, StoreOptions, StoredOutcome, Work,
};
use migration_ipc_testkit::disk::SimDisk;

use crate::support::{FILE, json, message, open, origin, time};

fn mail(id: &str, expires: Option<i64>) -> Mail {
    Mail {
        message: message(id),
        expires: expires.map(time),
    }
}

fn commit(store: &mut Store, effects: Effects) -> StoredOutcome {
    store
        .commit(&mut vec![Work::of(effects)])
        .unwrap()
        .remove(0)
}

fn ids_of(store: &Store, account: &str) -> Vec<String> {
    let mail = store.reader().mail_of(account, 0, usize::MAX).unwrap();
    mail.iter()
        .map(|kept| kept.mail.message.id.to_string())
        .collect()
}

fn refused(outcome: &StoredOutcome) -> &str {
    match outcome {
        StoredOutcome::Rejected { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn mail_is_kept_in_order_for_each_account() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    // One account's id begins with the other's.
    let effects = Effects::new()
        .mail("10", mail("a", None))
        .mail("1000", mail("b", None))
        .mail("10", mail("c", Some(9)));
    assert_eq!(commit(&mut store, effects), StoredOutcome::Handled);
    commit(&mut store, Effects::new().mail("10", mail("d", None)));
    let mut store = open(&disk.restart());
    assert_eq!(ids_of(&store, "10"), ["a", "c", "d"]);
    assert_eq!(ids_of(&store, "1000"), ["b"]);
    let reader = store.reader();
    let all = reader.mail(0, 10).unwrap();
    let numbers: Vec<_> = all.iter().map(|kept| kept.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert_eq!(
        (&*all[2].account, all[2].mail.expires),
        ("10", Some(time(9)))
    );
    assert_eq!(
        all[2].mail.message.payload.as_ref().unwrap().get(),
        r#"{"progress":45}"#
    );
    let rest = reader.mail_of("10", 1, 1).unwrap();
    assert_eq!(rest[0].number, 3);
    let dropped = Effects::new().drop_mail(1).drop_mail(2).drop_mail(77);
    assert_eq!(commit(&mut store, dropped), StoredOutcome::Handled);
    assert_eq!(ids_of(&store, "10"), ["c", "d"]);
    assert!(reader.mail_numbered(1).unwrap().is_none());
    commit(&mut store, Effects::new().drop_mail(3).drop_mail(4));
    commit(&mut store, Effects::new().mail("10", mail("e", None)));
    assert_eq!(
        reader.mail(0, 10).unwrap()[0].number,
        5,
        "no number is used again"
    );
}

#[test]
fn a_full_mailbox_refuses_more_until_some_of_it_is_gone() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let mut effects = Effects::new();
    for number in 0..MAX_MAIL_PER_ACCOUNT {
        effects = effects.mail("1000", mail(&number.to_string(), None));
    }
    assert_eq!(commit(&mut store, effects), StoredOutcome::Handled);
    let both = || {
        Effects::new()
            .put("t", "k", "v")
            .mail("1000", mail("more", None))
    };
    let outcome = commit(&mut store, both());
    assert!(refused(&outcome).contains("`1000` is full"), "{outcome:?}");
    assert_eq!(store.reader().get("t", "k").unwrap(), None);
    let other = commit(&mut store, Effects::new().mail("2000", mail("other", None)));
    assert_eq!(other, StoredOutcome::Handled);
    let outcome = commit(
        &mut store,
        Effects::new().drop_mail(1).mail("1000", mail("more", None)),
    );
    assert_eq!(outcome, StoredOutcome::Handled);
}

#[test]
fn a_mailbox_is_bounded_in_bytes() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let big = || {
        let mut mail = mail("big", None);
        mail.message.payload = Some(json(&format!(r#""{}""#, "x".repeat(1_000_000))));
        mail
    };
    let mut kept = 0;
    let text = loop {
        match commit(&mut store, Effects::new().mail("1000", big())) {
            StoredOutcome::Handled => kept += 1,
            outcome => break refused(&outcome).to_owned(),
        }
    };
    assert!(text.contains("more bytes"), "{text}");
    assert_eq!(kept, MAX_MAIL_BYTES_PER_ACCOUNT / 1_000_000);
}

#[test]
fn mail_expires_into_dead_letters() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let effects = Effects::new()
        .mail("1", mail("late", Some(30)))
        .mail("1", mail("forever", None))
        .mail("2", mail("early", Some(10)));
    commit(&mut store, effects);
    let all = &HashSet::new();
    assert!(store.expire_mail(time(9), all).unwrap().is_empty());
    let but_early = &HashSet::from([3]);
    assert!(store.expire_mail(time(10), but_early).unwrap().is_empty());
    let expired = store.expire_mail(time(10), all).unwrap();
    assert_eq!(expired.len(), 1);
    assert_eq!(expired[0].mail.message.id, "early");
    assert!(store.expire_mail(time(29), all).unwrap().is_empty());
    assert_eq!(store.expire_mail(time(1000), all).unwrap().len(), 1);
    assert_eq!(ids_of(&store, "1"), ["forever"]);
    let letters = store.reader().dead_letters(0, 10).unwrap();
    let first = &letters[0].letter;
    assert_eq!(
        (first.direction, &*first.account),
        (Direction::ToAgent, "2")
    );
    assert_eq!((&first.code, first.at), (&None, time(10)));
    assert_eq!(letters.len(), 2);
    // Mail that is dropped does not expire later.
    commit(&mut store, Effects::new().mail("1", mail("gone", Some(40))));
    commit(&mut store, Effects::new().drop_mail(4));
    assert!(store.expire_mail(time(1000), all).unwrap().is_empty());
}

fn letter(account: &str, text: &str) -> DeadLetter {
    DeadLetter {
        direction: Direction::FromAgent,
        account: account.into(),
        session: None,
        message: message(text),
        code: Some(ErrorCode::BadPayload),
        text: text.into(),
        at: time(5),
    }
}

#[test]
fn a_dead_letter_is_taken_once() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    commit(&mut store, Effects::new().dead_letter(letter("1000", "a")));
    let kept = store.reader().dead_letter(1).unwrap().unwrap();
    assert_eq!((kept.number, &*kept.letter.text), (1, "a"));
    let requeue = |store: &mut Store| {
        let effects = Effects::new().take_dead_letter(1).put("t", "k", "again");
        commit(store, effects)
    };
    assert_eq!(requeue(&mut store), StoredOutcome::Handled);
    assert!(refused(&requeue(&mut store)).contains("no dead letter 1"));
    assert!(store.reader().dead_letter(1).unwrap().is_none());
}

#[test]
fn the_oldest_dead_letter_of_an_account_makes_room() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    let mut effects = Effects::new().dead_letter(letter("2000", "other"));
    for number in 0..=MAX_DEAD_LETTERS_PER_ACCOUNT {
        effects = effects.dead_letter(letter("1000", &number.to_string()));
    }
    assert_eq!(commit(&mut store, effects), StoredOutcome::Handled);
    let kept = store.reader().dead_letters(0, usize::MAX).unwrap();
    assert_eq!(kept.len() as u64, MAX_DEAD_LETTERS_PER_ACCOUNT + 1);
    assert_eq!(
        [&*kept[0].letter.text, &*kept[1].letter.text],
        ["other", "1"]
    );
}

#[test]
fn the_journal_keeps_the_newest_entries_in_order() {
    let disk = SimDisk::new(1);
    let journal = Journal::Newest(NonZeroU64::new(10).unwrap());
    for round in 0..3_u64 {
        let outbox = OutboxId::from_bytes([7; 16]);
        let (mut store, _) = Store::open(
            Arc::new(disk.clone()),
            FILE,
            StoreOptions { journal },
            outbox,
        )
        .unwrap();
        let mut works = (0..7).map(|number| Work {
            origin: Some(origin("1000", &(round * 7 + number).to_string())),
            ..Work::default()
        });
        store.commit(&mut works.by_ref().take(2).collect()).unwrap();
        store.commit(&mut works.collect()).unwrap();
        let kept = store.reader().journal(0, 100).unwrap();
        let last = (round + 1) * 7;
        let first = last.saturating_sub(9).max(1);
        assert!(kept.iter().map(|entry| entry.number).eq(first..=last));
        assert!(
            kept.iter()
                .all(|entry| entry.id == *(entry.number - 1).to_string())
        );
        assert_eq!((&*kept[0].account, kept[0].at), ("1000", time(2)));
        let page = store.reader().journal(last - 3, 2).unwrap();
        assert!(
            page.iter()
                .map(|entry| entry.number)
                .eq([last - 2, last - 1])
        );
    }
}
