//! What comes compressed is taken as any other.

use std::sync::Arc;

use migration_ipc::protocol::extensions::Decompressor;
use migration_ipc::{Answer, Compression, ConnectionConfig, IpcClient};
use serde_json::json;

use crate::common::*;
use crate::peer::{RawPeer, client_of, compressed};
use crate::stage::{Ask, Manifest, Stage, compressing, manifest, noise, serving};

#[tokio::test(start_paused = true)]
async fn a_compressed_message_is_handled_as_any_other() {
    let stage = Stage::open();
    let (_server, connector) = serving(&stage, ConnectionConfig::default()).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["lz4"]).await;
    peer.send_compressed("MANIFEST", manifest(100)).await;
    // Not in the usual form: there is white space in front.
    let mut unusual = vec![b' '; 100];
    unusual.extend(peer.body("MANIFEST", &manifest(50)));
    peer.write(&compressed(&unusual)).await;
    peer.send("MANIFEST", manifest(1)).await;
    for id in ["m2", "m3", "m4"] {
        let answer = peer.receive().await;
        assert_eq!(answer["payload"]["originalMessageId"], id);
        assert_eq!(answer["payload"]["success"], true);
    }
    let got = stage.got.lock().unwrap();
    assert_eq!(*got, [manifest(100), manifest(50), manifest(1)]);
}

/// What the connection itself takes may be compressed too.
#[tokio::test(start_paused = true)]
async fn a_compressed_answer_and_a_compressed_reply_are_taken() {
    let (client, mut service) = client_of(ConnectionConfig::default(), &["inReplyTo", "lz4"]).await;
    let client = Arc::new(client);
    let asking = Arc::clone(&client);
    let asking = tokio::spawn(async move { asking.send_acknowledged(Ask { files: 1 }).await });
    let asked = service.receive().await;
    let mut refusal = acknowledgment(&asked);
    refusal["success"] = json!(false);
    refusal["error"] = json!("no ".repeat(100));
    service.send_compressed("ACKNOWLEDGMENT", refusal).await;
    assert!(within(asking).await.unwrap().is_err());

    let asking = tokio::spawn(async move { client.send_acknowledged(Ask { files: 1 }).await });
    let asked = service.receive().await;
    let mut reply = envelope("r", "MANIFEST", json!(manifest(100)));
    reply["inReplyTo"] = asked["id"].clone();
    service
        .write(&compressed(reply.to_string().as_bytes()))
        .await;
    match within(asking).await.unwrap().unwrap() {
        Answer::Replied(reply) => assert_eq!(reply.payload::<Manifest>().unwrap(), manifest(100)),
        Answer::Handled => panic!("there was a reply"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_body_that_is_no_message_is_malformed_like_any_other() {
    let (_server, connector) = serving(&Stage::open(), ConnectionConfig::default()).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["errorCodes", "lz4"]).await;
    let body = format!(r#"{{"id":"bad","x":"{}"}}"#, "x".repeat(100));
    peer.write(&compressed(body.as_bytes())).await;
    let answer = peer.receive().await;
    assert_eq!(answer["payload"]["originalMessageId"], "bad");
    assert_eq!(answer["payload"]["code"], "malformed");
}

#[tokio::test(start_paused = true)]
async fn both_directions_at_once_lose_nothing_and_keep_their_order() {
    let seed = 5;
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let config = ConnectionConfig {
        compression: Compression::From(Compression::MIN_THRESHOLD),
        ..ConnectionConfig::default()
    };
    let (at_service, at_client) = (Stage::open(), Stage::open());
    let (server, connector) = serving(&at_service, config).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = IpcClient::builder(at_client.dispatcher())
        .connection_config(config)
        .connect_over(stream)
        .await
        .unwrap();
    let connection = only_connection(&server).await;
    let mut some = || -> Vec<Manifest> {
        let one = |random: &mut fastrand::Rng| match random.u8(0..3) {
            0 => manifest(random.usize(0..2000)),
            1 => noise(random.usize(0..100_000)),
            _ => manifest(random.usize(0..3)),
        };
        (0..200).map(|_| one(&mut random)).collect()
    };
    let (up, down) = (some(), some());
    let sending = async {
        for manifest in &up {
            client.send(manifest.clone()).await.unwrap();
        }
    };
    let answering = async {
        for manifest in &down {
            connection.send(manifest.clone()).await.unwrap();
        }
    };
    tokio::join!(sending, answering);
    eventually("all of them", || {
        at_service.got() == up.len() && at_client.got() == down.len()
    })
    .await;
    assert_eq!(*at_service.got.lock().unwrap(), up);
    assert_eq!(*at_client.got.lock().unwrap(), down);
}

#[tokio::test(start_paused = true)]
async fn what_compression_saves_is_counted_and_messages_count_as_they_are() {
    let watch = Watch::begin();
    let stage = Stage::open();
    let (server, connector) = serving(&stage, compressing()).await;
    let mut peer = RawPeer::connect(&connector, "1000").await;
    peer.hello(&["lz4"]).await;
    let body = peer.body("MANIFEST", &manifest(100));
    let wire = compressed(&body);
    peer.write(&wire).await;
    peer.receive().await;
    only_connection(&server)
        .await
        .send(manifest(100))
        .await
        .unwrap();
    let sent = peer.receive_body().await.unwrap();
    let count = |name, labels: &[(&'static str, &str)]| {
        usize::try_from(watch.counter_with(name, labels)).unwrap()
    };
    let compressed = |direction, form| {
        let labels = [("direction", direction), ("form", form)];
        count("ipc_compressed_bytes_total", &labels)
    };
    assert_eq!(compressed("in", "wire"), wire.len());
    assert_eq!(compressed("in", "plain"), 4 + body.len());
    assert_eq!(compressed("out", "wire"), 4 + sent.len());
    let plain = Decompressor::new().open(&sent).unwrap().len();
    assert_eq!(compressed("out", "plain"), 4 + plain);
    let bytes = |direction| {
        let labels = [("type", "MANIFEST"), ("direction", direction)];
        count("ipc_bytes_total", &labels)
    };
    assert_eq!((bytes("in"), bytes("out")), (4 + body.len(), 4 + plain));
}
