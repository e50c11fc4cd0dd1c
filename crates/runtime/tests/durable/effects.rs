//! Effects, the commit that a handler makes itself, and the journal.

use std::num::NonZeroU64;

use migration_ipc::messages::ErrorReport;
use migration_ipc::storage::{Journal, JournalOutcome};
use migration_ipc::{
    CommitError, Delivery, Effects, ErrorCode, Execution, MessageDispatcher, StoredOutcome,
};
use migration_ipc_testkit::disk::SimDisk;

use crate::common::*;
use crate::service::*;

#[tokio::test(start_paused = true)]
async fn the_effects_of_plain_peers_are_stored_before_they_are_answered() {
    let service = Service::new().await;
    let mut peer = WirePeer::connect(&service.connector, user("1000")).await;
    peer.send("USER_ACTION", action("a")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    let service = service.crash().await;
    assert_eq!(service.effects_of("a").await, 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_store_effects_are_a_failure() {
    let (_server, connector) = serve(dispatcher(&Entered::default())).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for (message_type, payload) in [
        ("USER_ACTION", action("a")),
        ("ERROR_REPORT", report("a", "")),
    ] {
        peer.send(message_type, payload).await;
        let answer = peer.receive_acknowledgment().await;
        assert_eq!(answer["success"], false);
        assert_eq!(answer["error"], CommitError::NoStore.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_committed_counts_whatever_it_does_then() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    for (seq, what) in [(1, ""), (2, "fail"), (3, "wait")] {
        for _ in 0..2 {
            let answer = ask(&mut peer, seq, "ERROR_REPORT", report("r", what)).await;
            assert_eq!(answer, format!("s{seq} handled"));
        }
    }
    assert_eq!(service.effects_of("r").await, 3);
    let entered = service.entered.take();
    assert_eq!(
        entered,
        [
            "durable: true",
            "durable: true",
            "durable: true",
            "Ok(Handled)"
        ]
    );
    // To a message that is not durable it is the same, but that it is not recognised.
    peer.send("ERROR_REPORT", report("r", "wait")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    assert_eq!(service.entered.take(), ["durable: false", "Ok(Handled)"]);
}

/// Of a message that nothing is kept of besides, the commit was forgotten: the peer was told at once
/// what the handler returned, also when nothing was stored.
#[tokio::test(start_paused = true)]
async fn a_commit_counts_without_a_journal_too() {
    let service = Service::with(SimDisk::new(1), Journal::Off, Execution::Inline).await;
    let mut peer = WirePeer::connect(&service.connector, user("1000")).await;
    peer.send("ERROR_REPORT", report("r", "fail")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    service.disk.set_read_only(true);
    peer.send("ERROR_REPORT", report("r", "fail")).await;
    let answer = peer.receive_acknowledgment().await;
    service.disk.set_read_only(false);
    assert_eq!(answer["error"], CommitError::Failed.to_string());
    assert_eq!(service.effects_of("r").await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_commit_failed_is_put_off_whatever_it_returns() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    for (seq, what) in [(1, ""), (1, "fail"), (1, "wait")] {
        service.disk.set_read_only(true);
        let answer = ask(&mut peer, seq, "ERROR_REPORT", report("r", what)).await;
        service.disk.set_read_only(false);
        assert_eq!(answer, "s1 busy");
    }
    assert_eq!(service.effects_of("r").await, 0);
    assert_eq!(
        ask(&mut peer, 1, "ERROR_REPORT", report("r", "")).await,
        "s1 handled"
    );
}

/// A second commit of a message would not be one with its end: repeated, it would be stored twice.
#[tokio::test(start_paused = true)]
async fn a_message_has_one_commit() {
    async fn twice(_: ErrorReport, first: Delivery, second: Delivery) -> Result<(), CommitError> {
        let first = first.commit(Effects::new().put("t", "first", [1]));
        let second = second.commit(Effects::new().put("t", "second", [1])).await;
        assert_eq!(second, Err(CommitError::Again));
        assert_eq!(first.await, Ok(StoredOutcome::Handled));
        Ok(())
    }
    let service = Service::new().await;
    let handle = service.store();
    let dispatcher = MessageDispatcher::builder(())
        .handle(twice)
        .build()
        .unwrap();
    let (_server, connector) = serve_with(dispatcher, |server| server.store(handle)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", numbering_hello(OUTBOX)).await;
    peer.receive().await;
    let answer = ask(&mut peer, 1, "ERROR_REPORT", report("r", "")).await;
    assert_eq!(answer, "s1 handled");
    let second = service
        .store()
        .read(|reader| reader.get("t", "second"))
        .await;
    assert_eq!(second.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn the_journal_lists_what_was_handled_and_how_it_ended() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    peer.send("AGENT_STARTED", agent_started("", "7")).await;
    peer.receive_acknowledgment().await;
    act(&mut peer, 1, "a").await;
    act(&mut peer, 1, "a").await;
    act(&mut peer, 2, "refuse").await;
    act(&mut peer, 3, "busy").await;
    peer.write(&numbered(4, Some("s"), "BACKUP_COMPLETED", completed()))
        .await;
    peer.receive().await;
    peer.send("BACKUP_PROGRESS", progress(1)).await;
    peer.send("NO_SUCH_TYPE", progress(1)).await;
    peer.receive_acknowledgment().await;
    let service = service.restart().await;
    let journal = service.journal().await;
    let listed: Vec<_> = journal
        .iter()
        .map(|entry| (&*entry.message_type, entry.outcome.clone()))
        .collect();
    assert_eq!(
        listed,
        [
            ("AGENT_STARTED", JournalOutcome::Handled),
            ("USER_ACTION", JournalOutcome::Handled),
            (
                "USER_ACTION",
                JournalOutcome::Rejected(ErrorCode::HandlerFailed)
            ),
            ("BACKUP_COMPLETED", JournalOutcome::Replied),
            ("BACKUP_PROGRESS", JournalOutcome::Handled),
        ]
    );
    assert_eq!(journal[1].id.to_string(), "s1");
    assert_eq!(&*journal[1].account, "1000");
    assert_eq!(journal[1].session.as_deref(), Some("7"));
}

#[tokio::test(start_paused = true)]
async fn the_program_stores_what_belongs_to_no_message() {
    let service = Service::new().await;
    let stored = service
        .store()
        .commit(Effects::new().put("actions", "own", [5]))
        .await;
    assert_eq!(stored, Ok(StoredOutcome::Handled));
    service.disk.set_read_only(true);
    let failed = service
        .store()
        .commit(Effects::new().put("actions", "own", [6]))
        .await;
    service.disk.set_read_only(false);
    assert_eq!(failed, Err(CommitError::Failed));
    let service = service.crash().await;
    assert_eq!(service.effects_of("own").await, 5);
    let handle = service.store();
    service.stop().await;
    let closed = handle.commit(Effects::new()).await;
    assert_eq!(closed, Err(CommitError::Closed));
}

/// A peer that sends more than the disk takes filled the store's queue: what it sent then was missing
/// in the journal, and what others sent was put off.
#[tokio::test]
async fn a_flood_waits_for_the_journal() {
    const FLOOD: u64 = 20_000;
    let journal = Journal::Newest(NonZeroU64::new(2 * FLOOD).unwrap());
    let service = Service::with(SimDisk::new(1), journal, Execution::Blocking).await;
    let mut peer = service.peer().await;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let held = service.store().commit(Effects::new().update(move |_| {
        released.recv().unwrap();
        Ok(())
    }));
    let mut plain = WirePeer::connect(&service.connector, user("666")).await;
    let flood = tokio::spawn(async move {
        for number in 0..FLOOD {
            plain.send("BACKUP_PROGRESS", progress(number)).await;
        }
        plain
    });
    // The flood gets as far as it can; on one thread everybody else has a turn at each.
    for _ in 0..10_000 {
        if flood.is_finished() {
            break;
        }
        tokio::task::yield_now().await;
    }
    peer.write(&numbered(1, None, "USER_ACTION", action("a")))
        .await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    assert_eq!(held.await, Ok(StoredOutcome::Handled));
    assert_eq!(told(&peer.receive().await), "s1 handled");
    let mut plain = within(flood).await.unwrap();
    plain.send("AGENT_STARTED", agent_started("", "1")).await;
    plain.receive_acknowledgment().await;
    // Behind all of it.
    assert!(service.store().commit(Effects::new()).await.is_ok());
    let listed = service.read(|reader| reader.journal(0, usize::MAX)).await;
    let flood = listed
        .iter()
        .filter(|entry| &*entry.account == "666")
        .count();
    assert_eq!(flood as u64, FLOOD + 1);
}
