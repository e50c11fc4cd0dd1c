//! Who gives up on a request says so, and its handler is told.

use std::time::Duration;

use serde_json::json;

use crate::common::*;
use crate::stage::*;

fn cancel(id: &str) -> serde_json::Value {
    json!({ "requestId": id })
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_cancels_the_handler_at_work() {
    let at_server = Stage::new();
    let ends = ends(&at_server, &Stage::new()).await;
    let asking = tokio::spawn(ends.client.request(ask("heed")).into_future());
    settle().await;
    assert_eq!(at_server.take(), ["begin heed"]);
    asking.abort();
    settle().await;
    assert_eq!(at_server.take(), ["cancelled heed", "end heed"]);
    assert_eq!(ends.client.request(ask("x")).await.unwrap().text, "x");
}

#[tokio::test(start_paused = true)]
async fn the_late_answer_to_a_request_that_was_given_up_is_counted_and_dropped() {
    for form in FORMS {
        let watch = Watch::begin();
        let stage = Stage::new();
        let (client, mut service) = client_of_peer(&stage, 16).await;
        let late = || watch.counter_with("ipc_late_answers_total", &[]);
        // A reply, whose type has a handler here, and an acknowledgment.
        for number in 1..=2 {
            let asking = tokio::spawn(client.request(ask("x")).into_future());
            let request = service.receive_type("ASK").await;
            asking.abort();
            let told = service.receive().await;
            assert_eq!(told["type"], "CANCEL");
            assert_eq!(told["payload"]["requestId"], request["id"]);
            if number == 1 {
                let told = json!({"what": "late"});
                let reply = written(form, "r", "ASK", "", &told, Some(&request["id"]));
                service.write(&reply).await;
            } else {
                service.acknowledge(&request).await;
            }
            settle().await;
            assert_eq!(late(), number);
        }
        assert_eq!(stage.take(), [""; 0], "it went to no handler");
        assert!(service.is_silent_for(Duration::from_secs(5)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_handler_began_is_answered_as_cancelled() {
    for form in FORMS {
        let stage = Stage::new();
        let (_server, mut peer) = served_peer(&stage).await;
        peer.send("ASK", json!({"what": "gate"})).await;
        let request = written(
            form,
            "q",
            "ASK",
            ",\"deadline\":9000",
            &json!({"what": "x"}),
            None,
        );
        peer.write(&request).await;
        settle().await;
        peer.send("CANCEL", cancel("q")).await;
        let acknowledgment = peer.receive_acknowledgment().await;
        assert_eq!(acknowledgment["originalMessageId"], "q");
        assert_eq!(acknowledgment["code"], "cancelled");
        stage.gate.open();
        assert_eq!(peer.receive().await["type"], "TOLD");
        assert!(peer.is_silent_for(Duration::from_secs(20)).await);
        assert_eq!(stage.take(), ["begin gate", "end gate"]);
    }
}

/// The message and its cancellation come in one read.
#[tokio::test(start_paused = true)]
async fn a_request_at_work_is_cancelled_and_gives_its_one_answer() {
    let stage = Stage::new();
    let (_server, mut peer) = served_peer(&stage).await;
    let heed = json!({"what": "heed"});
    let mut bytes = written(Form::Usual, "q", "ASK", ",\"deadline\":9000", &heed, None);
    bytes.extend(peer.frame("CANCEL", cancel("q")).1);
    bytes.extend(peer.frame("CANCEL", cancel("q")).1);
    peer.write(&bytes).await;
    let answer = peer.receive().await;
    assert_eq!(answer["type"], "TOLD", "{answer}");
    assert_eq!(answer["inReplyTo"], "q");
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
}

/// The cancellation goes before everything that waits, but never before its request.
#[tokio::test(start_paused = true)]
async fn a_cancellation_follows_its_request() {
    let (client, mut service) = client_of_peer(&Stage::new(), 0).await;
    let asking = tokio::spawn(client.request(ask("x")).into_future());
    settle().await;
    asking.abort();
    assert!(service.is_silent_for(Duration::from_secs(5)).await);
    service.send("CREDIT", json!({"messages": 1})).await;
    let request = service.receive().await;
    assert_eq!(request["type"], "ASK");
    let cancel = service.receive().await;
    assert_eq!(cancel["type"], "CANCEL");
    assert_eq!(cancel["payload"]["requestId"], request["id"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_given_up_with_the_message_that_it_serves() {
    let (at_server, at_client) = (Stage::new(), Stage::new());
    let ends = ends(&at_server, &at_client).await;
    // Keeps the request back from being answered.
    let busy = tokio::spawn(ends.at_server.request(ask("gate")).into_future());
    settle().await;
    let asking = tokio::spawn(ends.client.request(ask("back")).into_future());
    settle().await;
    assert_eq!(at_server.take(), ["begin back"]);
    asking.abort();
    settle().await;
    assert_eq!(
        at_server.take(),
        ["answered back"],
        "not before its deadline"
    );
    at_client.gate.open();
    assert_eq!(within(busy).await.unwrap().unwrap().text, "gate");
    assert_eq!(
        at_client.take(),
        ["begin gate", "end gate"],
        "`left` never began"
    );
}

#[tokio::test(start_paused = true)]
async fn handlers_at_work_are_told_of_the_end_of_their_connection() {
    let at_server = Stage::new();
    let ends = ends(&at_server, &Stage::new()).await;
    let asking = tokio::spawn(ends.client.request(ask("heed")).into_future());
    settle().await;
    ends.client.disconnect().await;
    // Whoever closes waits for the peer, and hears its last words.
    assert_eq!(within(asking).await.unwrap().unwrap().text, "heed");
    settle().await;
    assert_eq!(
        at_server.take(),
        ["begin heed", "cancelled heed", "end heed"]
    );
}

/// What is remembered of requests that were given up is bounded.
#[tokio::test(start_paused = true)]
async fn only_so_many_requests_that_were_given_up_are_remembered() {
    let watch = Watch::begin();
    let (client, mut service) = client_of_peer(&Stage::new(), 4000).await;
    let mut first = None;
    for _ in 0..1025 {
        let asking = tokio::spawn(client.request(ask("x")).into_future());
        let request = service.receive_type("ASK").await;
        first.get_or_insert(request);
        asking.abort();
        settle().await;
    }
    service.acknowledge(&first.unwrap()).await;
    settle().await;
    assert_eq!(watch.counter_with("ipc_late_answers_total", &[]), 0);
}
