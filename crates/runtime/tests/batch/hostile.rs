//! Peers that mean no good, or do not know better.

use std::sync::Arc;

use migration_ipc::messages::UserAction;
use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::transport::{BoxFuture, ResolveError, memory};
use migration_ipc::{
    AccountId, AccountResolver, Batch, DisconnectReason, Execution, IpcClient, OutboxId, SendError,
    StoreOwner, limits,
};
use migration_ipc_testkit::disk::SimDisk;
use serde_json::{Value, json};

use crate::common::*;
use crate::stage::*;

/// Everybody is who they say.
#[derive(Debug)]
struct Literal;

impl AccountResolver for Literal {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let account = AccountId::new(name);
        Box::pin(std::future::ready(Ok(Some(account))))
    }
}

fn action_of(id: &str, user: &str) -> Value {
    envelope(id, "USER_ACTION", json!({"userId": user, "action": user}))
}

/// A peer of a service that lets few things pass, and its service.
async fn resolving(stage: &Stage) -> (migration_ipc::IpcServer, WirePeer) {
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.account_resolver(Literal)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello_with_batches(1000).await;
    (server, peer)
}

/// Nothing of it is handled, whatever else is in it, and the connection lives on.
#[tokio::test(start_paused = true)]
async fn a_malformed_batch_is_refused_before_anything_of_it_is_handled() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 1000).await;
    let good = actions(["one", "two"]);
    let with = |bad: Value| {
        let mut messages = good.clone();
        messages.push(bad);
        json!({"messages": messages})
    };
    let mut of_other_members = envelope("o", "USER_ACTION", action("x"));
    of_other_members["ack"] = json!(false);
    let mut reply = envelope("o", "USER_ACTION", action("x"));
    reply["inReplyTo"] = json!("a1");
    let nested = envelope("o", "BATCH", json!({"messages": actions(["three"])}));
    let control = [
        "HELLO",
        "HEARTBEAT",
        "ACKNOWLEDGMENT",
        "CREDIT",
        "GOODBYE",
        "BATCH_OUTCOMES",
    ];
    let mut cases = vec![
        json!({}),
        json!({"messages": []}),
        json!({"messages": {"a": good[0]}}),
        json!({"messages": actions(vec!["x"; limits::MAX_BATCH + 1])}),
        with(json!("no envelope")),
        with(json!({"id": "o", "type": "USER_ACTION"})),
        with(nested),
        with(of_other_members),
        with(reply),
        with(good[0].clone()),
    ];
    cases.extend(control.map(|name| with(envelope("o", name, json!({})))));
    for case in cases {
        let batch = peer.send("BATCH", case.clone()).await;
        let refusal = peer.receive_acknowledgment().await;
        assert_eq!(refusal["originalMessageId"], batch, "{case}");
        assert_eq!(refusal["code"], "malformed", "{case}");
        assert!(
            refusal["error"]
                .as_str()
                .unwrap()
                .starts_with("Malformed message: ")
        );
    }
    // An id of the batch's own.
    let (id, _) = peer.frame("BATCH", json!({}));
    let own = json!({"messages": [envelope(&id, "USER_ACTION", action("x"))]});
    peer.write(&frame(&envelope(&id, "BATCH", own).to_string()))
        .await;
    assert_eq!(peer.receive_acknowledgment().await["code"], "malformed");
    assert!(stage.take().is_empty());
    let batch = peer.send_batch(&good).await;
    assert_eq!(peer.outcomes_of(&batch).await, ["handled", "handled"]);
}

/// A bomb of values is refused by its count, within a message as around them.
#[tokio::test(start_paused = true)]
async fn a_batch_of_too_many_values_is_refused_unread() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 1000).await;
    let values = vec![0; limits::MAX_JSON_VALUES / 2];
    let bombs: Vec<_> = ["b1", "b2", "b3"]
        .iter()
        .map(|id| {
            envelope(
                id,
                "USER_ACTION",
                json!({"action": "x", "details": {"a": values}}),
            )
        })
        .collect();
    let mut deep = json!(0);
    for _ in 0..=limits::MAX_JSON_DEPTH {
        deep = json!([deep]);
    }
    let deep = vec![envelope(
        "d",
        "USER_ACTION",
        json!({"action": "x", "details": {"a": deep}}),
    )];
    for messages in [bombs, deep, vec![json!(0); 60_000]] {
        let batch = peer.send_batch(&messages).await;
        let refusal = peer.receive_acknowledgment().await;
        assert_eq!(refusal["originalMessageId"], batch);
        assert_eq!(refusal["code"], "malformed");
    }
    assert!(stage.take().is_empty());
}

/// They count as they would have counted alone.
#[tokio::test(start_paused = true)]
async fn messages_of_a_batch_that_name_another_account_are_refused_and_counted() {
    let stage = Stage::new();
    let (server, mut peer) = resolving(&stage).await;
    let mut events = server.events();
    let of = |users: &[&str]| -> Vec<Value> {
        let numbered = users.iter().enumerate();
        numbered
            .map(|(number, user)| action_of(&format!("f{number}"), user))
            .collect()
    };
    let batch = peer
        .send_batch(&of(&["1000", "1001", "1000", "1002", "1003"]))
        .await;
    assert_eq!(
        peer.outcomes_of(&batch).await,
        [
            "handled",
            "identity_mismatch",
            "handled",
            "identity_mismatch",
            "identity_mismatch"
        ]
    );
    assert_eq!(stage.take(), ["1000", "1000"]);
    let last = peer.send_batch(&of(&["1001", "1000", "1001"])).await;
    let outcomes = peer.outcomes_of(&last).await;
    assert_eq!(outcomes[0], "identity_mismatch");
    peer.receive_to_end().await;
    drop(peer);
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::IdentityMismatch);
}

/// Texts that quote a peer are cut until the outcomes fit a frame.
#[tokio::test(start_paused = true)]
async fn outcomes_with_long_texts_fit_a_frame() {
    let stage = Stage::new();
    let (_server, mut peer) = served(&stage, 1000).await;
    let batch = peer
        .send_batch(&actions(vec!["fail at length"; limits::MAX_BATCH]))
        .await;
    let answer = peer.receive_type("BATCH_OUTCOMES").await;
    assert_eq!(answer["inReplyTo"], batch);
    let outcomes = answer["payload"]["outcomes"].as_array().unwrap();
    assert_eq!(outcomes.len(), limits::MAX_BATCH);
    for outcome in outcomes {
        let length = outcome["error"].as_str().unwrap().len();
        assert!((400..5000).contains(&length), "{length}");
    }
}

/// What an account can make a service keep of outcomes stops it from being read.
#[tokio::test(start_paused = true)]
async fn texts_that_are_kept_for_open_batches_count_as_bytes_of_the_inbox() {
    let stage = Stage::new();
    let mut config = migration_ipc::ConnectionConfig::default();
    config.limits.inbox_bytes = 128 * 1024;
    let (_server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello_with_batches(1000).await;
    let mut messages = vec![envelope("d", "DELAY_REQUEST", delay(1))];
    let failing = actions(vec!["fail at length"; 60]);
    messages.extend(failing);
    let mut read = 0;
    for number in 0..8 {
        messages[0]["payload"]["delaysUsed"] = json!(number);
        peer.send_batch(&messages).await;
        settle().await;
        let entered = stage.take();
        read += entered
            .iter()
            .filter(|name| name.starts_with("delay"))
            .count();
    }
    // Each keeps some 126 KiB for the one that is not done; a peer with credit may fill it twice.
    assert_eq!(read, 3, "the rest waits to be read");
    stage.gate.open();
    for _ in 0..8 {
        peer.receive_type("BATCH_OUTCOMES").await;
    }
}

/// A client, its service, and a batch of two that was sent.
async fn sent_batch() -> (
    IpcClient,
    WirePeer,
    Value,
    tokio::task::JoinHandle<Result<Vec<Result<migration_ipc::Answer, SendError>>, SendError>>,
) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let connecting = tokio::spawn(client().connect_over(at_client));
    let hello = service.receive().await;
    service.reply(&hello, "HELLO", batching_hello(100)).await;
    let client = within(connecting).await.unwrap().unwrap();
    let mut batch = Batch::new();
    for name in ["one", "two"] {
        batch.push(UserAction::new("", name)).unwrap();
    }
    let connection = client.connection().clone();
    let sent = tokio::spawn(async move { connection.send_batch(batch).await });
    let received = service.receive().await;
    (client, service, received, sent)
}

#[tokio::test(start_paused = true)]
async fn outcomes_that_do_not_fit_their_batch_close_the_connection() {
    let handled = json!({"success": true});
    for forged in [
        json!({"outcomes": []}),
        json!({"outcomes": [handled]}),
        json!({"outcomes": [handled, handled, handled]}),
        json!({"outcomes": [handled, {"success": "yes"}]}),
        json!({"outcomes": 2}),
        json!({}),
    ] {
        let (client, mut service, batch, sent) = sent_batch().await;
        service
            .reply(&batch, "BATCH_OUTCOMES", forged.clone())
            .await;
        let reason = within(client.closed()).await;
        assert!(
            matches!(reason, DisconnectReason::Violation(_)),
            "{forged}: {reason:?}"
        );
        for result in within(sent).await.unwrap().unwrap() {
            assert!(matches!(result, Err(SendError::Lost(_))), "{result:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn outcomes_of_a_batch_that_was_never_sent_mean_nothing() {
    let watch = Watch::begin();
    let (client, mut service, batch, sent) = sent_batch().await;
    let two = json!([{"success": true}, {"success": true}]);
    // Of nothing, of a batch of somebody else, and of a message that is no batch.
    service
        .send("BATCH_OUTCOMES", json!({"outcomes": two}))
        .await;
    service
        .answer_batch(&json!({"id": "another"}), two.clone())
        .await;
    service
        .answer_batch(&batch["payload"]["messages"][0].clone(), two.clone())
        .await;
    settle().await;
    assert_eq!(watch.counter("ipc_refusals_total", "unknown_batch"), 3);
    // A reply to a batch as such is for nobody either.
    service
        .reply(&batch, "STATUS_UPDATE", json!({"overallStatus": "ready"}))
        .await;
    service.answer_batch(&batch, two.clone()).await;
    service.answer_batch(&batch, two).await;
    for result in within(sent).await.unwrap().unwrap() {
        assert!(result.is_ok(), "{result:?}");
    }
    settle().await;
    assert_eq!(watch.counter("ipc_refusals_total", "unknown_batch"), 4);
    assert!(matches!(
        client.connection().current_state(),
        migration_ipc::ConnectionState::Identified
    ));
}

/// What comes again in a batch is not handled again, and is told the same.
#[tokio::test(start_paused = true)]
async fn numbered_messages_of_a_batch_are_known_to_the_ledger() {
    let stage = Stage::new();
    let disk = Arc::new(SimDisk::new(1));
    let fresh = OutboxId::from_bytes([9; 16]);
    let (store, _) = Store::open(disk, "store", StoreOptions::default(), fresh).unwrap();
    let owner = StoreOwner::start(store, Execution::Inline);
    let (_server, connector) =
        serve_with(stage.dispatcher(), |server| server.store(owner.handle())).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut hello = batching_hello(100);
    hello["capabilities"]
        .as_array_mut()
        .unwrap()
        .push("durable".into());
    hello["outbox"] = json!("00112233445566778899aabbccddeeff");
    peer.send("HELLO", hello).await;
    peer.receive().await;
    let numbered = |id: &str, seq: Value, name: &str| {
        let mut message = envelope(id, "USER_ACTION", action(name));
        message["seq"] = seq;
        message
    };
    let messages = [
        numbered("s1", json!(1), "one"),
        numbered("s2", json!(2), "fail"),
        numbered("s0", json!(0), "zero"),
        numbered("s3", json!(3), "reply"),
    ];
    let expected = ["handled", "handler_failed", "malformed", "replied"];
    for _ in 0..2 {
        let batch = peer.send_batch(&messages).await;
        assert_eq!(peer.outcomes_of(&batch).await, expected);
    }
    assert_eq!(stage.take(), ["one", "fail", "reply"]);
}
