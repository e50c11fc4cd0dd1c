//! Durable messages that were accepted together: on disk all or none, and on the wire together.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::storage::disk::Disk;
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::transport::Listener;
use migration_ipc::transport::memory::{MemoryListener, MemoryStream};
use migration_ipc::{
    Backoff, Execution, Fate, MessageDispatcher, Receipt, ReconnectingIpcClient,
    ReconnectingIpcClientBuilder, SendOptions, StreamName,
};
use migration_ipc_testkit::disk::SimDisk;
use migration_ipc_testkit::faults::{FaultKind, FaultPlan, Seed, SimHost, SimNetwork};
use serde_json::{Value, json};

use crate::common::*;
use crate::stage::*;

fn act(name: impl std::fmt::Display) -> UserAction {
    UserAction::new("", name.to_string())
}

fn durable() -> SendOptions {
    SendOptions::new().durable()
}

fn quick() -> Backoff {
    Backoff {
        base: Duration::from_millis(200),
        cap: Duration::from_secs(1),
        first: Duration::from_millis(100),
        ..Backoff::default()
    }
    .unlimited()
}

fn with_outbox(disk: &SimDisk, seed: u64) -> ReconnectingIpcClientBuilder {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    ReconnectingIpcClient::builder(MessageDispatcher::empty())
        .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
        .backoff(quick())
        .execution(Execution::Inline)
        .seed(seed)
        .outbox(disk, OutboxOptions::default())
}

/// A client, and the service that it is connected to and that can do everything.
async fn connected() -> (ReconnectingIpcClient, MemoryListener, WirePeer) {
    let (mut listener, connector) = listen();
    let client = with_outbox(&SimDisk::new(1), 1)
        .connector(move || {
            let connector = connector.clone();
            async move { connector.connect(user("1000")).await }
        })
        .start()
        .await
        .unwrap();
    let peer = accept(&mut listener).await;
    (client, listener, peer)
}

/// Takes the next connection up to where messages come.
async fn accept(listener: &mut MemoryListener) -> WirePeer {
    let mut peer = WirePeer::over_boxed(within(listener.accept()).await.unwrap());
    let hello = peer.receive().await;
    let mut answer = batching_hello(10_000);
    answer["capabilities"]
        .as_array_mut()
        .unwrap()
        .push("durable".into());
    answer["seen"] = json!(0);
    peer.reply(&hello, "HELLO", answer).await;
    let started = peer.receive().await;
    assert_eq!(started["type"], "AGENT_STARTED");
    peer.acknowledge(&started).await;
    peer
}

/// The numbers of the messages of a batch.
fn seqs(batch: &Value) -> Vec<u64> {
    assert_eq!(batch["type"], "BATCH", "{batch}");
    let messages = batch["payload"]["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| message["seq"].as_u64().unwrap())
        .collect()
}

fn label(receipt: &Receipt) -> &'static str {
    receipt.try_fate().map_or("pending", Fate::label)
}

fn failed(code: &str) -> Value {
    json!({"success": false, "error": "no", "code": code})
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_together_goes_out_together_and_each_receipt_has_its_outcome() {
    let (client, _listener, mut peer) = connected().await;
    let receipts = client.send_batch((0..4).map(act), durable()).await.unwrap();
    let batch = peer.receive().await;
    assert_eq!(seqs(&batch), [1, 2, 3, 4]);
    let second = batch["payload"]["messages"][1].clone();
    peer.reply(&second, "STATUS_UPDATE", json!({"overallStatus": "ready"}))
        .await;
    let outcomes = json!([
        {"success": true},
        {"success": true, "replied": true},
        failed("handler_failed"),
        {"success": true},
    ]);
    peer.answer_batch(&batch, outcomes).await;
    settle().await;
    let labels: Vec<_> = receipts.iter().map(label).collect();
    assert_eq!(labels, ["handled", "replied", "rejected", "handled"]);
    assert_eq!(client.outstanding(), 0);
}

/// Their senders did not say that they belong together, so none waits for another's answer.
#[tokio::test(start_paused = true)]
async fn what_was_accepted_alone_goes_out_alone() {
    let (client, _listener, mut peer) = connected().await;
    for number in 0..3 {
        client.send_durable(act(number)).await.unwrap();
    }
    for number in 1..=3 {
        let message = peer.receive().await;
        assert_eq!(
            (&message["type"], &message["seq"]),
            (&json!("USER_ACTION"), &json!(number))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_off_of_a_batch_goes_out_again_before_what_is_behind_it() {
    let (client, _listener, mut peer) = connected().await;
    let receipts = client.send_batch((0..4).map(act), durable()).await.unwrap();
    let batch = peer.receive().await;
    // The service handled the first, put the second off, and so the rest.
    let outcomes = json!([{"success": true}, failed("busy"), failed("busy"), failed("busy")]);
    peer.answer_batch(&batch, outcomes).await;
    settle().await;
    client.send_durable(act("behind")).await.unwrap();
    let other = durable().stream(StreamName::new("other").unwrap());
    client.send_with(act("other"), other).await.unwrap();
    let beside = peer.receive().await;
    assert_eq!(
        beside["payload"]["action"], "other",
        "another stream does not wait"
    );
    let again = peer.receive().await;
    assert_eq!(seqs(&again), [2, 3, 4]);
    assert_eq!(peer.receive().await["payload"]["action"], "behind");
    let handled = json!({"success": true});
    peer.answer_batch(&again, json!([handled, handled, handled]))
        .await;
    settle().await;
    assert!(receipts.iter().all(|receipt| label(receipt) == "handled"));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_lost_goes_out_again_with_the_next_connection() {
    let (client, mut listener, mut peer) = connected().await;
    let receipts = client.send_batch((0..3).map(act), durable()).await.unwrap();
    let batch = peer.receive().await;
    let first = batch["payload"]["messages"][0].clone();
    peer.reply(&first, "STATUS_UPDATE", json!({"overallStatus": "ready"}))
        .await;
    settle().await;
    drop(peer);
    let mut peer = accept(&mut listener).await;
    let again = peer.receive().await;
    assert_eq!(seqs(&again), [2, 3]);
    assert_eq!(
        again["payload"]["messages"][0]["id"], batch["payload"]["messages"][1]["id"],
        "the same message"
    );
    let handled = json!({"success": true});
    peer.answer_batch(&again, json!([handled, handled])).await;
    settle().await;
    let labels: Vec<_> = receipts.iter().map(label).collect();
    assert_eq!(labels, ["replied", "handled", "handled"]);
}

/// A service that reads less than others refuses a batch whose messages it would take alone.
#[tokio::test(start_paused = true)]
async fn what_a_service_refuses_together_it_gets_one_by_one() {
    let (client, _listener, mut peer) = connected().await;
    let receipts = client.send_batch((0..3).map(act), durable()).await.unwrap();
    let batch = peer.receive().await;
    let mut refusal = acknowledgment(&batch);
    refusal["success"] = json!(false);
    refusal["error"] = json!("Malformed message: more than 64 values");
    refusal["code"] = json!("malformed");
    peer.send("ACKNOWLEDGMENT", refusal).await;
    for (number, receipt) in (1..).zip(&receipts) {
        let message = peer.receive().await;
        assert_eq!(
            (&message["type"], &message["seq"]),
            (&json!("USER_ACTION"), &json!(number))
        );
        peer.acknowledge(&message).await;
        settle().await;
        assert_eq!(label(receipt), "handled");
    }
    // It is not asked again.
    client.send_batch((0..2).map(act), durable()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(peer.receive().await["type"], "USER_ACTION");
    }
}

#[tokio::test(start_paused = true)]
async fn large_messages_go_out_in_frames_that_let_others_in_between() {
    let (client, _listener, mut peer) = connected().await;
    let long = |number: usize| act("x".repeat(20_000 + number));
    client
        .send_batch((0..10).map(long), durable())
        .await
        .unwrap();
    let mut sent = Vec::new();
    while sent.len() < 10 {
        let batch = peer.receive().await;
        let numbers = match batch["type"].as_str().unwrap() {
            "BATCH" => seqs(&batch),
            _ => vec![batch["seq"].as_u64().unwrap()],
        };
        assert!(numbers.len() <= 3, "{numbers:?} in one frame");
        sent.extend(numbers);
    }
    assert_eq!(sent, (1..=10).collect::<Vec<_>>());
    client
        .send_batch((0..600).map(act), durable())
        .await
        .unwrap();
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 600 {
        sizes.push(seqs(&peer.receive().await).len());
    }
    assert!(sizes.iter().all(|size| *size <= 256), "{sizes:?}");
    assert!(sizes.len() < 10, "{sizes:?}");
}

// --- with a service of ours ------------------------------------------------------------------

fn connecting(
    agent: &SimHost,
) -> impl Fn() -> std::pin::Pin<
    Box<dyn Future<Output = io::Result<migration_ipc_testkit::faults::SimStream>> + Send>,
> + Send
+ Sync
+ 'static {
    let agent = agent.clone();
    move || {
        let agent = agent.clone();
        Box::pin(async move {
            agent
                .connect(Duration::from_secs(10))
                .await
                .map_err(io::Error::other)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn batches_take_effect_once_and_in_order_over_connections_that_are_cut() {
    let watch = Watch::begin();
    let mut cuts = 0;
    for seed in 0..20 {
        eprintln!("seed {seed}");
        let mut plan = FaultPlan::calm()
            .with(FaultKind::Cut, 0.9)
            .with(FaultKind::Split, 0.3)
            .with(FaultKind::Delay, 0.3);
        plan.cut_within = 16 * 1024;
        let network = SimNetwork::new(Seed::new(seed), plan);
        let service = network.host(administrator());
        let service = Recorder::on(service.listen(), SimDisk::new(1000 + seed)).await;
        let client = with_outbox(&SimDisk::new(seed), seed)
            .connector(connecting(&network.host(user("1000"))))
            .start()
            .await
            .unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut accepted = Vec::new();
        for batch in 0..30 {
            let names: Vec<_> = (0..random.usize(1..20))
                .map(|number| format!("{batch}.{number}"))
                .collect();
            client
                .send_batch(names.iter().map(act), durable())
                .await
                .unwrap();
            accepted.extend(names);
            if random.u8(..4) == 0 {
                tokio::time::sleep(Duration::from_millis(random.u64(..2000))).await;
            }
        }
        let emptied = tokio::time::timeout(LONG_PATIENCE, async {
            while client.outstanding() > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(emptied.await.is_ok(), "{} are left", client.outstanding());
        assert_eq!(service.log().await, accepted);
        cuts += network.counts().of(FaultKind::Cut);
        client.stop(Duration::ZERO).await;
    }
    assert!(cuts >= 20, "{cuts} cuts");
    let labels = [("type", "BATCH"), ("direction", "in")];
    let batches = watch.counter_with("ipc_messages_total", &labels);
    assert!(batches >= 20 * 20, "{batches} batches were received");
}

/// What `send_batch` accepted is there whole, whenever the sender's machine fails. One that fails while
/// it writes a batch leaves all of it or nothing.
#[tokio::test(start_paused = true)]
async fn a_batch_is_whole_or_absent_whenever_its_machine_fails() {
    let (mut none, mut accepted_ones, mut unanswered) = (0, 0, 0);
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let nobody = || async { Err::<MemoryStream, _>(io::ErrorKind::NotFound.into()) };
        let client = with_outbox(&disk, seed).connector(nobody).start();
        let client = client.await.unwrap();
        let sure = (0..3).map(|number| act(format!("sure {number}")));
        client.send_batch(sure, durable()).await.unwrap();
        if seed % 2 == 0 {
            disk.crash_at_sync(0);
        }
        let steps = usize::try_from(seed).unwrap() % 6;
        let accepted = tokio::select! {
            biased;
            sent = client.send_batch((0..50).map(act), durable()) => sent.is_ok(),
            () = async { for _ in 0..steps { tokio::task::yield_now().await } } => false,
        };
        disk.crash();
        drop(client);

        let disk = disk.restart();
        let (listener, connector) = listen();
        let service = Recorder::on(listener, SimDisk::new(1000 + seed)).await;
        let client = with_outbox(&disk, seed)
            .connector(move || {
                let connector = connector.clone();
                async move { connector.connect(user("1000")).await }
            })
            .start()
            .await
            .unwrap();
        eventually("everything is handled", || client.outstanding() == 0).await;
        let log = service.log().await;
        let (sure, other) = log.split_at(3);
        assert_eq!(sure, ["sure 0", "sure 1", "sure 2"]);
        let is_whole = !other.is_empty();
        if is_whole {
            let all: Vec<String> = (0..50).map(|number| number.to_string()).collect();
            assert_eq!(other, all, "seed {seed}");
        }
        assert!(!accepted || is_whole, "seed {seed}");
        none += usize::from(!is_whole);
        accepted_ones += usize::from(accepted);
        unanswered += usize::from(is_whole && !accepted);
    }
    let seen = [none, accepted_ones, unanswered];
    assert!(
        !seen.contains(&0),
        "absent, accepted, and there without an answer: {seen:?}"
    );
}
