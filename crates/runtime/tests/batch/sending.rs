//! Batches that the runtime sends.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, BackupProgress, UserAction};
use migration_ipc::messages::{BackupRequest, Category, ConfigurationUpdate, Percent};
use migration_ipc::transport::memory;
use migration_ipc::{
    Answer, Batch, BatchError, DisconnectReason, IpcClient, MessageDispatcher, MessageFactory,
    SendError, limits,
};
use migration_ipc_protocol::FrameDecoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::common::*;
use crate::stage::*;

type Results = Result<Vec<Result<Answer, SendError>>, SendError>;

fn batch_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Batch {
    let mut batch = Batch::new();
    for name in names {
        batch.push(UserAction::new("", name)).unwrap();
    }
    batch
}

/// A client and its service, which answers the hello with this payload.
async fn client_of(answer: Value) -> (IpcClient, WirePeer) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let connecting = tokio::spawn(client().connect_over(at_client));
    let hello = service.receive().await;
    service.reply(&hello, "HELLO", answer).await;
    (within(connecting).await.unwrap().unwrap(), service)
}

fn sending(client: &IpcClient, batch: Batch) -> JoinHandle<Results> {
    let connection = client.connection().clone();
    tokio::spawn(async move { connection.send_batch(batch).await })
}

async fn results(sending: JoinHandle<Results>) -> Vec<String> {
    told(&within(sending).await.unwrap().unwrap())
}

/// What came of each, in short.
fn told(results: &[Result<Answer, SendError>]) -> Vec<String> {
    let short = |result: &Result<Answer, SendError>| match result {
        Ok(Answer::Handled) => "handled".to_owned(),
        Ok(Answer::Replied(message)) => format!("replied {}", message.message_type),
        Err(SendError::Rejected(rejection)) => format!("rejected: {}", rejection.error),
        Err(SendError::BatchRejected(rejection)) => format!("batch rejected: {}", rejection.error),
        Err(SendError::Unanswered) => "unanswered".to_owned(),
        Err(SendError::Lost(_)) => "lost".to_owned(),
        Err(error) => error.to_string(),
    };
    results.iter().map(short).collect()
}

fn handled() -> Value {
    json!({"success": true})
}

#[tokio::test(start_paused = true)]
async fn one_frame_goes_out_and_one_acknowledgment_settles_all() {
    let (client, mut service) = client_of(batching_hello(100)).await;
    let sending = sending(&client, batch_of(["one", "two", "three"]));
    let batch = service.receive().await;
    assert_eq!(batch["type"], "BATCH");
    let messages = batch["payload"]["messages"].as_array().unwrap();
    let names: Vec<_> = messages.iter().map(|m| &m["payload"]["action"]).collect();
    assert_eq!(names, ["one", "two", "three"]);
    let outcomes = json!([
        handled(),
        {"success": false, "error": "no", "code": "handler_failed"},
        handled(),
    ]);
    service.answer_batch(&batch, outcomes).await;
    assert_eq!(
        results(sending).await,
        ["handled", "rejected: no", "handled"]
    );
}

/// Byte for byte, but for what is made when it is sent.
#[tokio::test(start_paused = true)]
async fn a_batch_is_written_as_the_protocol_says() {
    let (at_client, mut at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let connecting = tokio::spawn(client().connect_over(at_client));
    let mut decoder = FrameDecoder::new();
    let hello: Value =
        serde_json::from_str(&next_text(&mut at_service, &mut decoder).await).unwrap();
    let mut answer = envelope("h", "HELLO", batching_hello(10));
    answer["inReplyTo"] = hello["id"].clone();
    at_service
        .write_all(&frame(&answer.to_string()))
        .await
        .unwrap();
    let client = within(connecting).await.unwrap().unwrap();
    let message = MessageFactory::create(&UserAction::new("", "x")).unwrap();
    let alone = serde_json::to_string(&message.payload).unwrap();
    let (id, time) = (message.id.clone(), message.timestamp);
    let mut batch = Batch::new();
    batch.push_message(message).unwrap();
    let sending = sending(&client, batch);
    let text = next_text(&mut at_service, &mut decoder).await;
    let value: Value = serde_json::from_str(&text).unwrap();
    let (batch_id, batch_time) = (
        value["id"].as_str().unwrap(),
        value["timestamp"].as_str().unwrap(),
    );
    assert_eq!(
        text,
        format!(
            "{{\"id\":\"{batch_id}\",\"type\":\"BATCH\",\"timestamp\":\"{batch_time}\",\
             \"payload\":{{\"messages\":[{{\"id\":\"{id}\",\"type\":\"USER_ACTION\",\
             \"timestamp\":\"{time}\",\"payload\":{alone}}}]}}}}"
        )
    );
    sending.abort();
}

async fn next_text(stream: &mut memory::MemoryStream, decoder: &mut FrameDecoder) -> String {
    loop {
        let mut buffer = [0; 4096];
        let count = within(stream.read(&mut buffer)).await.unwrap();
        let mut input = &buffer[..count];
        if let Some(body) = decoder.decode(&mut input).unwrap() {
            return String::from_utf8(body.to_vec()).unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn replies_are_matched_to_their_place() {
    let (client, mut service) = client_of(batching_hello(100)).await;
    let sending = sending(&client, batch_of(["one", "two", "three"]));
    let batch = service.receive().await;
    let second = batch["payload"]["messages"][1].clone();
    service
        .reply(&second, "STATUS_UPDATE", json!({"overallStatus": "ready"}))
        .await;
    let outcomes = json!([handled(), {"success": true, "replied": true}, handled()]);
    service.answer_batch(&batch, outcomes).await;
    assert_eq!(
        results(sending).await,
        ["handled", "replied STATUS_UPDATE", "handled"]
    );
}

/// The result has the same form, and the wire is that of single messages.
#[tokio::test(start_paused = true)]
async fn to_a_service_without_the_capability_the_messages_go_out_one_after_the_other() {
    let (client, mut service) = client_of(hello("agent", 100)).await;
    let sending = sending(&client, batch_of(["one", "two", "three"]));
    for name in ["one", "two", "three"] {
        let message = service.receive().await;
        assert_eq!(message["type"], "USER_ACTION");
        assert_eq!(message["payload"]["action"], name);
        match name {
            "two" => {
                let mut refusal = acknowledgment(&message);
                refusal["success"] = json!(false);
                refusal["error"] = json!("no");
                service.send("ACKNOWLEDGMENT", refusal).await;
            }
            _ => service.acknowledge(&message).await,
        }
    }
    assert_eq!(
        results(sending).await,
        ["handled", "rejected: no", "handled"]
    );
}

#[tokio::test(start_paused = true)]
async fn to_a_plain_service_the_messages_are_those_of_a_plain_client() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let client = IpcClient::builder(MessageDispatcher::empty())
        .without_hello()
        .connect_over(at_client)
        .await
        .unwrap();
    let sending = sending(&client, batch_of(["one", "two"]));
    for name in ["one", "two"] {
        let message = service.receive().await;
        let members: Vec<_> = message.as_object().unwrap().keys().cloned().collect();
        assert_eq!(members, ["id", "payload", "timestamp", "type"]);
        assert_eq!(message["payload"]["action"], name);
        service.acknowledge(&message).await;
    }
    assert_eq!(results(sending).await, ["handled", "handled"]);
}

/// A plain agent never answers, and is not waited for.
#[tokio::test(start_paused = true)]
async fn to_a_plain_agent_they_count_as_unanswered_once_they_are_written() {
    let (server, connector) = serve(MessageDispatcher::empty()).await;
    let mut agent = WirePeer::connect(&connector, user("1000")).await;
    agent.send("USER_ACTION", action("x")).await;
    agent.receive().await;
    let connection = only_connection(&server).await;
    let mut batch = Batch::new();
    for key in ["a", "b"] {
        batch.push(ConfigurationUpdate::new(key, 1.into())).unwrap();
    }
    let start = tokio::time::Instant::now();
    let results = within(connection.send_batch(batch)).await.unwrap();
    assert_eq!(told(&results), ["unanswered", "unanswered"]);
    assert!(start.elapsed() < Duration::from_secs(1));
    for key in ["a", "b"] {
        assert_eq!(agent.receive().await["payload"]["key"], key);
    }
}

/// A service's batch is spelled for the agent that it goes to, alone or together.
#[tokio::test(start_paused = true)]
async fn a_service_sends_batches_in_the_spelling_of_its_agent() {
    let stage = Stage::new();
    let (server, mut agent) = served(&stage, 100).await;
    agent
        .send("AGENT_STARTED", agent_started("1000", "3"))
        .await;
    agent.receive().await;
    let connection = only_connection(&server).await;
    let mut batch = Batch::new();
    let deadline = "2030-01-01T00:00:00Z".parse().unwrap();
    batch
        .push(BackupRequest::new("1000", deadline, [Category::Files]))
        .unwrap();
    batch.push(ConfigurationUpdate::new("k", 1.into())).unwrap();
    let sending = tokio::spawn(async move { connection.send_batch(batch).await });
    let received = agent.receive_type("BATCH").await;
    let messages = &received["payload"]["messages"];
    assert_eq!(messages[0]["payload"]["userId"], "1000");
    assert_eq!(messages[1]["payload"]["key"], "k");
    agent
        .answer_batch(&received, json!([handled(), handled()]))
        .await;
    assert_eq!(results(sending).await, ["handled", "handled"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_take_a_message_is_as_it_was() {
    let mut batch = Batch::new();
    for number in 0..limits::MAX_BATCH {
        batch.push(UserAction::new("", number.to_string())).unwrap();
    }
    let one_more = batch.push(UserAction::new("", "x"));
    assert!(matches!(one_more, Err(BatchError::TooMany)));
    assert_eq!(batch.len(), limits::MAX_BATCH);

    let mut batch = batch_of(["one"]);
    let long = UserAction::new("", "x".repeat(limits::MAX_BODY));
    assert!(matches!(batch.push(long), Err(BatchError::Encode(_))));
    let half = || UserAction::new("", "x".repeat(limits::MAX_BODY / 2));
    batch.push(half()).unwrap();
    assert!(matches!(batch.push(half()), Err(BatchError::NoRoom { .. })));
    let message = MessageFactory::create(&UserAction::new("", "two")).unwrap();
    batch.push_message(message.clone()).unwrap();
    assert!(matches!(
        batch.push_message(message),
        Err(BatchError::SameId)
    ));
    assert_eq!(batch.len(), 3);
    let (client, mut service) = client_of(batching_hello(100)).await;
    let sending = sending(&client, batch);
    let received = service.receive().await;
    let names: Vec<_> = received["payload"]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["payload"]["action"].as_str().unwrap().len())
        .collect();
    assert_eq!(names, [3, limits::MAX_BODY / 2, 3]);
    service
        .answer_batch(&received, json!([handled(), handled(), handled()]))
        .await;
    assert_eq!(results(sending).await, ["handled"; 3]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_batch_sends_nothing() {
    let (client, mut service) = client_of(batching_hello(100)).await;
    assert_eq!(client.send_batch(Batch::new()).await.unwrap().len(), 0);
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_a_batch_whose_connection_ends_is_told() {
    let (client, mut service) = client_of(batching_hello(100)).await;
    let sent = sending(&client, batch_of(["one", "two"]));
    let batch = service.receive().await;
    let first = batch["payload"]["messages"][0].clone();
    service
        .reply(&first, "STATUS_UPDATE", json!({"overallStatus": "ready"}))
        .await;
    settle().await;
    drop(service);
    assert_eq!(results(sent).await, ["replied STATUS_UPDATE", "lost"]);
    let closed = client.send_batch(batch_of(["three"])).await;
    assert!(matches!(closed, Err(SendError::Closed(_))), "{closed:?}");
}

/// Held back for want of credit, it certainly was not sent.
#[tokio::test(start_paused = true)]
async fn a_batch_that_never_left_was_not_sent() {
    let (client, service) = client_of(batching_hello(0)).await;
    let sent = sending(&client, batch_of(["one", "two"]));
    settle().await;
    assert_eq!(client.connection().queued_messages(), 2);
    drop(service);
    for result in within(sent).await.unwrap().unwrap() {
        assert!(matches!(result, Err(SendError::Closed(_))), "{result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_answered_in_time_is_unanswered_and_a_late_answer_means_nothing() {
    let watch = Watch::begin();
    let (client, mut service) = client_of(batching_hello(100)).await;
    let sent = sending(&client, batch_of(["one", "two"]));
    let batch = service.receive().await;
    let timed_out = tokio::time::timeout(LONG_PATIENCE, sent).await;
    let timed_out = timed_out.unwrap().unwrap().unwrap();
    assert_eq!(told(&timed_out), ["unanswered", "unanswered"]);
    service
        .answer_batch(&batch, json!([handled(), handled()]))
        .await;
    settle().await;
    assert_eq!(watch.counter("ipc_refusals_total", "unknown_batch"), 1);
    // The connection lives on.
    let next = sending(&client, batch_of(["three"]));
    let batch = service.receive_type("BATCH").await;
    service.answer_batch(&batch, json!([handled()])).await;
    assert_eq!(results(next).await, ["handled"]);
}

/// Dropped while it waits for room, nothing of it is ever sent; dropped later, all of it was.
#[tokio::test(start_paused = true)]
async fn a_dropped_batch_is_sent_whole_or_not_at_all() {
    let mut config = migration_ipc::ConnectionConfig::default();
    config.limits.outbound_messages = 1;
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let setup = client().connection_config(config);
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    service.reply(&hello, "HELLO", batching_hello(0)).await;
    let client = within(connecting).await.unwrap().unwrap();
    let first = sending(&client, batch_of(["one", "two"]));
    settle().await;
    let second = sending(&client, batch_of(["three", "four"]));
    settle().await;
    second.abort();
    first.abort();
    settle().await;
    service.send("CREDIT", json!({"messages": 100})).await;
    let batch = service.receive().await;
    assert_eq!(batch["payload"]["messages"].as_array().unwrap().len(), 2);
    assert_eq!(batch["payload"]["messages"][0]["payload"]["action"], "one");
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
}

/// Both ends are ours: everything that they can do together.
#[tokio::test(start_paused = true)]
async fn two_new_peers_understand_each_other_in_both_directions() {
    let stage = Stage::new();
    stage.gate.open();
    let (server, connector) = serve(stage.dispatcher()).await;
    let at_agent = MessageDispatcher::builder(())
        .handle(|update: ConfigurationUpdate| async move {
            match update.key.as_str() {
                "fail" => Err(migration_ipc::HandlerError::new("no")),
                _ => Ok(()),
            }
        })
        .build()
        .unwrap();
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = IpcClient::builder(at_agent)
        .announce(&AgentStarted::new("", "1.0.0", "1"))
        .connect_over(stream)
        .await
        .unwrap();
    let mut batch = batch_of(["one", "reply", "fail", "wait"]);
    batch
        .push(BackupProgress::new(
            "",
            Category::Files,
            Percent::of(1, 2),
            1,
            2,
        ))
        .unwrap();
    let results = within(client.send_batch(batch)).await.unwrap();
    assert_eq!(
        told(&results),
        [
            "handled",
            "replied CONFIGURATION_UPDATE",
            "rejected: failed",
            "handled",
            "handled"
        ]
    );
    let mut batch = Batch::new();
    for key in ["a", "fail", "b"] {
        batch.push(ConfigurationUpdate::new(key, 1.into())).unwrap();
    }
    let connection = only_connection(&server).await;
    let results = within(connection.send_batch(batch)).await.unwrap();
    assert_eq!(told(&results), ["handled", "rejected: no", "handled"]);
    assert_eq!(client.disconnect().await, DisconnectReason::ClosedLocally);
}
