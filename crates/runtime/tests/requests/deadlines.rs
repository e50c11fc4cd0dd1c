//! A deadline travels with its request, and ends it wherever it is.

use std::sync::Arc;
use std::time::Duration;

use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::{ErrorCode, Execution, OutboxId, RequestError, StoreOwner};
use migration_ipc_testkit::disk::SimDisk;
use serde_json::json;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_handler_knows_what_is_left_of_the_deadline() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    let told = ends.client.request(ask("left")).within(5 * SECOND).await;
    assert_eq!(told.unwrap().text, "5000");
    let told = ends.client.request(ask("left")).await;
    assert_eq!(told.unwrap().text, "30000", "the default");
}

#[tokio::test(start_paused = true)]
async fn a_handler_passes_its_deadline_on_to_what_it_asks_itself() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    let told = ends.client.request(ask("back")).within(5 * SECOND).await;
    assert_eq!(told.unwrap().text, "5000");
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_at_its_deadline_and_its_handler_is_told() {
    let (at_server, began) = (Stage::new(), Instant::now());
    let ends = ends(&at_server, &Stage::new()).await;
    let error = ends.client.request(ask("heed")).within(5 * SECOND).await;
    assert!(matches!(error, Err(RequestError::Deadline)), "{error:?}");
    assert_eq!(began.elapsed().as_secs(), 5);
    settle().await;
    assert_eq!(
        at_server.take(),
        ["begin heed", "cancelled heed", "end heed"]
    );
}

/// The peer reads a deadline, and nobody but its timer says when it has passed.
#[tokio::test(start_paused = true)]
async fn a_handler_at_work_is_told_at_its_deadline_and_still_answers_once() {
    for form in FORMS {
        let stage = Stage::new();
        let (_server, mut peer) = served_peer(&stage).await;
        let request = written(
            form,
            "q",
            "ASK",
            ",\"deadline\":2000",
            &json!({"what": "heed"}),
            None,
        );
        peer.write(&request).await;
        assert!(peer.is_silent_for(Duration::from_millis(1900)).await);
        let answer = peer.receive().await;
        assert_eq!(answer["type"], "TOLD", "{answer}");
        assert_eq!(answer["inReplyTo"], "q");
        assert!(peer.is_silent_for(5 * SECOND).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_handler_began_is_answered_at_its_deadline() {
    for form in FORMS {
        let stage = Stage::new();
        let (_server, mut peer) = served_peer(&stage).await;
        // The gate stays closed.
        peer.send("ASK", json!({"what": "gate"})).await;
        for (id, deadline) in [("late", 2000), ("later", 3000)] {
            let members = format!(",\"deadline\":{deadline}");
            let request = written(form, id, "ASK", &members, &json!({"what": "x"}), None);
            peer.write(&request).await;
        }
        let began = Instant::now();
        for (id, seconds) in [("late", 2), ("later", 3)] {
            let acknowledgment = peer.receive_acknowledgment().await;
            assert_eq!(acknowledgment["originalMessageId"], id);
            assert_eq!(acknowledgment["code"], "deadline");
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
        stage.gate.open();
        assert_eq!(peer.receive().await["type"], "TOLD");
        assert_eq!(stage.take(), ["begin gate", "end gate"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_sends_nothing() {
    let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
    let error = client.request(ask("x")).within(Duration::ZERO).await;
    assert!(matches!(error, Err(RequestError::TooLate)), "{error:?}");
    assert!(service.is_silent_for(5 * SECOND).await);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_found_no_room_before_its_deadline_was_not_sent() {
    let mut config = migration_ipc::ConnectionConfig::default();
    config.limits.in_flight = 1;
    let ends = ends_with(&Stage::new(), &Stage::new(), config).await;
    let first = tokio::spawn(ends.client.request(ask("gate")).into_future());
    settle().await;
    let error = ends.client.request(ask("x")).within(SECOND).await;
    assert!(matches!(error, Err(RequestError::TooLate)), "{error:?}");
    assert!(error.unwrap_err().is_certainly_unhandled());
    let error = ends
        .client
        .request_stream(Count { to: 1 })
        .within(SECOND)
        .await;
    assert!(matches!(error, Err(RequestError::TooLate)), "{error:?}");
    drop(first);
}

/// Each request has a deadline of its own, and none waits for another's.
#[tokio::test(start_paused = true)]
async fn deadlines_of_many_requests_are_kept_each() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    let began = Instant::now();
    let asking: Vec<_> = [7, 3, 5, 1]
        .into_iter()
        .map(|seconds| {
            let pending = ends.client.request(ask("gate")).within(seconds * SECOND);
            tokio::spawn(async move {
                let error = pending.await.unwrap_err();
                (seconds, began.elapsed().as_secs(), error)
            })
        })
        .collect();
    for asking in asking {
        let (seconds, took, error) = within(asking).await.unwrap();
        assert_eq!(took, u64::from(seconds));
        // Those behind the first are refused by the peer at the same moment.
        let refused = error.code() == Some(&ErrorCode::Deadline);
        assert!(
            refused || matches!(error, RequestError::Deadline),
            "{error:?}"
        );
    }
}

/// It is stored that it was refused, and it is so when it comes again.
#[tokio::test(start_paused = true)]
async fn a_durable_request_that_comes_to_its_deadline_is_refused_for_good() {
    let outbox = OutboxId::from_bytes([7; 16]);
    let disk = Arc::new(SimDisk::new(1));
    let (store, _) = Store::open(disk, "store", StoreOptions::default(), outbox).unwrap();
    let store = StoreOwner::start(store, Execution::Inline);
    let stage = Stage::new();
    let (_server, connector) =
        serve_with(stage.dispatcher(), |server| server.store(store.handle())).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut hello = asking_hello(1024);
    let capabilities = hello["capabilities"].as_array_mut().unwrap();
    capabilities.push("durable".into());
    hello["outbox"] = "5f0c2d1e9a8b47c6b3d2e1f0a9b8c7d6".into();
    peer.send("HELLO", hello).await;
    peer.receive().await;
    for form in FORMS {
        // In its turn, behind this one.
        peer.send("ASK", json!({"what": "gate"})).await;
        let mut told = Vec::new();
        for members in [",\"seq\":1,\"deadline\":1000", ",\"seq\":1"] {
            let request = written(form, "q", "ASK", members, &json!({"what": "x"}), None);
            peer.write(&request).await;
            if told.is_empty() {
                assert!(peer.is_silent_for(5 * SECOND).await);
                stage.gate.admit(1);
                assert_eq!(peer.receive().await["type"], "TOLD");
            }
            told.push(peer.receive_acknowledgment().await["code"].clone());
        }
        assert_eq!(told, ["deadline", "deadline"]);
        assert_eq!(stage.take(), ["begin gate", "end gate"]);
    }
}
