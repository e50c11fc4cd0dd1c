//! Somebody between the two ends who changes what they say in the clear.

use migration_ipc::transport::memory::{self, MemoryStream};
use migration_ipc::{ConnectError, DisconnectReason, IpcClient, IpcServer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::task::JoinHandle;

use crate::common::*;
use crate::stage::*;

/// Hands the first frame of a stream on, changed.
async fn pass(from: &mut MemoryStream, to: &mut MemoryStream, change: Change) {
    let body = first_body(from).await;
    let before: Value = serde_json::from_slice(&body).unwrap();
    let mut after = before.clone();
    change(&mut after["payload"]);
    let bytes = if after == before {
        frame_of_bytes(&body)
    } else {
        frame(&after.to_string())
    };
    to.write_all(&bytes).await.unwrap();
}

async fn first_body(stream: &mut MemoryStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.unwrap();
    let mut body = vec![0; usize::try_from(i32::from_le_bytes(length)).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    body
}

type Change = fn(&mut Value);

/// Takes this capability out of a hello.
fn without(payload: &mut Value, capability: &str) {
    let list = payload["capabilities"].as_array_mut().unwrap();
    list.retain(|name| name != capability);
}

/// A client and a service with somebody between them who changes the two hellos.
async fn between(
    server: &(
        tokio::sync::mpsc::Sender<Box<dyn migration_ipc::transport::Stream>>,
        IpcServer,
    ),
    encryption: migration_ipc::Encryption,
    hello: Change,
    answer: Change,
) -> JoinHandle<Result<IpcClient, ConnectError>> {
    let (at_client, mut towards_client) = memory::pair(user("1000"), administrator(), CAPACITY);
    let (mut towards_service, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    server.0.send(Box::new(at_service)).await.unwrap();
    tokio::spawn(async move {
        pass(&mut towards_client, &mut towards_service, hello).await;
        pass(&mut towards_service, &mut towards_client, answer).await;
        // The ends break the connection off; that is what the tests look at.
        drop(copy_bidirectional(&mut towards_client, &mut towards_service).await);
    });
    let client = agent(&Heard::default()).encryption(encryption);
    tokio::spawn(client.connect_over(at_client))
}

async fn server(
    encryption: migration_ipc::Encryption,
) -> (
    tokio::sync::mpsc::Sender<Box<dyn migration_ipc::transport::Stream>>,
    IpcServer,
) {
    let (listener, hand_over) = handed();
    let server = IpcServer::builder(service_of(&Heard::default()))
        .listener(listener)
        .encryption(encryption)
        .start()
        .await
        .unwrap();
    (hand_over, server)
}

fn unchanged(_: &mut Value) {}

#[tokio::test(start_paused = true)]
async fn hellos_that_nobody_changed_come_to_a_session() {
    let service = server(offered()).await;
    let connecting = between(&service, required(), unchanged, unchanged).await;
    let client = within(connecting).await.unwrap().unwrap();
    assert!(client.connection().is_encrypted());
}

#[tokio::test(start_paused = true)]
async fn a_change_of_either_hello_ends_the_connection_at_both_ends() {
    let changes: [(&str, Change, Change); 6] = [
        (
            "a capability out of the hello",
            |it| without(it, "goodbye"),
            unchanged,
        ),
        ("a capability out of the answer", unchanged, |it| {
            without(it, "goodbye")
        }),
        (
            "the credit of the hello",
            |it| it["credit"] = json!(1),
            unchanged,
        ),
        ("the credit of the answer", unchanged, |it| {
            it["credit"] = json!(1)
        }),
        (
            "more in the hello",
            |it| it["more"] = json!(true),
            unchanged,
        ),
        ("more in the answer", unchanged, |it| {
            it["more"] = json!(true)
        }),
    ];
    for (what, hello, answer) in changes {
        for encryption in [offered(), required()] {
            let service = server(offered()).await;
            let mut events = service.1.events();
            let connecting = between(&service, encryption, hello, answer).await;
            let reason = match within(connecting).await.unwrap() {
                Err(ConnectError::Ended(reason)) => reason,
                other => panic!("{what}: {other:?}"),
            };
            assert!(
                matches!(&reason, DisconnectReason::Violation(text) if text.contains("changed")),
                "{what}: {reason}"
            );
            let end = next_end(&mut events).await;
            // Whoever sees it first closes, and the other one sees that or the change.
            assert!(
                ["violation", "closed_by_peer", "truncated_frame"].contains(&end.reason.label()),
                "{what}: {end:?}"
            );
        }
    }
}

/// The capability itself, out of the hello or out of the answer: whoever demands it notices.
#[tokio::test(start_paused = true)]
async fn encryption_cannot_be_taken_out_where_it_is_demanded() {
    let strip: Change = |payload| {
        without(payload, "encryption");
        payload.as_object_mut().unwrap().remove("encryption");
    };
    let service = server(offered()).await;
    let connecting = between(&service, required(), strip, unchanged).await;
    match within(connecting).await.unwrap() {
        Err(ConnectError::Ended(DisconnectReason::NotEncrypted(_))) => {}
        other => panic!("{other:?}"),
    }

    let service = server(required()).await;
    let connecting = between(&service, offered(), strip, unchanged).await;
    match within(connecting).await.unwrap() {
        Err(ConnectError::Ended(DisconnectReason::Refused(text))) => {
            assert!(text.contains("demands encryption"), "{text}");
        }
        other => panic!("{other:?}"),
    }

    // Out of the answer alone: the service waits for the marker, and is told nothing in the clear.
    let service = server(required()).await;
    let mut events = service.1.events();
    let connecting = between(&service, offered(), unchanged, strip).await;
    // What the service sends behind its answer is sealed, and no frame to this client.
    let connected = within(connecting).await.unwrap();
    drop(connected);
    let end = next_end(&mut events).await;
    assert!(
        !end.reason.is_orderly() || end.reason == DisconnectReason::ClosedByPeer,
        "{end:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_part_of_the_handshake_that_was_changed_is_of_no_use() {
    let flip: Change = |payload| {
        let digits = payload["encryption"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        let first = if digits.starts_with('0') { "1" } else { "0" };
        payload["encryption"]["message"] = json!(format!("{first}{}", &digits[1..]));
    };
    let service = server(offered()).await;
    let connecting = between(&service, offered(), flip, unchanged).await;
    match within(connecting).await.unwrap() {
        Err(ConnectError::Ended(DisconnectReason::Refused(text))) => {
            assert!(text.contains("the same key"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let service = server(offered()).await;
    let connecting = between(&service, offered(), unchanged, flip).await;
    match within(connecting).await.unwrap() {
        Err(ConnectError::Ended(DisconnectReason::NotEncrypted(text))) => {
            assert!(text.contains(KEY), "{text}");
        }
        other => panic!("{other:?}"),
    }
}
