//! What batches cost.

use std::time::Duration;

use migration_ipc::messages::{ConfigurationUpdate, UserAction};
use migration_ipc::transport::memory;
use migration_ipc::{Batch, IpcClient, SendError, limits};
use serde_json::{Value, json};

use crate::common::*;
use crate::stage::*;

/// A client whose service grants this much.
async fn client_with_credit(credit: u32) -> (IpcClient, WirePeer) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let connecting = tokio::spawn(client().connect_over(at_client));
    let hello = service.receive().await;
    service.reply(&hello, "HELLO", batching_hello(credit)).await;
    (within(connecting).await.unwrap().unwrap(), service)
}

fn send(client: &IpcClient, messages: usize) {
    let mut batch = Batch::new();
    for number in 0..messages {
        batch.push(UserAction::new("", number.to_string())).unwrap();
    }
    let connection = client.connection().clone();
    tokio::spawn(async move { connection.send_batch(batch).await });
}

async fn receive_batch(service: &mut WirePeer, messages: usize) -> Value {
    let batch = service.receive().await;
    assert_eq!(
        batch["payload"]["messages"].as_array().map(Vec::len),
        Some(messages)
    );
    batch
}

/// It goes on the last of the credit, and what it used beyond that is made up for first.
#[tokio::test(start_paused = true)]
async fn a_batch_larger_than_the_credit_left_goes_and_is_made_up_for() {
    let (client, mut service) = client_with_credit(3).await;
    send(&client, 2);
    receive_batch(&mut service, 2).await;
    send(&client, 6);
    receive_batch(&mut service, 6).await;
    settle().await;
    client.send(UserAction::new("", "single")).await.unwrap();
    // Five are owed.
    service.send("CREDIT", json!({"messages": 5})).await;
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
    service.send("CREDIT", json!({"messages": 1})).await;
    assert_eq!(service.receive().await["payload"]["action"], "single");
    send(&client, 1);
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
    service.send("CREDIT", json!({"messages": 1})).await;
    receive_batch(&mut service, 1).await;
}

#[tokio::test(start_paused = true)]
async fn credit_comes_back_for_each_message_of_a_batch() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 4).await;
    // More than the inbox: neither side waits for what the other never gives.
    let batch = peer.send_batch(&actions(["x"; 10])).await;
    let mut granted = 0;
    loop {
        let message = peer.receive().await;
        match message["type"].as_str().unwrap() {
            "CREDIT" => granted += message["payload"]["messages"].as_u64().unwrap(),
            "BATCH_OUTCOMES" => {
                assert_eq!(message["inReplyTo"], batch);
                break;
            }
            other => panic!("{other}"),
        }
    }
    while granted < 10 {
        granted += peer.receive_type("CREDIT").await["payload"]["messages"]
            .as_u64()
            .unwrap();
    }
    assert_eq!(granted, 10);
}

/// Nothing of it was handled, so it has cost nothing.
#[tokio::test(start_paused = true)]
async fn a_batch_that_is_refused_as_a_whole_has_used_no_credit() {
    let (client, mut service) = client_with_credit(3).await;
    let mut batch = Batch::new();
    for name in ["one", "two", "three"] {
        batch.push(UserAction::new("", name)).unwrap();
    }
    let connection = client.connection().clone();
    let sent = tokio::spawn(async move { connection.send_batch(batch).await });
    let received = receive_batch(&mut service, 3).await;
    let mut refusal = acknowledgment(&received);
    refusal["success"] = json!(false);
    refusal["code"] = json!("malformed");
    service.send("ACKNOWLEDGMENT", refusal).await;
    for result in within(sent).await.unwrap().unwrap() {
        match result {
            Err(error @ SendError::BatchRejected(_)) => assert!(error.is_certainly_unhandled()),
            other => panic!("{other:?}"),
        }
    }
    send(&client, 3);
    receive_batch(&mut service, 3).await;
    send(&client, 1);
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
}

/// A handler that asks its own peer gets the answer, however many of its peer's messages lie before
/// that in the inbox.
#[tokio::test(start_paused = true)]
async fn a_handler_that_awaits_an_answer_gets_it_behind_a_batch_that_overfills_the_inbox() {
    use migration_ipc::{HandlerError, MessageDispatcher, Peer};

    async fn on_action(action: UserAction, peer: Peer) -> Result<(), HandlerError> {
        if action.action == "ask" {
            let update = ConfigurationUpdate::new("k", 1.into());
            peer.connection().send_acknowledged(update).await?;
        }
        Ok(())
    }

    let dispatcher = MessageDispatcher::builder(())
        .handle(on_action)
        .build()
        .unwrap();
    let mut config = migration_ipc::ConnectionConfig::default();
    config.limits.inbox_messages = 4;
    let (_server, connector) =
        serve_with(dispatcher, |server| server.connection_config(config)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let answer = peer.hello_with_batches(100).await;
    assert_eq!(answer["payload"]["credit"], 4);
    // Three singles and, on the last of the credit, the largest batch.
    for name in ["ask", "x", "x"] {
        peer.send("USER_ACTION", action(name)).await;
    }
    let batch = peer
        .send_batch(&actions(vec!["x"; limits::MAX_BATCH]))
        .await;
    let asked = peer.receive_type("CONFIGURATION_UPDATE").await;
    peer.acknowledge(&asked).await;
    let start = tokio::time::Instant::now();
    assert_eq!(
        peer.outcomes_of(&batch).await,
        vec!["handled"; limits::MAX_BATCH]
    );
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "it was not timed out"
    );
}

/// What an account may send each second counts messages, however they are framed.
#[tokio::test(start_paused = true)]
async fn the_messages_of_a_batch_count_towards_the_rate_of_their_account() {
    use migration_ipc::{Rate, ServerLimits};

    let stage = Stage::new();
    let mut limits = ServerLimits::default();
    limits.account.messages = Rate::PerSecond(10);
    limits.account.burst = Duration::from_secs(1);
    let (_server, connector) = serve_with(stage.dispatcher(), |server| server.limits(limits)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello_with_batches(100).await;
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        let batch = peer.send_batch(&actions(["x"; 20])).await;
        assert_eq!(peer.outcomes_of(&batch).await, ["handled"; 20]);
    }
    let took = start.elapsed();
    // Sixty and a hello, of which ten may come at once; the last batch is read before it is paid for.
    assert!((2_000..6_000).contains(&took.as_millis()), "{took:?}");
}
