//! What is read while handlers are busy: control always gets through, and a peer is never blamed
//! for a silence that we caused.

use std::time::Duration;

use migration_ipc::messages::{OverallStatus, StatusUpdate, UserAction};
use migration_ipc::{
    Answer, ConnectionState, DisconnectReason, IpcClient, MessageDispatcher, Peer, Reply, State,
};
use serde_json::json;

use crate::common::*;
use crate::stage::{Stage, inbox_of};

const INBOX: usize = 4;

fn status() -> StatusUpdate {
    StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 1)
}

fn status_json() -> serde_json::Value {
    json!({"overallStatus": "waiting", "blockingUsers": [], "readyUsers": [], "totalUsers": 1})
}

#[tokio::test(start_paused = true)]
async fn control_of_a_new_peer_gets_through_a_full_inbox() {
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 16).await;
    for _ in 0..INBOX {
        peer.send("USER_ACTION", action("stuck")).await;
    }
    let connection = only_connection(&server).await;

    // A heartbeat, an acknowledgment and a reply, behind a full inbox and a stuck handler.
    let sender = connection.clone();
    let acknowledged = tokio::spawn(async move { sender.send_acknowledged(status()).await });
    let sender = connection.clone();
    let replied = tokio::spawn(async move { sender.send_acknowledged(status()).await });
    let first = peer.receive_type("STATUS_UPDATE").await;
    let second = peer.receive_type("STATUS_UPDATE").await;
    peer.send("HEARTBEAT", heartbeat(1)).await;
    peer.acknowledge(&first).await;
    peer.reply(&second, "STATUS_UPDATE", status_json()).await;
    let acknowledged = within(acknowledged).await.unwrap().unwrap();
    assert!(matches!(acknowledged, Answer::Handled), "{acknowledged:?}");
    let replied = within(replied).await.unwrap().unwrap();
    assert!(matches!(replied, Answer::Replied(_)), "{replied:?}");
    assert_eq!(stage.take(), ["begin stuck"], "the handler is still at it");

    // A goodbye too.
    peer.send("GOODBYE", json!({"reason": "done"})).await;
    let mut state = connection.state();
    within(state.wait_for(|state| *state == ConnectionState::Closing))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn credit_gets_through_a_full_inbox() {
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 0).await;
    for _ in 0..INBOX {
        peer.send("USER_ACTION", action("stuck")).await;
    }
    let connection = only_connection(&server).await;
    connection.send(status()).await.unwrap();
    assert!(peer.is_silent_for(Duration::from_secs(5)).await);
    peer.send("CREDIT", json!({"messages": 1})).await;
    assert_eq!(peer.receive().await["type"], "STATUS_UPDATE");
}

#[tokio::test(start_paused = true)]
async fn a_plain_peer_that_fills_its_inbox_is_paused_and_not_timed_out() {
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    // From its first heartbeat on a plain peer is judged by its silence.
    peer.send("HEARTBEAT", heartbeat(1)).await;
    peer.receive_acknowledgment().await;
    let (_, message) = peer.frame("USER_ACTION", action("x"));
    let flood = message.repeat(4 * CAPACITY / message.len());
    let flooding = tokio::time::timeout(Duration::from_secs(5), peer.try_write(&flood)).await;
    assert!(flooding.is_err(), "reading was not paused");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(server.connections().counts().total(), 1);
    assert_eq!(stage.take(), ["begin x"]);
    stage.gate.open();
    eventually("what the connection holds is handled", || {
        stage.take().iter().filter(|said| *said == "end x").count() > INBOX
    })
    .await;
}

/// The last frame that was read before a pause had begun to arrive, and its time went on while
/// nobody read the rest of it.
#[tokio::test(start_paused = true)]
async fn a_frame_that_our_pause_cut_in_two_gets_its_time_afterwards() {
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(1))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let (_, first) = peer.frame("USER_ACTION", action("first"));
    let (_, second) = peer.frame("USER_ACTION", action("second"));
    let (begin, rest) = second.split_at(second.len() / 2);
    peer.write(&[&first, begin].concat()).await;
    // Longer than a frame may take.
    tokio::time::sleep(Duration::from_secs(100)).await;
    stage.gate.open();
    settle().await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    peer.write(rest).await;
    assert_eq!(
        peer.receive_type("ACKNOWLEDGMENT").await["payload"]["success"],
        true
    );
    assert_eq!(
        peer.receive_type("ACKNOWLEDGMENT").await["payload"]["success"],
        true
    );
    assert_eq!(server.connections().counts().total(), 1);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_sent_while_reading_is_paused() {
    let stage = Stage::new();
    let (_server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(1))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("USER_ACTION", action("stuck")).await;
    peer.send("USER_ACTION", action("never read")).await;
    let start = tokio::time::Instant::now();
    for number in 0..5 {
        let heartbeat = peer.receive().await;
        assert_eq!(heartbeat["type"], "HEARTBEAT");
        assert_eq!(heartbeat["payload"]["sequenceNumber"], number);
        assert_eq!(start.elapsed().as_secs(), (number + 1) * 30);
    }
    assert_eq!(stage.take(), ["begin stuck"]);
}

/// Somebody who asks and never reads the answers is not asked for more, and in the end costs
/// nothing.
#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_its_answers_unread_is_not_read_from() {
    let mut config = inbox_of(1000);
    config.limits.control_bytes = 4096;
    let (server, connector) = serve_with(MessageDispatcher::empty(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let (_, message) = peer.frame("USER_ACTION", action("x"));
    let flood = message.repeat(10_000);
    let start = tokio::time::Instant::now();
    let flooding = tokio::time::timeout(LONG_PATIENCE, peer.try_write(&flood)).await;
    flooding
        .expect("the server ended it")
        .expect_err("not everything was read");
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::SlowReader
    );
    assert_eq!(start.elapsed().as_secs(), 30);
}

async fn ask_back(_: UserAction, peer: Peer, State(stage): State<Stage>) -> Reply<StatusUpdate> {
    stage.say("asks");
    let answer = peer.connection().send_acknowledged(status()).await;
    stage.say(format!("answered: {}", answer.is_ok()));
    Reply(status())
}

fn asking(stage: &Stage) -> MessageDispatcher {
    MessageDispatcher::builder(stage.clone())
        .handle(ask_back)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_handler_can_await_an_answer_on_its_own_connection() {
    let stage = Stage::new();
    let config = inbox_of(INBOX);
    let (_server, connector) =
        serve_with(asking(&stage), |server| server.connection_config(config)).await;
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: StatusUpdate| async {})
        .build()
        .unwrap();
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = IpcClient::builder(dispatcher)
        .connection_config(config)
        .connect_over(stream)
        .await
        .unwrap();
    // More than the inbox holds at once, in both directions.
    let start = tokio::time::Instant::now();
    let questions = (0..INBOX * 5).map(|_| client.send_acknowledged(UserAction::new("", "?")));
    for answer in within(futures_util::future::join_all(questions)).await {
        assert!(matches!(answer, Ok(Answer::Replied(_))), "{answer:?}");
    }
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "nobody waited for a timeout"
    );
    let answered = stage
        .take()
        .iter()
        .filter(|said| *said == "answered: true")
        .count();
    assert_eq!(answered, INBOX * 5);
}

#[tokio::test(start_paused = true)]
async fn a_handler_can_await_a_plain_peers_answer_behind_a_full_inbox() {
    let stage = Stage::new();
    let (_server, connector) = serve_with(asking(&stage), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for _ in 0..INBOX {
        peer.send("USER_ACTION", action("?")).await;
    }
    for _ in 0..INBOX {
        let question = peer.receive().await;
        assert_eq!(question["type"], "STATUS_UPDATE");
        peer.acknowledge(&question).await;
        // The reply, which does not say what it answers.
        let reply = peer.receive().await;
        assert_eq!(
            (&reply["type"], &reply["inReplyTo"]),
            (&json!("STATUS_UPDATE"), &json!(null))
        );
    }
    assert!(!stage.has_said("answered: false"), "{:?}", stage.take());
}

/// A plain peer knows no credit: behind twice an inbox its answer is out of reach. The handler that
/// waits for it is let go in the end, and everything goes on.
#[tokio::test(start_paused = true)]
async fn an_answer_out_of_reach_leaves_its_fate_unknown_and_nothing_stuck() {
    let stage = Stage::new();
    let (_server, connector) = serve_with(asking(&stage), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for _ in 0..INBOX * 3 {
        peer.send("USER_ACTION", action("?")).await;
    }
    let (mut questions, mut replies) = (0, 0);
    while replies < INBOX * 3 {
        let message = peer.receive().await;
        if message["type"] == "HEARTBEAT" {
            continue;
        }
        // Questions and replies take turns: the handlers run one after the other.
        if questions > replies {
            replies += 1;
        } else {
            questions += 1;
            peer.acknowledge(&message).await;
        }
    }
    let said = stage.take();
    let unanswered = said
        .iter()
        .filter(|said| *said == "answered: false")
        .count();
    // Eight messages of the twelve were read at first: the answers are behind the other four.
    assert_eq!(unanswered, 5, "{said:?}");
    assert_eq!(said.last().unwrap(), "answered: true");
}
