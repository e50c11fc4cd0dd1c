//! A service that takes batches.

use std::time::Duration;

use migration_ipc::messages::BackupProgress;
use migration_ipc::transport::Stream;
use migration_ipc::{ConnectionEvent, MessagePayload, Observed};
use migration_ipc_protocol::FrameDecoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::*;
use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn the_messages_of_a_batch_are_handled_in_order_and_answered_together() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 100).await;
    let batch = peer
        .send_batch(&actions(["one", "fail", "two", "panic", "three"]))
        .await;
    assert_eq!(
        peer.outcomes_of(&batch).await,
        [
            "handled",
            "handler_failed",
            "handled",
            "handler_panicked",
            "handled"
        ]
    );
    assert_eq!(stage.take(), ["one", "fail", "two", "panic", "three"]);
    assert!(
        peer.is_silent_for(Duration::from_secs(10)).await,
        "one answer"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reply_comes_before_the_outcomes_and_names_its_message() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 100).await;
    let batch = peer.send_batch(&actions(["reply", "x", "reply"])).await;
    for id in ["a1", "a3"] {
        let reply = peer.receive().await;
        assert_eq!(reply["type"], "CONFIGURATION_UPDATE");
        assert_eq!(reply["inReplyTo"], id);
    }
    let outcomes = peer.outcomes_of(&batch).await;
    assert_eq!(outcomes, ["replied", "handled", "replied"]);
}

/// Byte for byte, but for the id and the time that the service makes.
#[tokio::test(start_paused = true)]
async fn outcomes_are_written_as_the_protocol_says() {
    let stage = Stage::new();
    let (_server, connector) = serve(stage.dispatcher()).await;
    let mut stream = connector.connect(user("1000")).await.unwrap();
    let hello = envelope("h", "HELLO", batching_hello(100));
    let batch = envelope(
        "b",
        "BATCH",
        json!({"messages": actions(["x", "fail", "reply"])}),
    );
    for message in [hello, batch] {
        stream
            .write_all(&frame(&message.to_string()))
            .await
            .unwrap();
    }
    let mut texts = read_texts(&mut stream, 3).await;
    let outcomes = texts.pop().unwrap();
    let value: Value = serde_json::from_str(&outcomes).unwrap();
    let (id, time) = (
        value["id"].as_str().unwrap(),
        value["timestamp"].as_str().unwrap(),
    );
    assert_eq!(
        outcomes.replace(id, "ID").replace(time, "TIME"),
        "{\"id\":\"ID\",\"type\":\"BATCH_OUTCOMES\",\"timestamp\":\"TIME\",\"payload\":{\"outcomes\":[\
         {\"success\":true},{\"success\":false,\"error\":\"failed\",\"code\":\"handler_failed\"},\
         {\"success\":true,\"replied\":true}]},\"inReplyTo\":\"b\"}"
    );
}

/// The bodies of the next frames, as they are.
async fn read_texts(stream: &mut impl Stream, frames: usize) -> Vec<String> {
    let mut decoder = FrameDecoder::new();
    let mut texts = Vec::new();
    while texts.len() < frames {
        let mut buffer = [0; 4096];
        let count = within(stream.read(&mut buffer)).await.unwrap();
        let mut input = &buffer[..count];
        while let Some(body) = decoder.decode(&mut input).unwrap() {
            texts.push(String::from_utf8(body.to_vec()).unwrap());
        }
    }
    texts
}

#[tokio::test(start_paused = true)]
async fn error_codes_are_in_outcomes_only_if_they_were_negotiated() {
    let stage = Stage::new();
    let (_server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut hello = batching_hello(10);
    hello["capabilities"] = json!(["inReplyTo", "batch"]);
    peer.send("HELLO", hello).await;
    peer.receive().await;
    let batch = peer.send_batch(&actions(["fail"])).await;
    let answer = peer.receive_type("BATCH_OUTCOMES").await;
    assert_eq!(answer["inReplyTo"], batch);
    let expected = json!([{"success": false, "error": "failed"}]);
    assert_eq!(answer["payload"]["outcomes"], expected);
}

#[tokio::test(start_paused = true)]
async fn without_the_capability_a_batch_is_a_type_without_a_handler() {
    let stage = Stage::new();
    for capabilities in [json!(["errorCodes"]), json!(["errorCodes", "batch"])] {
        let (_server, connector) = serve(stage.dispatcher()).await;
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        let mut hello = hello("agent", 10);
        // What it needs is missing.
        hello["capabilities"] = capabilities;
        peer.send("HELLO", hello).await;
        let answer = peer.receive().await;
        assert_eq!(answer["payload"]["capabilities"], json!(["errorCodes"]));
        peer.send_batch(&actions(["x"])).await;
        assert_eq!(peer.receive_acknowledgment().await["code"], "no_handler");
        assert!(stage.take().is_empty());
    }
    let (_server, connector) = serve(stage.dispatcher()).await;
    let mut plain = WirePeer::connect(&connector, user("1000")).await;
    plain.send_batch(&actions(["x"])).await;
    let refusal = plain.receive_acknowledgment().await;
    assert_eq!(
        refusal["error"],
        "No handler registered for message type: BATCH"
    );
}

/// What one may not send does not keep the others from being handled.
#[tokio::test(start_paused = true)]
async fn a_message_that_its_sender_may_not_send_fails_alone() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 100).await;
    let mut messages = actions(["one", "two"]);
    messages.insert(
        1,
        envelope("u", "STATUS_UPDATE", json!({"overallStatus": "ready"})),
    );
    messages.push(envelope("v", "SHUTDOWN_REQUEST", json!({})));
    messages.push(envelope("w", "USER_ACTION", json!({"action": 1})));
    let batch = peer.send_batch(&messages).await;
    let outcomes = peer.outcomes_of(&batch).await;
    assert_eq!(
        outcomes,
        [
            "handled",
            "no_handler",
            "handled",
            "no_handler",
            "bad_payload"
        ]
    );
    assert_eq!(stage.take(), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn an_announcement_in_a_batch_announces() {
    let stage = Stage::new();
    let (server, mut peer) = served(&stage, 100).await;
    let mut events = server.events();
    let mut messages = actions(["one"]);
    messages.push(envelope("s", "AGENT_STARTED", agent_started("", "7")));
    let batch = peer.send_batch(&messages).await;
    assert_eq!(peer.outcomes_of(&batch).await, ["handled", "handled"]);
    assert_eq!(stage.take(), ["one", "started 1000"]);
    loop {
        match within(events.recv()).await.unwrap() {
            Observed::Item(ConnectionEvent::Announced { .. }) => break,
            Observed::Item(_) => {}
            Observed::Missed(missed) => panic!("{missed} events were missed"),
        }
    }
}

/// Types that nobody waits for are in the outcomes like any other.
#[tokio::test(start_paused = true)]
async fn silent_types_have_an_outcome() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 100).await;
    let progress = envelope("p", BackupProgress::TYPE, progress(1));
    let batch = peer.send_batch(&[progress]).await;
    assert_eq!(peer.outcomes_of(&batch).await, ["handled"]);
}

#[tokio::test(start_paused = true)]
async fn concurrent_handlers_of_a_batch_run_beside_the_others() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 100).await;
    let mut messages = actions(["one"]);
    messages.insert(0, envelope("d1", "DELAY_REQUEST", delay(1)));
    messages.push(envelope("d2", "DELAY_REQUEST", delay(2)));
    let batch = peer.send_batch(&messages).await;
    settle().await;
    assert_eq!(stage.take(), ["delay 1", "one", "delay 2"]);
    // The one behind it is answered before it, though it came later.
    let next = peer.send_batch(&actions(["two"])).await;
    assert_eq!(peer.outcomes_of(&next).await, ["handled"]);
    stage.gate.open();
    assert_eq!(peer.outcomes_of(&batch).await, ["handled"; 3]);
}

/// A service that stops finishes what it has begun, and says of the rest that it did not.
#[tokio::test(start_paused = true)]
async fn a_service_that_stops_answers_what_it_did_not_begin_in_the_outcomes() {
    let stage = Stage::new();
    let (server, mut peer) = served(&stage, 100).await;
    let batch = peer
        .send_batch(&actions(["one", "wait", "two", "three"]))
        .await;
    settle().await;
    assert_eq!(stage.take(), ["one", "wait"]);
    let stopping = tokio::spawn(server.stop(PATIENCE));
    settle().await;
    let late = peer.send_batch(&actions(["four", "five"])).await;
    settle().await;
    stage.gate.open();
    let outcomes = peer.outcomes_of(&batch).await;
    assert_eq!(outcomes, ["handled", "handled", "stopping", "stopping"]);
    assert_eq!(peer.outcomes_of(&late).await, ["stopping", "stopping"]);
    assert_eq!(peer.receive().await["type"], "GOODBYE");
    drop(peer);
    stopping.await.unwrap();
    assert_eq!(stage.take(), ["waited"]);
}

/// Whoever observes, and whoever counts, sees the messages and not only the batch.
#[tokio::test(start_paused = true)]
async fn each_message_of_a_batch_is_observed_and_counted() {
    let watch = Watch::begin();
    let stage = Stage::new();
    let (server, mut peer) = served(&stage, 100).await;
    let mut observed = server.messages();
    let batch = peer.send_batch(&actions(["one", "two"])).await;
    peer.outcomes_of(&batch).await;
    for id in ["a1", "a2"] {
        match within(observed.recv()).await.unwrap() {
            Observed::Item(received) => assert_eq!(received.message.id.to_string(), id),
            Observed::Missed(missed) => panic!("{missed} messages were missed"),
        }
    }
    let count = |name| {
        let labels = [("type", name), ("direction", "in")];
        watch.counter_with("ipc_messages_total", &labels)
    };
    assert_eq!((count("BATCH"), count("USER_ACTION")), (1, 2));
}
