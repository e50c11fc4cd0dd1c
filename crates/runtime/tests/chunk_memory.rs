//! What senders of bodies in chunks make a server hold, as the allocator counts it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use common::*;
use migration_ipc::messages::{ErrorReport, UserAction};
use migration_ipc::transport::memory::{MemoryConnector, listen};
use migration_ipc::{AccountLimits, IpcServer, MessageDispatcher, ServerLimits, State};
use migration_ipc_protocol::extensions::{Chunk, Sha256};
use migration_ipc_testkit::memory::{CountingAllocator, held_by_process};
use serde_json::{Value, json};
use sha2::Digest as _;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const CONNECTIONS: usize = 50;
/// What the account may have of bodies in chunks.
const ROOM: usize = 8 * MIB;
/// Bytes that each direction of a connection holds: they are not the server's, and counted here.
const PIPE: usize = 4 * KIB;
/// What a connection costs that holds nothing of a body, and what is between it and us.
const EACH: usize = 32 * KIB + 2 * PIPE;

async fn on_report(_: ErrorReport, State(gate): State<Gate>) {
    gate.pass().await;
}

async fn start(gate: &Gate) -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_report)
        .handle(|_: UserAction| async {})
        .build()
        .unwrap();
    let limits = ServerLimits {
        account: AccountLimits {
            chunks: ROOM,
            ..AccountLimits::default()
        },
        ..ServerLimits::default()
    };
    let memory = listen("memory", administrator(), PIPE);
    serve_on(memory, dispatcher, |server| server.limits(limits)).await
}

async fn peer(connector: &MemoryConnector) -> WirePeer {
    let mut peer = WirePeer::connect(connector, user("mallory")).await;
    let mut hello = hello("agent", 1000);
    hello["capabilities"] = json!(["inReplyTo", "errorCodes", "chunks"]);
    peer.send("HELLO", hello).await;
    peer.receive_type("HELLO").await;
    peer
}

fn begin(transfer: u32, body: &[u8]) -> Value {
    let sha256 = Sha256(sha2::Sha256::digest(body).into()).to_string();
    json!({"transfer": transfer, "bytes": body.len(), "sha256": sha256})
}

/// Sends a body from where it is wanted up to `end`; `false` when there is no room for it.
async fn send(peer: &mut WirePeer, transfer: u32, body: &[u8], end: usize) -> bool {
    peer.send("CHUNKS_BEGIN", begin(transfer, body)).await;
    let mut at = None;
    loop {
        let answer = peer.receive().await;
        if answer["type"] == "CHUNKS_END" {
            assert_eq!(answer["payload"]["code"], "busy", "{answer}");
            return false;
        }
        let number = |name| usize::try_from(answer["payload"][name].as_u64().unwrap()).unwrap();
        let mut begins = *at.get_or_insert(number("from"));
        while begins < number("to").min(end) {
            let ends = (begins + Chunk::MAX_DATA).min(number("to")).min(end);
            let piece = Chunk {
                transfer,
                offset: begins as u64,
                data: &body[begins..ends],
            };
            let bytes = [&piece.head(), piece.data].concat();
            peer.write(&frame_of_bytes(&bytes)).await;
            begins = ends;
        }
        at = Some(begins);
        if begins == end {
            return true;
        }
    }
}

fn held_above(before: usize) -> usize {
    held_by_process().saturating_sub(before)
}

/// One test, because several would count each other's bytes.
#[tokio::test(start_paused = true)]
async fn bodies_in_chunks_of_one_account_take_no_more_than_its_room() {
    let body = |id: usize| {
        let payload = json!({"userId": "", "errorCode": "x", "message": "x".repeat(2 * MIB)});
        envelope(&format!("{id:04}"), "ERROR_REPORT", payload).to_string()
    };
    let text = body(0);
    let half = text.len() / 2;
    let gate = Gate::closed();
    let (server, connector) = start(&gate).await;
    let at_first = held_by_process();

    // Declared and not sent, a body takes room and no memory.
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        peers.push(peer(&connector).await);
    }
    let before = held_by_process();
    let mut taken = 0;
    for peer in &mut peers {
        for transfer in 1..=4 {
            taken += usize::from(send(peer, transfer, text.as_bytes(), 0).await);
        }
    }
    let held = held_above(before);
    eprintln!("{taken} bodies that were begun hold {held} bytes");
    assert_eq!(taken, ROOM / text.len());
    assert!(held <= CONNECTIONS * EACH, "{held}");
    drop(peers);
    settle().await;

    // Half of each is sent, by connections that stay.
    let before = held_by_process();
    let mut peers = Vec::new();
    let mut taken = 0;
    for number in 0..CONNECTIONS {
        let mut peer = peer(&connector).await;
        let body = body(number);
        taken += usize::from(send(&mut peer, 1, body.as_bytes(), half).await);
        drop(body);
        peers.push(peer);
    }
    settle().await;
    let held = held_above(before);
    eprintln!("{taken} halves of bodies hold {held} bytes");
    assert_eq!(taken, ROOM / text.len());
    assert!(held >= taken * half, "{held}");
    // A buffer grows by an eighth of itself.
    let most = taken * half * 9 / 8 + CONNECTIONS * EACH;
    assert!(held <= most, "{held} > {most}");

    // By connections that go: what is kept of them takes the same room.
    drop(peers);
    settle().await;
    for number in 0..CONNECTIONS {
        let mut peer = peer(&connector).await;
        let body = body(1000 + number);
        send(&mut peer, 1, body.as_bytes(), half).await;
        drop((peer, body));
        settle().await;
    }
    let held = held_above(at_first);
    eprintln!("what {CONNECTIONS} connections left holds {held} bytes");
    assert!(held <= ROOM + 4 * EACH, "{held}");

    // Whole ones, whose handlers do not end.
    let mut waiting = Vec::new();
    for number in 0..CONNECTIONS {
        let mut peer = peer(&connector).await;
        let body = body(2000 + number);
        send(&mut peer, 1, body.as_bytes(), body.len()).await;
        drop(body);
        waiting.push(peer);
    }
    settle().await;
    let held = held_above(at_first);
    eprintln!("{} handlers at work hold {held} bytes", gate.waiting());
    assert_eq!(gate.waiting(), ROOM / text.len());
    assert!(held <= ROOM + CONNECTIONS * EACH, "{held}");

    // Somebody else is served all the while.
    let mut bystander = WirePeer::connect(&connector, user("bystander")).await;
    bystander.send("USER_ACTION", action("x")).await;
    assert_eq!(bystander.receive_acknowledgment().await["success"], true);
    drop((waiting, bystander));
    gate.open();
    eventually("nobody is there", || {
        server.connections().counts().total() == 0
    })
    .await;
    // What is kept is kept for five minutes, and goes without anybody who comes.
    tokio::time::sleep(Duration::from_secs(301)).await;
    let held = held_above(at_first);
    eprintln!("in the end {held} bytes are held");
    assert!(held <= 4 * EACH, "{held}");
    within(server.stop(PATIENCE)).await;
}
