//! Durable messages to a service that recognises repetitions.

use std::time::Duration;

use migration_ipc::messages::{ErrorReport, UserAction};
use migration_ipc::transport::Listener;
use migration_ipc::{
    Backoff, Fate, MessageFactory, ReconnectState, SendError, SendOptions, StreamName,
};
use migration_ipc_testkit::disk::SimDisk;
use serde_json::Value;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::*;

fn seqs(messages: &[Value]) -> Vec<u64> {
    messages
        .iter()
        .map(|message| message["seq"].as_u64().expect("a number"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn durable_messages_are_numbered_and_settled_by_the_answer() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let stream = SendOptions::new()
        .durable()
        .stream(StreamName::new("backup").unwrap());
    let mut receipts = vec![client.send_durable(act(0)).await.unwrap()];
    receipts.push(client.send_with(act(1), stream).await.unwrap());
    receipts.push(client.send_durable(act(2)).await.unwrap());
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let messages = actions(&mut peer, 3).await;
    assert_eq!(seqs(&messages), [1, 2, 3]);
    assert_eq!(messages[1]["stream"], "backup");
    assert!(messages[0].get("stream").is_none());
    for (message, receipt) in messages.iter().zip(&receipts) {
        assert_eq!(message["id"], receipt.id().to_string());
    }
    peer.acknowledge(&messages[0]).await;
    refuse(&mut peer, &messages[1], Some("bad_payload")).await;
    peer.reply(&messages[2], "STATUS_UPDATE", serde_json::json!({}))
        .await;
    let mut labels = Vec::new();
    for receipt in &receipts {
        labels.push(fate(receipt).await.label());
    }
    assert_eq!(labels, ["handled", "rejected", "replied"]);
    peer.is_silent_for(SOON).await;
    drop((peer, listener));

    // The next run has nothing left to send.
    client.stop(Duration::ZERO).await;
    let client = site.durable_client(&disk).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_answered_goes_out_again_in_order() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let receipts = client
        .send_batch((0..5).map(act), SendOptions::new().durable())
        .await
        .unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let messages = actions(&mut peer, 5).await;
    peer.acknowledge(&messages[2]).await;
    fate(&receipts[2]).await;
    drop((peer, listener));
    until(&client, |state| !state.is_connected()).await;
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let again = actions(&mut peer, 4).await;
    assert_eq!(seqs(&again), [1, 2, 4, 5]);
    assert_eq!(again[0]["id"], messages[0]["id"], "the same message");
    for message in &again {
        peer.acknowledge(message).await;
    }
    for receipt in &receipts {
        assert!(fate(receipt).await.is_handled());
    }
}

/// Refused for now, a message keeps its place before those behind it in its stream.
#[tokio::test(start_paused = true)]
async fn a_retryable_refusal_keeps_the_order_of_the_stream() {
    for code in ["busy", "stopping"] {
        let site = Site::default();
        let disk = SimDisk::new(1);
        let client = site.durable_client(&disk).start().await.unwrap();
        let mut listener = site.open();
        let mut peer = accept(&mut listener, Kind::Durable).await;
        let other = SendOptions::new()
            .durable()
            .stream(StreamName::new("other").unwrap());
        client
            .send_batch((0..3).map(act), SendOptions::new().durable())
            .await
            .unwrap();
        let messages = actions(&mut peer, 3).await;
        // The service handled the first, put the second off, and so the third.
        peer.acknowledge(&messages[0]).await;
        refuse(&mut peer, &messages[1], Some(code)).await;
        refuse(&mut peer, &messages[2], Some(code)).await;
        settle().await;
        client.send_durable(act(3)).await.unwrap();
        client.send_with(act("other"), other).await.unwrap();
        let next = actions(&mut peer, 4).await;
        assert_eq!(names(&next), ["other", "1", "2", "3"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outbox_outlives_its_process() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let receipts = client
        .send_batch((0..500).map(act), SendOptions::new().durable())
        .await
        .unwrap();
    let id = client.outbox_id();
    let left = client.stop(Duration::ZERO).await;
    assert_eq!((left.kept, left.dropped), (500, 0));
    assert!(matches!(
        receipts[0].try_fate(),
        Some(Fate::Unknown(SendError::Kept))
    ));
    drop(client);

    let client = site.durable_client(&disk).start().await.unwrap();
    assert_eq!(client.outbox_id(), id);
    assert_eq!(client.outbox_report().unwrap().waiting, 500);
    let mut fates = client.restored().unwrap();
    client.send_durable(act(500)).await.unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let messages = actions(&mut peer, 501).await;
    assert_eq!(seqs(&messages), (1..=501).collect::<Vec<_>>());
    for message in &messages {
        peer.acknowledge(message).await;
    }
    for receipt in &receipts {
        let restored = within(fates.recv()).await.unwrap();
        assert_eq!(&restored.id, receipt.id());
        assert!(restored.fate.is_handled());
    }
    assert!(within(fates.recv()).await.is_none(), "all are told");
}

/// What `send` accepted survives the loss of everything that was not synced.
#[tokio::test(start_paused = true)]
async fn what_was_accepted_survives_a_power_failure() {
    let site = Site::default();
    let disk = SimDisk::new(9);
    let client = site.durable_client(&disk).start().await.unwrap();
    for number in 0..10 {
        client.send_durable(act(number)).await.unwrap();
    }
    disk.crash();
    let failed = client.send_durable(act("never")).await;
    assert!(matches!(failed, Err(SendError::NotStored(_))), "{failed:?}");
    drop(client);
    let disk = disk.restart();
    let client = site.durable_client(&disk).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 10);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_an_error_to_the_sender_and_to_nobody_else() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let first = client.send_durable(act("first")).await.unwrap();
    disk.limit_room(Some(0));
    match client.send_durable(act("second")).await {
        Err(SendError::NotStored(error)) => {
            assert!(error.to_string().contains("outbox-"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    disk.limit_room(None);
    client.send_durable(act("third")).await.unwrap();
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let messages = actions(&mut peer, 2).await;
    assert_eq!(names(&messages), ["first", "third"]);
    peer.acknowledge(&messages[0]).await;
    assert!(fate(&first).await.is_handled());
}

/// A receiver remembers a window of numbers: nothing above it is sent before what is below it is
/// settled on disk.
#[tokio::test(start_paused = true)]
async fn no_number_is_sent_that_is_a_window_above_an_unsettled_one() {
    let (_, _, client, _listener, mut peer) = connected_durable_client(Kind::Durable).await;
    for _ in 0..3 {
        client
            .send_batch((0..1000).map(act), SendOptions::new().durable())
            .await
            .unwrap();
    }
    let messages = actions(&mut peer, 1024).await;
    for message in &messages[1..] {
        peer.acknowledge(message).await;
    }
    assert!(
        peer.is_silent_for(Duration::from_secs(20)).await,
        "the first is not settled"
    );
    peer.acknowledge(&messages[0]).await;
    let mut next = 1025;
    while next <= 3000 {
        let message = &actions(&mut peer, 1).await[0];
        assert_eq!(message["seq"], next);
        peer.acknowledge(message).await;
        next += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_go_on_from_what_the_service_has_seen() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    let mut listener = site.open();
    let mut peer = accept_seen(&mut listener, Kind::Durable, 41).await;
    settle().await;
    client.send_durable(act("next")).await.unwrap();
    assert_eq!(seqs(&actions(&mut peer, 1).await), [42]);
}

/// The folder was put back to an older state: what was accepted since got numbers that the service
/// has seen with other messages.
#[tokio::test(start_paused = true)]
async fn what_was_accepted_under_numbers_that_the_service_has_seen_gets_new_ones() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    client.send_durable(act("earlier run")).await.unwrap();
    client.stop(Duration::ZERO).await;
    let client = site.durable_client(&disk).start().await.unwrap();
    let batch = (0..5).map(act);
    let durable = SendOptions::new().durable();
    let receipts = client.send_batch(batch, durable).await.unwrap();
    let mut listener = site.open();
    disk.fail_sync(0);
    let mut peer = accept_seen(&mut listener, Kind::Durable, 41).await;
    let messages = actions(&mut peer, 6).await;
    assert_eq!(names(&messages), ["earlier run", "0", "1", "2", "3", "4"]);
    let numbers = seqs(&messages);
    assert_eq!(numbers[0], 1, "the service may know it");
    assert!(numbers[1] >= 42 && numbers.is_sorted(), "{numbers:?}");
    for message in &messages {
        peer.acknowledge(message).await;
    }
    for receipt in &receipts {
        assert!(fate(receipt).await.is_handled());
    }
    peer.is_silent_for(SOON).await;
    client.stop(Duration::ZERO).await;
    let client = site.durable_client(&disk).start().await.unwrap();
    assert_eq!(client.outbox_report().unwrap().waiting, 0, "nothing twice");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gave_up_keeps_what_is_durable() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site
        .durable_client(&disk)
        .backoff(Backoff::default())
        .start()
        .await
        .unwrap();
    let kept = client.send_durable(act("kept")).await.unwrap();
    let lost = client.send(act("lost")).await.unwrap();
    until(&client, |state| {
        matches!(state, ReconnectState::GaveUp { .. })
    })
    .await;
    assert_eq!((label(&kept), label(&lost)), ("pending", "not_sent"));
    client.send_durable(act("kept too")).await.unwrap();
    let mut listener = site.open();
    client.retry();
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(names(&actions(&mut peer, 2).await), ["kept", "kept too"]);
}

/// Many senders share a sync; a batch has one of its own.
#[tokio::test(start_paused = true)]
async fn sends_share_syncs() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let client = site.durable_client(&disk).start().await.unwrap();
    client.send_durable(act("first")).await.unwrap();
    let before = disk.counts().file_syncs;
    let sends = (0..1000).map(|number| client.send_durable(act(number)));
    for sent in futures_util::future::join_all(sends).await {
        sent.unwrap();
    }
    let syncs = disk.counts().file_syncs - before;
    assert!(syncs <= 50, "{syncs} for 1,000 messages");
    let before = disk.counts().file_syncs;
    client
        .send_batch((0..1000).map(act), SendOptions::new().durable())
        .await
        .unwrap();
    assert_eq!(disk.counts().file_syncs - before, 1);
}

/// A new service that was slow to answer the hello got durable messages as a plain one does, so it
/// did not recognise them when they came again; and a machine that slept made every service slow.
#[tokio::test(start_paused = true)]
async fn nothing_durable_goes_to_a_service_of_which_only_silence_is_known() {
    for shows in [Kind::Durable, Kind::Plain] {
        let site = Site::default();
        let mut listener = site.open();
        let client = site.durable_client(&SimDisk::new(1));
        let client = client.start().await.unwrap();
        let mut peer = WirePeer::over_boxed(listener.accept().await.unwrap());
        let hello = peer.receive().await;
        let started = peer.receive().await;
        until(&client, |state| state.is_connected()).await;

        client.send_durable(act("durable")).await.unwrap();
        client.send(act("fleeting")).await.unwrap();
        let fleeting = peer.receive().await;
        assert_eq!(names(&[fleeting]), ["fleeting"]);
        assert!(peer.is_silent_for(Duration::from_secs(20)).await);

        if shows == Kind::Durable {
            let mut answer = crate::common::hello("agent", 10_000);
            answer["capabilities"] = hello["payload"]["capabilities"].clone();
            answer["seen"] = 0.into();
            peer.reply(&hello, "HELLO", answer).await;
        }
        peer.acknowledge(&started).await;
        let durable = peer.receive_type("USER_ACTION").await;
        assert_eq!(names(std::slice::from_ref(&durable)), ["durable"]);
        assert_eq!(durable.get("seq").is_some(), shows == Kind::Durable);
    }
}

/// Whoever did not trust a receipt and sent the message again had two under one id. Their answers
/// name the id only, so the one took the other's, and was settled without being handled.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_sent_twice_is_two_messages() {
    let (_, _, client, _listener, mut peer) = connected_durable_client(Kind::Durable).await;
    let message = MessageFactory::create(&act("again")).unwrap();
    let durable = SendOptions::new().durable();
    let twice = vec![message.clone(), message];
    let receipts = client.send_messages(twice, durable).await.unwrap();
    for (receipt, seq) in receipts.iter().zip(1..) {
        let message = &actions(&mut peer, 1).await[0];
        assert_eq!(message["seq"], seq);
        assert!(peer.is_silent_for(Duration::from_secs(1)).await);
        assert_eq!(label(receipt), "pending");
        peer.acknowledge(message).await;
        assert!(fate(receipt).await.is_handled());
    }
}

/// A service whose disk was full for hours got the whole window again twice a second, from each of
/// its agents.
#[tokio::test(start_paused = true)]
async fn a_service_that_puts_everything_off_is_asked_less_and_less_often() {
    let (_, _, client, _listener, mut peer) = connected_durable_client(Kind::Durable).await;
    let receipt = client.send_durable(act("x")).await.unwrap();
    let start = Instant::now();
    let mut tries = 0;
    let message = loop {
        let message = peer.receive().await;
        match message["type"].as_str() {
            Some("USER_ACTION") if start.elapsed() > Duration::from_secs(3600) => break message,
            Some("USER_ACTION") => {
                tries += 1;
                refuse(&mut peer, &message, Some("busy")).await;
            }
            _ => {
                peer.send("HEARTBEAT", heartbeat(tries)).await;
            }
        }
    };
    // Soon at first, then every 30 s or so.
    assert!((100..300).contains(&tries), "{tries}");
    peer.acknowledge(&message).await;
    assert!(fate(&receipt).await.is_handled());
    // It has taken one: the next trouble is a new one.
    client.send_durable(act("y")).await.unwrap();
    let message = actions(&mut peer, 1).await.remove(0);
    refuse(&mut peer, &message, Some("busy")).await;
    let again = tokio::time::timeout(SOON, actions(&mut peer, 1)).await;
    assert_eq!(names(&again.unwrap()), ["y"]);
}

/// Messages of several types that were sent together went where the first one's type belongs: a
/// durable one behind another was in memory only.
#[tokio::test(start_paused = true)]
async fn messages_that_are_sent_together_are_as_durable_as_the_most_durable() {
    let site = Site::default();
    let disk = SimDisk::new(1);
    let builder = site.durable_client(&disk).durable::<UserAction>();
    let client = builder.start().await.unwrap();
    let report = ErrorReport::new("", "E_DISK", "full");
    let messages = vec![
        MessageFactory::create(&report).unwrap(),
        MessageFactory::create(&act("kept")).unwrap(),
    ];
    client
        .send_messages(messages, SendOptions::new())
        .await
        .unwrap();
    assert_eq!(client.stop(Duration::ZERO).await.kept, 2);
}
