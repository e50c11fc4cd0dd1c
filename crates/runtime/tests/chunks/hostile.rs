//! What breaks the rules of transfers ends its connection, and hurts nobody else.

use migration_ipc::{DisconnectReason, EventStream, IpcServer};
use migration_ipc_protocol::extensions::Chunk;

use super::stage::*;
use crate::common::*;

async fn assert_violation(events: &mut EventStream, what: &str) {
    let end = next_end(events).await;
    assert!(
        matches!(end.reason, DisconnectReason::Violation(_)),
        "{what}: {:?}",
        end.reason
    );
}

async fn hostile_service() -> (
    IpcServer,
    migration_ipc::transport::memory::MemoryConnector,
    Seen,
    EventStream,
) {
    let (server, connector, seen) = service(|server| server).await;
    let events = server.events();
    (server, connector, seen, events)
}

/// What a peer that has begun transfer 2, of which it may send 100 bytes, must not write.
#[tokio::test(start_paused = true)]
async fn each_piece_that_must_not_be_ends_its_connection() {
    let (_server, connector, seen, mut events) = hostile_service().await;
    let body = report_body("a", 10);
    let size = body.len() as u64;
    let beyond = vec![b'x'; body.len() + 1];
    let too_long = vec![b'x'; Chunk::MAX_DATA + 1];
    let cases = [
        ("the second piece first", piece(2, 5, &body[5..])),
        ("at the end", piece(2, size, b"x")),
        ("past the size", piece(2, 0, &beyond)),
        ("at the last offset that there is", piece(2, u64::MAX, b"x")),
        ("never begun", piece(3, 0, b"x")),
        ("never begun, with a lower number", piece(1, 0, b"x")),
        ("number zero", piece(0, 0, b"x")),
        ("without data", piece(2, 0, b"")),
        ("longer than a piece may be", piece(2, 0, &too_long)),
        ("a head that is cut", frame_of_bytes(&[2, 2, 0, 0])),
        ("the tag alone", frame_of_bytes(&[2])),
    ];
    for (what, bytes) in cases {
        let (mut peer, _) = peer_of(&connector, "mallory").await;
        peer.begin(2, &body).await;
        peer.write(&bytes).await;
        peer.receive_to_end().await;
        assert_violation(&mut events, what).await;
        a_bystander_is_served(&connector).await;
        assert!(matches!(
            next_end(&mut events).await.reason,
            DisconnectReason::ClosedByPeer
        ));
    }
    assert_eq!(seen.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_beginning_that_must_not_be_ends_its_connection() {
    let (_server, connector, _, mut events) = hostile_service().await;
    let body = report_body("a", 10);
    let cases = [
        ("zero bytes", "bytes", 0.into()),
        ("less than nothing", "bytes", (-1).into()),
        ("more than there is", "bytes", 1e300.into()),
        ("number zero", "transfer", 0.into()),
        ("a number used twice", "transfer", 2.into()),
        ("a lower number", "transfer", 1.into()),
        ("a number that is none", "transfer", (1_u64 << 32).into()),
        ("half a digest", "sha256", "00".into()),
        ("a digest that is none", "sha256", "x".repeat(64).into()),
    ];
    for (what, member, value) in cases {
        let (mut peer, _) = peer_of(&connector, "mallory").await;
        peer.begin(2, &body).await;
        let mut begin = begin(3, &body);
        begin[member] = value;
        peer.send("CHUNKS_BEGIN", begin).await;
        peer.receive_to_end().await;
        assert_violation(&mut events, what).await;
    }
    a_bystander_is_served(&connector).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_transfers_that_never_were_ends_its_connection() {
    let (_server, connector, _, mut events) = hostile_service().await;
    for (code, transfer) in [("abandoned", 1), ("abandoned", 0), ("busy", 1), ("what", 1)] {
        let (mut peer, _) = peer_of(&connector, "mallory").await;
        peer.end(transfer, code).await;
        peer.receive_to_end().await;
        assert_violation(&mut events, code).await;
    }
    let (mut peer, _) = peer_of(&connector, "mallory").await;
    peer.take(1, 0, 10).await;
    peer.receive_to_end().await;
    assert_violation(&mut events, "takes what nobody sends").await;
}

#[tokio::test(start_paused = true)]
async fn a_ninth_transfer_at_once_ends_its_connection() {
    let (_server, connector, _, mut events) = hostile_service().await;
    let (mut peer, _) = peer_of(&connector, "mallory").await;
    let body = report_body("a", 10);
    for transfer in 1..=8 {
        let take = peer.begin(transfer, &body).await;
        assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
    }
    peer.send("CHUNKS_BEGIN", begin(9, &body)).await;
    peer.receive_to_end().await;
    assert_violation(&mut events, "nine").await;
}

/// It reads none of the answers, so that these would fill the service's memory.
#[tokio::test(start_paused = true)]
async fn a_flood_of_beginnings_whose_answers_nobody_takes_ends_its_connection() {
    let (_server, connector, _, mut events) = hostile_service().await;
    let (mut peer, _) = peer_of(&connector, "mallory").await;
    let mut absurd = begin(1, b"x");
    absurd["bytes"] = u64::MAX.into();
    let flood = async {
        for transfer in 1..1_000_000 {
            absurd["transfer"] = transfer.into();
            let (_, frame) = peer.frame("CHUNKS_BEGIN", absurd.clone());
            if peer.try_write(&frame).await.is_err() {
                return transfer;
            }
        }
        panic!("it was never stopped");
    };
    let begun = within(flood).await;
    eprintln!("stopped after {begun}");
    assert!(begun < 5000, "{begun}");
    assert_violation(&mut events, "flood").await;
    a_bystander_is_served(&connector).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_beginnings_one_after_the_other_are_answered() {
    let (_server, connector, _, _events) = hostile_service().await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    let body = report_body("a", 10);
    for transfer in 1..=1000 {
        let take = peer.begin(transfer, &body).await;
        assert_eq!(take["type"], "CHUNKS_TAKE", "{take}");
        peer.end(transfer, "abandoned").await;
        if transfer % 2 == 0 {
            // It was under way.
            peer.write(&piece(transfer, 0, &body)).await;
        }
    }
    peer.send_chunked(1001, &body).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

#[tokio::test(start_paused = true)]
async fn of_a_transfer_that_is_over_no_more_is_dropped_than_was_granted() {
    let (_server, connector, _, mut events) = hostile_service().await;
    let (mut peer, _) = peer_of(&connector, "mallory").await;
    let body = report_body("a", 10);
    peer.begin(1, &body).await;
    peer.end(1, "abandoned").await;
    peer.write(&piece(1, 0, &body)).await;
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    peer.write(&piece(1, 0, b"x")).await;
    peer.receive_to_end().await;
    assert_violation(&mut events, "one byte more").await;
}

#[tokio::test(start_paused = true)]
async fn a_body_in_chunks_holds_no_chunk() {
    let (_server, connector, _, mut events) = hostile_service().await;
    for inner in [&piece(1, 0, b"x")[4..], &[1, 1, 0, 0, 0, 0]] {
        let (mut peer, _) = peer_of(&connector, "mallory").await;
        peer.begin(1, inner).await;
        peer.write(&piece(1, 0, inner)).await;
        peer.receive_to_end().await;
        assert_violation(&mut events, "nested").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_did_not_negotiate_chunks_sends_none() {
    let (_server, connector, _, mut events) = hostile_service().await;
    let mut peer = WirePeer::connect(&connector, user("mallory")).await;
    peer.hello("agent", 10).await;
    peer.send("CHUNKS_BEGIN", begin(1, b"x")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["code"], "no_handler", "it is a type like any other");
    peer.write(&piece(1, 0, b"x")).await;
    peer.receive_to_end().await;
    assert_violation(&mut events, "not negotiated").await;
}

#[tokio::test(start_paused = true)]
async fn a_plain_peer_that_sends_a_chunk_sends_a_malformed_body() {
    let (_server, connector, _, mut events) = hostile_service().await;
    let mut peer = WirePeer::connect(&connector, user("mallory")).await;
    for _ in 0..4 {
        peer.write(&piece(1, 0, b"x")).await;
    }
    assert_eq!(peer.receive_to_end().await, Vec::<serde_json::Value>::new());
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::TooManyMalformed);
}
