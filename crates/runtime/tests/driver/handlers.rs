//! When handlers start, how many run, and how they end.

use std::time::Duration;

use migration_ipc::{ConnectionConfig, DisconnectReason, MessageDispatcher};
use serde_json::json;

use crate::common::*;
use crate::stage::{Stage, delay};

/// A server whose handlers play on the stage, and a plain peer that sent these actions.
async fn actions(stage: &Stage, names: &[&str]) -> (migration_ipc::IpcServer, WirePeer) {
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut bytes = Vec::new();
    for name in names {
        bytes.extend(peer.frame("USER_ACTION", action(name)).1);
    }
    peer.write(&bytes).await;
    settle().await;
    (server, peer)
}

#[tokio::test(start_paused = true)]
async fn handlers_run_one_after_the_other_in_the_order_of_their_messages() {
    let stage = Stage::new();
    let (_server, mut peer) = actions(&stage, &["1", "2", "3"]).await;
    assert_eq!(stage.take(), ["begin 1"]);
    stage.gate.admit(1);
    assert_eq!(
        peer.receive_acknowledgment().await["originalMessageId"],
        "m1"
    );
    assert_eq!(stage.take(), ["end 1", "begin 2"]);
    stage.gate.admit(2);
    assert_eq!(
        peer.receive_acknowledgment().await["originalMessageId"],
        "m2"
    );
    assert_eq!(
        peer.receive_acknowledgment().await["originalMessageId"],
        "m3"
    );
    assert_eq!(stage.take(), ["end 2", "begin 3", "end 3"]);
}

#[tokio::test(start_paused = true)]
async fn handlers_of_two_connections_do_not_wait_for_each_other() {
    let stage = Stage::new();
    let (_server, connector) = serve(stage.dispatcher()).await;
    let mut first = WirePeer::connect(&connector, user("1000")).await;
    let mut second = WirePeer::connect(&connector, user("1000")).await;
    first.send("USER_ACTION", action("1")).await;
    settle().await;
    second.send("USER_ACTION", action("2")).await;
    settle().await;
    assert_eq!(stage.take(), ["begin 1", "begin 2"]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_handlers_start_in_order_and_hold_nothing_up() {
    let stage = Stage::new();
    let mut config = ConnectionConfig::default();
    config.limits.concurrent_handlers = 2;
    let (_server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for number in 1..=3 {
        peer.send("DELAY_REQUEST", delay(number)).await;
    }
    peer.send("USER_ACTION", action("behind them")).await;
    settle().await;
    // The third waits for a place, and what is behind it for its start.
    assert_eq!(stage.take(), ["begin delay 1", "begin delay 2"]);
    stage.gate.admit(1);
    peer.receive_acknowledgment().await;
    let said = stage.take();
    assert_eq!(
        said[1..],
        ["begin delay 3", "begin behind them"],
        "{said:?}"
    );
    stage.gate.open();
    for _ in 0..3 {
        assert_eq!(peer.receive_acknowledgment().await["success"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_concurrent_handler_starts_beside_one_that_is_not() {
    let stage = Stage::new();
    let (_server, mut peer) = actions(&stage, &["first"]).await;
    peer.send("DELAY_REQUEST", delay(1)).await;
    peer.send("USER_ACTION", action("last")).await;
    settle().await;
    assert_eq!(stage.take(), ["begin first", "begin delay 1"]);
}

/// A body that is refused is answered in its turn, not before the messages that came before it.
#[tokio::test(start_paused = true)]
async fn refusals_keep_the_order_of_answers() {
    let stage = Stage::new();
    let (_server, mut peer) = actions(&stage, &["1"]).await;
    peer.send("USER_ACTION", json!({"action": 7})).await;
    peer.send("BACKUP_STARTED", json!({})).await;
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    stage.gate.open();
    for (id, success) in [("m1", true), ("m2", false), ("m3", false)] {
        let answer = peer.receive_acknowledgment().await;
        assert_eq!(
            (&answer["originalMessageId"], &answer["success"]),
            (&json!(id), &json!(success))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_answer_and_the_next_handler_runs() {
    let stage = Stage::new();
    let dispatcher = MessageDispatcher::builder(stage.clone())
        .handle(|action: migration_ipc::messages::UserAction| async move {
            assert_ne!(action.action, "panic", "as asked");
        })
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 9).await;
    peer.send("USER_ACTION", action("panic")).await;
    peer.send("USER_ACTION", action("work")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["code"], "handler_panicked");
    assert!(
        answer["error"].as_str().unwrap().contains("as asked"),
        "{answer}"
    );
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_connection_cancels_its_handlers() {
    let stage = Stage::new();
    let (server, peer) = actions(&stage, &["heed"]).await;
    let mut events = server.events();
    assert_eq!(stage.take(), ["begin heed"]);
    let start = tokio::time::Instant::now();
    drop(peer);
    let end = next_end(&mut events).await;
    assert_eq!(
        (end.reason, end.unhandled),
        (DisconnectReason::ClosedByPeer, 0)
    );
    assert_eq!(stage.take(), ["cancelled heed"]);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn handlers_are_not_dropped_before_their_grace_is_over() {
    let stage = Stage::new();
    let (server, peer) = actions(&stage, &["stuck"]).await;
    let mut events = server.events();
    drop(peer);
    tokio::time::sleep(Duration::from_millis(9_900)).await;
    assert_eq!(stage.take(), ["begin stuck"]);
    assert_eq!(server.connections().counts().closing, 1);
    let end = next_end(&mut events).await;
    assert_eq!(
        (end.reason, end.unhandled),
        (DisconnectReason::ClosedByPeer, 1)
    );
    assert_eq!(stage.take(), ["dropped stuck"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_within_its_grace_was_never_interrupted() {
    let stage = Stage::new();
    let (server, peer) = actions(&stage, &["slow"]).await;
    let mut events = server.events();
    drop(peer);
    tokio::time::sleep(Duration::from_secs(9)).await;
    stage.gate.open();
    assert_eq!(next_end(&mut events).await.unhandled, 0);
    assert_eq!(stage.take(), ["begin slow", "end slow"]);
}

/// The same when this side ends the connection because of what the peer did.
#[tokio::test(start_paused = true)]
async fn a_broken_frame_leaves_the_handler_at_work_its_grace() {
    let stage = Stage::new();
    let (server, mut peer) = actions(&stage, &["slow"]).await;
    let mut events = server.events();
    peer.write(&[0; 4]).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    stage.gate.open();
    let end = next_end(&mut events).await;
    assert!(
        matches!(end.reason, DisconnectReason::Framing(_)),
        "{end:?}"
    );
    assert_eq!(stage.take(), ["begin slow", "end slow"]);
}

/// Deployed agents send their last words and leave.
#[tokio::test(start_paused = true)]
async fn everything_that_a_client_sent_before_it_left_is_handled() {
    let stage = Stage::new();
    stage.gate.open();
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut bytes = Vec::new();
    for _ in 0..100 {
        bytes.extend(peer.frame("USER_ACTION", action("x")).1);
    }
    peer.write(&bytes).await;
    drop(peer);
    let end = next_end(&mut events).await;
    assert_eq!(
        (end.reason, end.unhandled),
        (DisconnectReason::ClosedByPeer, 0)
    );
    assert_eq!(
        stage.take().iter().filter(|said| *said == "end x").count(),
        100
    );
}

/// As above, with an inbox that takes a fraction of it at a time.
#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_full_inbox_is_handled_after_its_sender_left() {
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(crate::stage::inbox_of(2))
    })
    .await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for _ in 0..20 {
        peer.send("USER_ACTION", action("x")).await;
    }
    drop(peer);
    settle().await;
    assert_eq!(stage.take(), ["begin x"]);
    stage.gate.open();
    assert_eq!(next_end(&mut events).await.unhandled, 0);
    assert_eq!(
        stage.take().iter().filter(|said| *said == "end x").count(),
        20
    );
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_the_connection_after_what_came_before_it() {
    let stage = Stage::new();
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 9).await;
    for name in ["1", "2"] {
        peer.send("USER_ACTION", action(name)).await;
    }
    peer.send("GOODBYE", json!({"reason": "done"})).await;
    peer.send("USER_ACTION", action("after the goodbye")).await;
    settle().await;
    stage.gate.open();
    let answers = peer.receive_to_end().await;
    let successes: Vec<_> = answers
        .iter()
        .map(|answer| &answer["payload"]["success"])
        .collect();
    assert_eq!(successes, [true, true], "nothing comes after a goodbye");
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::Goodbye("done".into())
    );
    assert_eq!(stage.take(), ["begin 1", "end 1", "begin 2", "end 2"]);
}
