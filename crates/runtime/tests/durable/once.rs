//! A message that comes again is answered again, and not handled again.

use std::time::Duration;

use serde_json::json;

use crate::common::*;
use crate::service::*;

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_again_is_not_handled_again() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    for _ in 0..3 {
        assert_eq!(act(&mut peer, 1, "a").await, "s1 handled");
    }
    drop(peer);
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "a").await, "s1 handled");
    assert_eq!(service.entered.take(), ["a"]);
    let service = service.restart().await;
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "a").await, "s1 handled");
    assert_eq!(act(&mut peer, 2, "b").await, "s2 handled");
    assert_eq!(service.entered.take(), ["b"]);
    let service = service.crash().await;
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 2, "b").await, "s2 handled");
    assert!(service.entered.take().is_empty());
    assert_eq!(service.effects_of("a").await, 1);
    assert_eq!(service.effects_of("b").await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_given_again_as_it_was() {
    let service = Service::new().await;
    let mut replies = Vec::new();
    let mut peer = service.peer().await;
    peer.send("AGENT_STARTED", agent_started(r"CORP\ann", "1"))
        .await;
    peer.receive_acknowledgment().await;
    let reply = numbered(1, None, "BACKUP_COMPLETED", completed());
    for _ in 0..2 {
        peer.write(&reply).await;
        replies.push(peer.receive().await);
    }
    let service = service.restart().await;
    let mut peer = service.peer().await;
    peer.write(&reply).await;
    replies.push(peer.receive().await);
    for reply in replies {
        assert_eq!(told(&reply), "s1 CONFIGURATION_UPDATE");
        assert_eq!(reply["payload"]["value"], "1000");
        assert_eq!(reply["payload"]["scope"], "session");
    }
    assert!(service.entered.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_given_again_with_its_code_and_its_message_is_a_dead_letter() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    for _ in 0..2 {
        assert_eq!(act(&mut peer, 1, "refuse").await, "s1 handler_failed");
        // Nobody's code saw it, and it is done all the same.
        let unknown = ask(&mut peer, 2, "NO_SUCH_TYPE", json!({"a": 1})).await;
        assert_eq!(unknown, "s2 no_handler");
        assert_eq!(act(&mut peer, 3, "veto").await, "s3 handler_failed");
    }
    assert_eq!(service.entered.take(), ["refuse", "veto"]);
    let service = service.restart().await;
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "refuse").await, "s1 handler_failed");
    assert_eq!(act(&mut peer, 4, "a").await, "s4 handled");
    assert_eq!(service.entered.take(), ["a"]);
    assert_eq!(service.effects_of("veto").await, 0);
    let letters = service.dead_letters().await;
    let ids: Vec<_> = letters
        .iter()
        .map(|letter| letter.message.id.to_string())
        .collect();
    assert_eq!(ids, ["s1", "s2", "s3"]);
    assert_eq!(&*letters[0].account, "1000");
    assert_eq!(&*letters[0].text, "refused");
    assert_eq!(
        letters[1].message.payload.as_ref().unwrap().get(),
        r#"{"a":1}"#
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_put_off_comes_before_what_is_behind_it() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "busy").await, "s1 busy");
    assert_eq!(act(&mut peer, 2, "b").await, "s2 busy");
    // Another order does not wait.
    peer.write(&numbered(3, Some("other"), "USER_ACTION", action("c")))
        .await;
    assert_eq!(told(&peer.receive().await), "s3 handled");
    assert_eq!(service.entered.take(), ["busy", "c"]);
    // Neither does a new connection forget it.
    drop(peer);
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 4, "d").await, "s4 busy");
    assert_eq!(act(&mut peer, 1, "a").await, "s1 handled");
    assert_eq!(act(&mut peer, 2, "b").await, "s2 handled");
    assert_eq!(act(&mut peer, 4, "d").await, "s4 handled");
    assert_eq!(service.entered.take(), ["a", "b", "d"]);
    assert!(
        service.dead_letters().await.is_empty(),
        "busy is no refusal"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_not_numbered_is_never_taken_for_a_repetition() {
    let service = Service::new().await;
    let mut plain = WirePeer::connect(&service.connector, user("1000")).await;
    let mut new = service.peer().await;
    let message = frame(&envelope("same", "USER_ACTION", action("a")).to_string());
    for peer in [&mut plain, &mut new] {
        for _ in 0..2 {
            peer.write(&message).await;
            assert_eq!(told(&peer.receive().await), "same handled");
        }
    }
    assert_eq!(service.entered.take(), ["a"; 4]);
    assert_eq!(service.effects_of("a").await, 4);
}

/// While it may still come to its end it is not begun a second time.
#[tokio::test(start_paused = true)]
async fn what_a_handler_left_when_its_peer_vanished_is_begun_again() {
    let service = Service::new().await;
    let mut peer = service.peer().await;
    let stuck = numbered(1, None, "USER_ACTION", action("stuck"));
    peer.write(&stuck).await;
    settle().await;
    assert_eq!(service.entered.take(), ["stuck"]);
    drop(peer);
    let mut peer = service.peer().await;
    assert_eq!(act(&mut peer, 1, "stuck").await, "s1 busy");
    assert_eq!(act(&mut peer, 2, "a").await, "s2 busy");
    service.entered.be_lenient();
    // The grace of handlers.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(act(&mut peer, 1, "stuck").await, "s1 handled");
    assert_eq!(act(&mut peer, 2, "a").await, "s2 handled");
    assert_eq!(service.entered.take(), ["stuck", "a"]);
    assert_eq!(service.effects_of("stuck").await, 1);
}

/// A sender whose connection had died sent everything again over a new one, while the old one still
/// had messages in its inbox. They arrived in turns with the new ones, the ledger took a message
/// that was put off for one that was given up, and the next one overtook it.
#[tokio::test(start_paused = true)]
async fn what_an_older_connection_still_brings_lets_nothing_overtake() {
    let service = Service::new().await;
    let mut old = service.peer().await;
    assert_eq!(act(&mut old, 1, "busy").await, "s1 busy");
    let mut new = service.peer().await;
    for _ in 0..2 {
        assert_eq!(act(&mut new, 1, "busy").await, "s1 busy");
        assert_eq!(act(&mut new, 2, "behind").await, "s2 busy");
    }
    assert_eq!(act(&mut old, 2, "behind").await, "s2 busy");
    assert_eq!(act(&mut new, 1, "first").await, "s1 handled");
    assert_eq!(act(&mut new, 2, "behind").await, "s2 handled");
    assert_eq!(
        service.entered.take(),
        ["busy", "busy", "busy", "first", "behind"]
    );
}
