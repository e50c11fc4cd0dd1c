//! One end of ours that sends, and a peer that speaks bytes.

use std::time::Duration;

use migration_ipc::messages::ConfigurationUpdate;
use migration_ipc::protocol::extensions::ChunksEndCode;
use migration_ipc::{Answer, DisconnectReason, IpcConnection, MessageOptions, Priority, SendError};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::stage::*;
use crate::common::*;

type Sent = JoinHandle<Result<Answer, SendError>>;

fn send(connection: &IpcConnection, bytes: usize) -> Sent {
    tokio::spawn(connection.send_large(setting(bytes)).unwrap())
}

async fn ended(sent: Sent) -> Result<Answer, SendError> {
    tokio::time::timeout(LONG_PATIENCE, sent)
        .await
        .expect("not stuck")
        .unwrap()
}

/// A service that sends a long message to an agent, which has seen how it begins.
async fn begun(bytes: usize) -> (WirePeer, IpcConnection, Sent, Value, impl Sized) {
    let (server, connector, _) = service(|server| server).await;
    let (mut peer, connection) = agent_of(&server, &connector).await;
    let sent = send(&connection, bytes);
    let mut begin = peer.receive_type("CHUNKS_BEGIN").await;
    (
        peer,
        connection,
        sent,
        begin["payload"].take(),
        (server, connector),
    )
}

fn size(begin: &Value) -> usize {
    usize::try_from(begin["bytes"].as_u64().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_body_goes_out_in_pieces_and_is_what_was_declared() {
    let (mut peer, _, sent, begin, _service) = begun(3 * MIB).await;
    assert_eq!(begin["transfer"], 1);
    let total = size(&begin);
    peer.take(1, 0, total).await;
    let mut body = String::new();
    peer.receive_pieces(total, &mut body).await;
    assert_eq!(begin["sha256"], digest(body.as_bytes()));
    let message: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(message["type"], "CONFIGURATION_UPDATE");
    assert_eq!(message["payload"]["value"], long_text(3 * MIB));
    peer.acknowledge(&message).await;
    let answer = ended(sent).await;
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
}

/// Whoever says that a message is not urgent need not know how it travels.
#[tokio::test(start_paused = true)]
async fn a_long_message_that_is_not_urgent_goes_in_pieces_which_others_pass() {
    let (server, connector, _) = service(|server| server).await;
    let (mut peer, connection) = agent_of(&server, &connector).await;
    let sender = connection.clone();
    let bulk = MessageOptions::new().priority(Priority::Bulk);
    let sent = tokio::spawn(async move { sender.send_with(setting(MIB / 2), bulk).await });
    let begin = peer.receive_type("CHUNKS_BEGIN").await["payload"].take();
    let total = size(&begin);
    let mut body = String::new();
    peer.take(1, 0, total / 2).await;
    peer.receive_pieces(total / 2, &mut body).await;
    assert!(!sent.is_finished(), "not all of it is accepted");
    connection.send(setting(10)).await.unwrap();
    assert_eq!(
        peer.receive().await["type"],
        "CONFIGURATION_UPDATE",
        "one that is urgent overtakes it"
    );
    peer.take(1, 0, total).await;
    peer.receive_pieces(total, &mut body).await;
    let id = within(sent).await.unwrap().unwrap();
    let message: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(message["id"], id.to_string());
    assert_eq!(message["payload"]["value"], long_text(MIB / 2));

    let sender = connection.clone();
    let asked = tokio::spawn(async move {
        let message = setting(MIB / 2);
        sender.send_acknowledged_with(message, bulk).await
    });
    let begin = peer.receive_type("CHUNKS_BEGIN").await["payload"].take();
    let mut body = String::new();
    peer.take(2, 0, size(&begin)).await;
    peer.receive_pieces(size(&begin), &mut body).await;
    let message: Value = serde_json::from_str(&body).unwrap();
    peer.acknowledge(&message).await;
    let answer = within(asked).await.unwrap();
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_is_sent_than_the_peer_takes() {
    let (mut peer, _, sent, begin, _service) = begun(2 * MIB).await;
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    let mut body = String::new();
    for to in [1, 100_000, 100_001, 400_000, size(&begin)] {
        peer.take(1, 0, to).await;
        peer.receive_pieces(to, &mut body).await;
        if to < size(&begin) {
            assert!(peer.is_silent_for(Duration::from_secs(10)).await, "{to}");
        }
    }
    assert_eq!(begin["sha256"], digest(body.as_bytes()));
    drop(sent);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_from_where_the_peer_wants_it() {
    let (mut peer, _, _sent, begin, _service) = begun(2 * MIB).await;
    let total = size(&begin);
    peer.take(1, total - 10, total).await;
    let piece = peer.receive_type("piece").await;
    assert_eq!(piece["offset"], total - 10);
    assert_eq!(piece["data"].as_str().unwrap().len(), 10);
}

/// While pieces fill the pipe, what is more urgent waits for the bytes that are in it, and for one
/// write.
#[tokio::test(start_paused = true)]
async fn control_and_other_messages_pass_between_the_pieces() {
    const WRITE: usize = 64 * 1024;
    let (mut peer, connection, _sent, begin, _service) = begun(8 * MIB).await;
    peer.take(1, 0, size(&begin)).await;
    settle().await;
    let question = peer.send("USER_ACTION", action("x")).await;
    connection
        .send(ConfigurationUpdate::new("small", Value::Null))
        .await
        .unwrap();
    settle().await;
    let mut before = 0;
    let mut awaited = vec!["ACKNOWLEDGMENT", "CONFIGURATION_UPDATE"];
    while !awaited.is_empty() {
        let message = peer.receive().await;
        if message["type"] == "piece" {
            before += message["data"].as_str().unwrap().len();
            continue;
        }
        let expected = awaited.remove(0);
        assert_eq!(message["type"], expected, "{message}");
        if expected == "ACKNOWLEDGMENT" {
            assert_eq!(message["payload"]["originalMessageId"], question);
        }
    }
    eprintln!("{before} bytes of pieces came before");
    assert!(before >= WRITE, "the pipe was full: {before}");
    assert!(before <= CAPACITY + WRITE, "{before}");
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_dropped_abandons_its_message() {
    let (mut peer, connection, sent, _, _service) = begun(2 * MIB).await;
    peer.take(1, 0, 100_000).await;
    let mut body = String::new();
    peer.receive_pieces(100_000, &mut body).await;
    sent.abort();
    let end = peer.receive_type("CHUNKS_END").await;
    assert_eq!(end["payload"]["transfer"], 1);
    assert_eq!(end["payload"]["code"], "abandoned");
    // What the peer said before it knew of that means nothing.
    peer.take(1, 0, 200_000).await;
    peer.end(1, "busy").await;
    let sent = send(&connection, 2 * MIB);
    let begin = peer.receive_type("CHUNKS_BEGIN").await;
    assert_eq!(begin["payload"]["transfer"], 2);
    drop(sent);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_dropped_unpolled_is_not_sent() {
    let (server, connector, _) = service(|server| server).await;
    let (mut peer, connection) = agent_of(&server, &connector).await;
    drop(connection.send_large(setting(2 * MIB)).unwrap());
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn the_ninth_transfer_waits_for_its_turn() {
    let (server, connector, _) = service(|server| server).await;
    let (mut peer, connection) = agent_of(&server, &connector).await;
    let sent: Vec<_> = (0..9).map(|_| send(&connection, 2 * MIB)).collect();
    for number in 1..=8 {
        let begin = peer.receive_type("CHUNKS_BEGIN").await;
        assert_eq!(begin["payload"]["transfer"], number);
    }
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    peer.end(3, "too_large").await;
    let begin = peer.receive_type("CHUNKS_BEGIN").await;
    assert_eq!(begin["payload"]["transfer"], 9);
    drop(sent);
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_room_is_asked_again_less_and_less_often() {
    let (mut peer, _, sent, _, _service) = begun(2 * MIB).await;
    let mut pauses = Vec::new();
    let began = tokio::time::Instant::now();
    for number in 1..20 {
        peer.end(number, "busy").await;
        let asked = tokio::time::Instant::now();
        let next = tokio::time::timeout(Duration::from_secs(20), peer.receive_or_end()).await;
        match next {
            Ok(Some(message)) if message["type"] == "CHUNKS_BEGIN" => {
                assert_eq!(message["payload"]["transfer"], number + 1);
                pauses.push(asked.elapsed().as_millis());
            }
            _ => break,
        }
    }
    assert_eq!(pauses[..4], [100, 200, 400, 800], "{pauses:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(60), "{took:?}");
    let error = ended(sent).await.unwrap_err();
    let SendError::NotTaken { code, error } = error else {
        panic!("{error}");
    };
    assert_eq!((code, &*error), (ChunksEndCode::Busy, "because"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_room_again_gets_the_message() {
    let (mut peer, _, sent, begin, _service) = begun(2 * MIB).await;
    peer.end(1, "busy").await;
    peer.receive_type("CHUNKS_BEGIN").await;
    let total = size(&begin);
    peer.take(2, 0, total).await;
    let mut body = String::new();
    peer.receive_pieces(total, &mut body).await;
    peer.acknowledge(&serde_json::from_str(&body).unwrap())
        .await;
    assert!(matches!(ended(sent).await, Ok(Answer::Handled)));
}

#[tokio::test(start_paused = true)]
async fn what_arrived_otherwise_than_declared_is_sent_once_more() {
    let (mut peer, _, sent, begin, _service) = begun(MIB).await;
    let total = size(&begin);
    for number in 1..=2 {
        let mut body = String::new();
        peer.take(number, 0, total).await;
        peer.receive_pieces(total, &mut body).await;
        peer.end(number, "hash").await;
        if number == 1 {
            let begin = peer.receive_type("CHUNKS_BEGIN").await;
            assert_eq!(begin["payload"]["transfer"], 2);
        }
    }
    let error = ended(sent).await.unwrap_err();
    let hash = ChunksEndCode::Hash;
    assert!(
        matches!(&error, SendError::NotTaken { code, .. } if *code == hash),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_lets_nothing_be_sent_is_not_waited_for_for_ever() {
    let (mut peer, _, sent, _, _service) = begun(2 * MIB).await;
    let heartbeats = async {
        loop {
            tokio::time::sleep(Duration::from_secs(20)).await;
            peer.send("HEARTBEAT", heartbeat(1)).await;
        }
    };
    let error = tokio::select! {
        error = ended(sent) => error.unwrap_err(),
        () = heartbeats => unreachable!(),
    };
    assert!(matches!(error, SendError::NotTaken { .. }), "{error}");
    assert!(error.is_certainly_unhandled());
}

#[tokio::test(start_paused = true)]
async fn of_a_connection_that_ends_it_is_known_whether_all_was_sent() {
    let (mut peer, _, sent, begin, _service) = begun(2 * MIB).await;
    peer.take(1, 0, size(&begin) - 1).await;
    let mut body = String::new();
    peer.receive_pieces(size(&begin) - 1, &mut body).await;
    drop(peer);
    let error = ended(sent).await.unwrap_err();
    assert!(
        matches!(error, SendError::Closed(DisconnectReason::ClosedByPeer)),
        "{error}"
    );

    let (mut peer, _, sent, begin, _service) = begun(2 * MIB).await;
    peer.take(1, 0, size(&begin)).await;
    let mut body = String::new();
    peer.receive_pieces(size(&begin), &mut body).await;
    drop(peer);
    let error = ended(sent).await.unwrap_err();
    assert!(
        matches!(error, SendError::Lost(DisconnectReason::ClosedByPeer)),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_what_cannot_be_is_disconnected() {
    for (from, to) in [(0, 10_000_000), (10, 10), (11, 10), (5_000_000, 5_000_001)] {
        let (mut peer, _, sent, _, _service) = begun(2 * MIB).await;
        peer.take(1, from, to).await;
        peer.receive_to_end().await;
        let error = ended(sent).await.unwrap_err();
        assert!(
            matches!(error, SendError::Closed(DisconnectReason::Violation(_))),
            "{error}"
        );
    }
    let (mut peer, _, _sent, _, _service) = begun(2 * MIB).await;
    peer.end(2, "busy").await;
    peer.receive_to_end().await;
}
