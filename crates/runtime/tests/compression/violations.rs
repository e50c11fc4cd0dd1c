//! What peers should not do: each closes the connection that it comes over, and hurts no other.

use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{ConnectionConfig, ConnectionState, DisconnectReason};

use crate::common::*;
use crate::peer::{RawPeer, client_of, compressed};
use crate::stage::{Stage, compressing, manifest, serving};

fn violation(reason: &DisconnectReason) -> bool {
    matches!(reason, DisconnectReason::Violation(_))
}

/// Somebody else's connection, which goes on.
struct Bystander(RawPeer);

impl Bystander {
    async fn connect(connector: &MemoryConnector) -> Self {
        let mut peer = RawPeer::connect(connector, "bystander").await;
        peer.hello(&["lz4"]).await;
        Self(peer)
    }

    async fn is_unhurt(&mut self) {
        self.0.send_compressed("MANIFEST", manifest(100)).await;
        assert_eq!(self.0.receive().await["payload"]["success"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_body_that_a_new_peer_did_not_negotiate_closes_the_connection() {
    let stage = Stage::open();
    let (server, connector) = serving(&stage, ConnectionConfig::default()).await;
    let mut bystander = Bystander::connect(&connector).await;
    let mut events = server.events();
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["inReplyTo", "errorCodes"]).await;
    peer.send("MANIFEST", manifest(1)).await;
    assert_eq!(peer.receive().await["payload"]["success"], true);
    peer.send_compressed("MANIFEST", manifest(100)).await;
    assert_eq!(peer.receive_body().await, None);
    let end = next_end(&mut events).await;
    let text = "a compressed body, which was not negotiated";
    assert_eq!(end.reason, DisconnectReason::Violation(text.to_owned()));
    assert_eq!(stage.got(), 1, "the one that was not compressed");
    bystander.is_unhurt().await;
}

/// To a plain peer it is a body that makes no sense, before it has spoken and after.
#[tokio::test(start_paused = true)]
async fn a_compressed_body_of_a_plain_peer_is_a_malformed_one() {
    for speaks_first in [true, false] {
        let stage = Stage::open();
        let (server, connector) = serving(&stage, ConnectionConfig::default()).await;
        let mut events = server.events();
        let mut peer = RawPeer::connect(&connector, "1000").await;
        if speaks_first {
            peer.send("MANIFEST", manifest(1)).await;
            peer.receive().await;
        }
        for _ in 0..3 {
            peer.send_compressed("MANIFEST", manifest(100)).await;
        }
        peer.send("MANIFEST", manifest(1)).await;
        assert_eq!(peer.receive().await["payload"]["success"], true);
        assert_eq!(stage.got(), 1 + usize::from(speaks_first));
        peer.send_compressed("MANIFEST", manifest(100)).await;
        drop(peer);
        let end = next_end(&mut events).await;
        assert_eq!(end.reason, DisconnectReason::TooManyMalformed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_compresses_what_was_not_negotiated_is_left() {
    let (client, mut service) = client_of(compressing(), &["inReplyTo"]).await;
    service.send_compressed("MANIFEST", manifest(100)).await;
    let mut state = client.state();
    let gone = |state: &ConnectionState| matches!(state, ConnectionState::Gone(reason) if violation(reason));
    within(state.wait_for(gone)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_what_it_says_closes_the_connection_and_hurts_nobody_else() {
    let stage = Stage::open();
    let (server, connector) = serving(&stage, ConnectionConfig::default()).await;
    let mut bystander = Bystander::connect(&connector).await;
    let mut events = server.events();
    let mut peer = RawPeer::connect(&connector, "1000").await;
    let good = peer.body("MANIFEST", &manifest(100));
    let whole = compressed(&good).split_off(4);
    let naming = |length: u32| {
        let mut body = whole.clone();
        body[1..5].copy_from_slice(&length.to_le_bytes());
        body
    };
    let length = u32::try_from(good.len()).unwrap();
    let mut damaged = whole.clone();
    // The first token: it promises more literals than there are.
    damaged[5] |= 0xf0;
    damaged[6..20].fill(255);
    let mut garbage = whole.clone();
    garbage.push(0);
    let nested = compressed_by_hand(&compressed(&vec![b' '; 1000])[4..]);
    let cases = [
        ("of no length", vec![1]),
        ("of nothing", naming(0)),
        ("shorter than it names", naming(length + 1)),
        ("a bomb, longer than it names", naming(length - 1)),
        ("over the limit", naming(1_048_577)),
        ("beyond any limit", naming(u32::MAX)),
        (
            "a promise",
            [&naming(1_048_576)[..5], &[0x10, b' ']].concat(),
        ),
        ("cut", whole[..whole.len() - 1].to_vec()),
        ("with garbage behind", garbage),
        ("damaged", damaged),
        ("compressed twice", nested),
    ];
    for (what, body) in cases {
        let mut peer = RawPeer::connect(&connector, "1000").await;
        peer.hello(&["errorCodes", "lz4"]).await;
        peer.write(&frame_of_bytes(&body)).await;
        assert_eq!(peer.receive_body().await, None, "{what}");
        let end = next_end(&mut events).await;
        assert!(violation(&end.reason), "{what}: {end:?}");
        bystander.is_unhurt().await;
    }
    assert_eq!(stage.got(), 11, "the bystander's");
}

/// A body with a block of literals alone.
fn compressed_by_hand(original: &[u8]) -> Vec<u8> {
    let more = u8::try_from(original.len() - 15).unwrap();
    let length = u32::try_from(original.len()).unwrap().to_le_bytes();
    [&[1], &length[..], &[0xf0, more], original].concat()
}

/// A peer that never negotiated chunks, and hides one.
#[tokio::test(start_paused = true)]
async fn a_kind_of_body_that_was_not_negotiated_is_not_smuggled_in() {
    let (server, connector) = serving(&Stage::open(), ConnectionConfig::default()).await;
    let mut events = server.events();
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["lz4"]).await;
    let mut chunk = vec![0; 1000];
    chunk[0] = 2;
    peer.write(&compressed(&chunk)).await;
    let end = next_end(&mut events).await;
    let text = "a chunked body, which was not negotiated";
    assert_eq!(end.reason, DisconnectReason::Violation(text.to_owned()));
}
