//! One end of ours that receives, and a peer that speaks bytes: windows, room, and what is kept.

use std::time::Duration;

use migration_ipc::messages::ErrorReport;
use migration_ipc::{AccountLimits, ConnectionConfig, MessageDispatcher, ServerLimits, State};
use migration_ipc_protocol::extensions::Chunk;

use super::stage::*;
use crate::common::*;

const WINDOW: usize = 256 * 1024;

#[tokio::test(start_paused = true)]
async fn a_body_in_pieces_is_handled_and_answered_by_its_id() {
    let (_server, connector, seen) = service(|server| server).await;
    let (mut peer, answer) = peer_of(&connector, "1000").await;
    assert_eq!(answer["payload"]["limits"]["payload"], 16 * MIB);
    let body = report_body("large", 3 * MIB);
    peer.send_chunked(7, &body).await;
    let answer = peer.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(answer["payload"]["originalMessageId"], "large");
    assert_eq!(answer["payload"]["success"], true);
    assert!(seen.take() == [long_text(3 * MIB)], "as it was sent");
    // One that would have fitted a frame, in pieces of one byte.
    let body = report_body("small", 10);
    let take = peer.begin(9, &body).await;
    assert_eq!(take["payload"]["to"], body.len());
    for (offset, byte) in body.iter().enumerate() {
        peer.write(&piece(9, offset as u64, &[*byte])).await;
    }
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["originalMessageId"], "small");
    assert_eq!(seen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_window_moves_on_with_what_has_arrived() {
    let (_server, connector, _) = service(|server| server).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let body = report_body("large", 2 * MIB);
    let take = peer.begin(1, &body).await;
    assert_eq!(take["payload"]["from"], 0);
    assert_eq!(take["payload"]["to"], WINDOW);
    peer.send_pieces(1, &body, (0, WINDOW / 4), WINDOW).await;
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    peer.send_pieces(1, &body, (WINDOW / 4, WINDOW / 2), WINDOW)
        .await;
    let take = peer.receive().await;
    assert_eq!(take["payload"]["from"], 0);
    assert_eq!(take["payload"]["to"], WINDOW + WINDOW / 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_longer_than_the_limit_is_refused_with_both_numbers() {
    let (_server, connector, _) = service(|server| server).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let absurd = [u64::MAX, 1 << 63, 1 << 32, 16 * MIB as u64 + 1];
    for (transfer, bytes) in (1_u32..).zip(absurd) {
        let mut begin = begin(transfer, b"x");
        begin["bytes"] = bytes.into();
        peer.send("CHUNKS_BEGIN", begin).await;
        let end = peer.receive_of_transfer().await;
        assert_eq!(end["payload"]["code"], "too_large", "{end}");
        let text = end["payload"]["error"].as_str().unwrap();
        assert!(text.contains(&bytes.to_string()), "{text}");
        assert!(text.contains("16777216"), "{text}");
    }
    peer.send_chunked(5, &report_body("a", 10)).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_what_was_declared_is_forgotten() {
    let (_server, connector, seen) = service(|server| server).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let body = report_body("a", 100);
    let mut other = body.clone();
    other[80] ^= 1;
    peer.begin(1, &body).await;
    peer.write(&piece(1, 0, &other)).await;
    let end = peer.receive_of_transfer().await;
    assert_eq!(end["payload"]["code"], "hash", "{end}");
    let take = peer.begin(2, &body).await;
    assert_eq!(take["payload"]["from"], 0);
    peer.write(&piece(2, 0, &body)).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    assert_eq!(seen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_message_is_answered_as_one_in_a_frame_is() {
    let (_server, connector, _) = service(|server| server).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    peer.send_chunked(1, br#"{"id":"bad","type":7}"#).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["originalMessageId"], "bad");
    assert_eq!(answer["code"], "malformed");
}

#[tokio::test(start_paused = true)]
async fn a_message_in_chunks_uses_no_credit() {
    let mut config = ConnectionConfig::default();
    config.limits.inbox_messages = 2;
    let (_server, connector, _) = service(|server| server.connection_config(config)).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    for transfer in 1..=5 {
        peer.send_chunked(transfer, &report_body("a", 10)).await;
        assert_eq!(peer.receive().await["type"], "ACKNOWLEDGMENT");
    }
    assert!(peer.is_silent_for(Duration::from_secs(10)).await);
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive().await["type"], "ACKNOWLEDGMENT");
    let credit = peer.receive().await;
    assert_eq!(credit["payload"]["messages"], 1, "for the one in a frame");
}

// --- room ----------------------------------------------------------------------------------------

fn with_room(bytes: usize) -> ServerLimits {
    ServerLimits {
        account: AccountLimits {
            chunks: bytes,
            ..AccountLimits::default()
        },
        ..ServerLimits::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_account_without_room_is_told_to_come_later_and_no_other_is() {
    let limits = with_room(5 * MIB);
    let (_server, connector, _) = service(|server| server.limits(limits)).await;
    let body = report_body("a", 2 * MIB);
    let (mut first, answer) = peer_of(&connector, "mallory").await;
    assert_eq!(answer["payload"]["limits"]["payload"], 5 * MIB);
    let (mut second, _) = peer_of(&connector, "mallory").await;
    for transfer in 1..=2 {
        let take = first.begin(transfer, &body).await;
        assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
    }
    for peer in [&mut first, &mut second] {
        let end = peer.begin(3, &body).await;
        assert_eq!(end["payload"]["code"], "busy", "{end}");
    }
    let (mut other, _) = peer_of(&connector, "1000").await;
    other.send_chunked(1, &body).await;
    assert_eq!(
        other.receive_type("ACKNOWLEDGMENT").await["payload"]["success"],
        true
    );
    // There is room again when one is over.
    first.end(1, "abandoned").await;
    first.send("USER_ACTION", action("x")).await;
    first.receive_type("ACKNOWLEDGMENT").await;
    let take = second.begin(4, &body).await;
    assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
}

/// And it takes room until its handler has ended.
#[tokio::test(start_paused = true)]
async fn a_message_that_waits_for_its_handler_takes_room() {
    async fn on_report(_: ErrorReport, State(gate): State<Gate>) {
        gate.pass().await;
    }
    let gate = Gate::closed();
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_report)
        .build()
        .unwrap();
    let (_server, connector) =
        serve_with(dispatcher, |server| server.limits(with_room(3 * MIB))).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let body = report_body("a", 2 * MIB);
    peer.send_chunked(1, &body).await;
    settle().await;
    assert_eq!(gate.waiting(), 1);
    let end = peer.begin(2, &body).await;
    assert_eq!(end["payload"]["code"], "busy", "{end}");
    gate.open();
    peer.receive_type("ACKNOWLEDGMENT").await;
    let take = peer.begin(3, &body).await;
    assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
}

/// Those who are held to no limits of accounts, too.
#[tokio::test(start_paused = true)]
async fn a_connection_holds_two_of_the_longest_bodies() {
    let (_server, connector, _) = service(|server| server).await;
    let mut peer = WirePeer::connect(&connector, administrator()).await;
    peer.send("HELLO", chunk_hello(0)).await;
    peer.receive_type("HELLO").await;
    let mut largest = begin(1, b"x");
    largest["bytes"] = (16 * MIB).into();
    for (transfer, expected) in [(1, "CHUNKS_TAKE"), (2, "CHUNKS_TAKE"), (3, "CHUNKS_END")] {
        largest["transfer"] = transfer.into();
        peer.send("CHUNKS_BEGIN", largest.clone()).await;
        assert_eq!(peer.receive().await["type"], expected);
    }
}

// --- time ----------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_sender_that_does_not_come_on_is_dropped_and_its_connection_lives() {
    let (_server, connector, _) = service(|server| server).await;
    let body = report_body("a", 2 * MIB);
    for bytes_per_second in [0, 1, 1000] {
        let (mut peer, _) = peer_of(&connector, "1000").await;
        let began = tokio::time::Instant::now();
        // What has arrived is kept.
        let take = peer.begin(1, &body).await;
        let mut at = usize::try_from(take["payload"]["from"].as_u64().unwrap()).unwrap();
        assert_eq!(at, if bytes_per_second == 1000 { 60 } else { 0 });
        let end = loop {
            let next = tokio::time::timeout(Duration::from_secs(1), peer.receive_or_end()).await;
            match next {
                Ok(Some(message)) if message["type"] == "CHUNKS_END" => break message,
                Ok(Some(_)) => {}
                Ok(None) => panic!("the connection ended"),
                Err(_) if bytes_per_second == 0 => {}
                Err(_) => {
                    let end = at + bytes_per_second;
                    peer.write(&piece(1, at as u64, &body[at..end])).await;
                    at = end;
                }
            }
        };
        assert_eq!(end["payload"]["code"], "busy", "{end}");
        assert_eq!(began.elapsed().as_secs(), 60, "{bytes_per_second}");
        // What was under way is dropped.
        peer.write(&piece(1, at as u64, &body[at..at + 1])).await;
        peer.send("USER_ACTION", action("x")).await;
        let answer = peer.receive_type("ACKNOWLEDGMENT").await;
        assert_eq!(answer["payload"]["success"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_comes_on_slowly_is_not_dropped() {
    let (_server, connector, seen) = service(|server| server).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let body = report_body("a", MIB);
    let take = peer.begin(1, &body).await;
    let mut window = usize::try_from(take["payload"]["to"].as_u64().unwrap()).unwrap();
    for at in (0..body.len()).step_by(Chunk::MAX_DATA) {
        let end = body.len().min(at + Chunk::MAX_DATA);
        if end > window {
            let take = peer.receive_type("CHUNKS_TAKE").await;
            window = usize::try_from(take["payload"]["to"].as_u64().unwrap()).unwrap();
        }
        peer.write(&piece(1, at as u64, &body[at..end])).await;
        peer.send("HEARTBEAT", heartbeat(1)).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
    }
    assert_eq!(seen.len(), 1);
}

// --- what is kept --------------------------------------------------------------------------------

/// Sends the first `bytes` of a body, and is gone.
async fn leave_after(mut peer: WirePeer, body: &[u8], bytes: usize) {
    let take = peer.begin(1, body).await;
    let from = usize::try_from(take["payload"]["from"].as_u64().unwrap()).unwrap();
    let window = usize::try_from(take["payload"]["to"].as_u64().unwrap()).unwrap();
    peer.send_pieces(1, body, (from, bytes), window).await;
    drop(peer);
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_arrived_need_not_be_sent_again() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (_server, connector, seen) = service(|server| server).await;
    for round in 0..20 {
        let body = report_body(&format!("r{round}"), rng.usize(100_000..2 * MIB));
        let mut cuts: Vec<_> = (0..rng.usize(1..4))
            .map(|_| rng.usize(1..body.len()))
            .collect();
        cuts.sort_unstable();
        for cut in &cuts {
            let (peer, _) = peer_of(&connector, "1000").await;
            leave_after(peer, &body, *cut).await;
        }
        let (mut peer, _) = peer_of(&connector, "1000").await;
        let take = peer.begin(1, &body).await;
        let from = cuts[cuts.len() - 1];
        assert_eq!(take["payload"]["from"], from, "{cuts:?}");
        let window = usize::try_from(take["payload"]["to"].as_u64().unwrap()).unwrap();
        peer.send_pieces(1, &body, (from, body.len()), window).await;
        let answer = peer.receive_type("ACKNOWLEDGMENT").await;
        assert_eq!(answer["payload"]["success"], true);
        let message: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(seen.take() == [message["payload"]["message"].as_str().unwrap()]);
    }
}

/// The handlers of the connection that was lost may still be at work.
#[tokio::test(start_paused = true)]
async fn what_has_arrived_is_there_at_once() {
    async fn on_report(_: ErrorReport, State(gate): State<Gate>) {
        gate.pass().await;
    }
    let gate = Gate::closed();
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_report)
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let body = report_body("a", MIB);
    let (mut peer, _) = peer_of(&connector, "1000").await;
    peer.write(&frame_of_bytes(&report_body("small", 10))).await;
    leave_after(peer, &body, 1000).await;
    assert_eq!(gate.waiting(), 1);
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let take = peer.begin(1, &body).await;
    assert_eq!(take["payload"]["from"], 1000);
}

#[tokio::test(start_paused = true)]
async fn what_one_account_left_is_nothing_to_another() {
    let (_server, connector, seen) = service(|server| server).await;
    let body = report_body("a", MIB);
    // What mallory leaves is not what it declares.
    let mut wrong = body.clone();
    wrong[100] ^= 1;
    let (mut mallory, _) = peer_of(&connector, "mallory").await;
    mallory.begin(1, &body).await;
    mallory.write(&piece(1, 0, &wrong[..50_000])).await;
    drop(mallory);
    settle().await;
    let (mut alice, _) = peer_of(&connector, "alice").await;
    let take = alice.begin(1, &body).await;
    assert_eq!(take["payload"]["from"], 0);
    alice.send_pieces(1, &body, (0, 200_000), WINDOW).await;
    drop(alice);
    settle().await;
    let (mut mallory, _) = peer_of(&connector, "mallory").await;
    let take = mallory.begin(1, &body).await;
    assert_eq!(take["payload"]["from"], 50_000);
    mallory
        .send_pieces(1, &body, (50_000, body.len()), 50_000 + WINDOW)
        .await;
    let end = mallory.receive_type("CHUNKS_END").await;
    assert_eq!(end["payload"]["code"], "hash");
    let (mut alice, _) = peer_of(&connector, "alice").await;
    alice.send_chunked(1, &body).await;
    alice.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(seen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_has_arrived_is_kept_for_minutes_and_not_if_it_was_abandoned() {
    let (_server, connector, _) = service(|server| server).await;
    let body = report_body("a", MIB);
    let from_of = async |name| {
        let (mut peer, _) = peer_of(&connector, name).await;
        let take = peer.begin(1, &body).await;
        peer.end(1, "abandoned").await;
        settle().await;
        take["payload"]["from"].clone()
    };
    for (time, from) in [(299, 1000), (301, 0)] {
        let (peer, _) = peer_of(&connector, "1000").await;
        leave_after(peer, &body, 1000).await;
        tokio::time::sleep(Duration::from_secs(time)).await;
        assert_eq!(from_of("1000").await, from, "after {time} s");
        assert_eq!(from_of("1000").await, 0, "it was abandoned");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_takes_room_and_gives_way_to_what_is_sent() {
    let limits = with_room(5 * MIB);
    let (_server, connector, _) = service(|server| server.limits(limits)).await;
    let old = report_body("old", 3 * MIB);
    let (peer, _) = peer_of(&connector, "1000").await;
    leave_after(peer, &old, 2 * MIB).await;
    let new = report_body("new", 4 * MIB);
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let take = peer.begin(1, &new).await;
    assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
    peer.end(1, "abandoned").await;
    let take = peer.begin(2, &old).await;
    assert_eq!(take["payload"]["from"], 0, "it gave way");
}
