//! What a peer may try with requests, and what comes of it: an answer, or the end of its own
//! connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use migration_ipc::{ConnectionConfig, ConnectionState, DisconnectReason, IpcClient, ServerLimits};
use serde_json::{Value, json};

use crate::common::*;
use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn a_reply_to_a_request_never_made_is_refused_and_resolves_nothing() {
    for form in FORMS {
        let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
        let asking = tokio::spawn(client.request(ask("x")).into_future());
        let request = service.receive_type("ASK").await;
        let told = json!({"text": "forged"});
        let forged = written(form, "f", "TOLD", "", &told, Some(&json!("never-made")));
        service.write(&forged).await;
        let acknowledgment = service.receive_acknowledgment().await;
        assert_eq!(acknowledgment["originalMessageId"], "f");
        assert_eq!(acknowledgment["code"], "no_handler");
        service
            .send("ACKNOWLEDGMENT", acknowledgment_of("never-made"))
            .await;
        service.reply(&request, "TOLD", json!({"text": "y"})).await;
        assert_eq!(within(asking).await.unwrap().unwrap().text, "y");
    }
}

fn acknowledgment_of(id: &str) -> Value {
    acknowledgment(&json!({ "id": id }))
}

#[tokio::test(start_paused = true)]
async fn a_second_reply_resolves_nothing() {
    for form in FORMS {
        let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
        let asking = tokio::spawn(client.request(ask("x")).into_future());
        let request = service.receive_type("ASK").await;
        for (id, text) in [("r1", "first"), ("r2", "second")] {
            let told = json!({ "text": text });
            let reply = written(form, id, "TOLD", "", &told, Some(&request["id"]));
            service.write(&reply).await;
        }
        assert_eq!(within(asking).await.unwrap().unwrap().text, "first");
        let acknowledgment = service.receive_acknowledgment().await;
        assert_eq!(acknowledgment["originalMessageId"], "r2");
        assert_eq!(acknowledgment["code"], "no_handler");
    }
}

/// Sends these values of `item` in answer to a request that grants two.
async fn end_of_items(form: Form, granted: bool, items: &[&str]) -> (IpcClient, DisconnectReason) {
    let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
    let connection = client.connection().clone();
    let asking = tokio::spawn(async move {
        if granted {
            let pending = connection.request_stream(Count { to: 9 }).window(2);
            // Nothing is read, so nothing more is granted.
            let stream = pending.await.unwrap();
            connection
                .state()
                .wait_for(|state| matches!(state, ConnectionState::Gone(_)))
                .await
                .unwrap();
            assert!(stream.finish().await.is_err());
        } else {
            assert!(connection.request(ask("x")).await.is_err());
        }
    });
    let request = service.receive().await;
    for item in items {
        let members = format!(",\"item\":{item}");
        let payload = json!({"number": 1});
        let item = written(
            form,
            "i",
            "NUMBER",
            &members,
            &payload,
            Some(&request["id"]),
        );
        // The connection may be gone already.
        let _gone = service.try_write(&item).await;
    }
    let reason = within(client.closed()).await;
    within(asking).await.unwrap();
    (client, reason)
}

#[tokio::test(start_paused = true)]
async fn items_that_break_the_rules_close_the_connection() {
    for form in FORMS {
        for (granted, items, rule) in [
            (
                true,
                &["1", "2", "3"][..],
                "an item beyond what was granted",
            ),
            (true, &["2"], "an item out of order"),
            (true, &["1", "1"], "an item out of order"),
            (true, &["1", "18446744073709551615"], "an item out of order"),
            (true, &["0"], "`item` is no whole number from 1 on"),
            (true, &["-1"], "`item` is no whole number from 1 on"),
            (true, &["1.5"], "`item` is no whole number from 1 on"),
            (true, &["\"1\""], "`item` is no whole number from 1 on"),
            (
                true,
                &["18446744073709551616"],
                "`item` is no whole number from 1 on",
            ),
            (false, &["1"], "an item that nobody asked for"),
        ] {
            let (_client, reason) = end_of_items(form, granted, items).await;
            assert_eq!(
                reason,
                DisconnectReason::Violation(rule.into()),
                "{items:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn items_that_nobody_waits_for_are_counted_and_dropped() {
    for form in FORMS {
        let watch = Watch::begin();
        let stage = Stage::new();
        let (client, mut service) = client_of_peer(&stage, 16).await;
        let stream = client.request_stream(Count { to: 9 }).await.unwrap();
        let given_up = service.receive_type("COUNT").await;
        drop(stream);
        service.receive_type("CANCEL").await;
        let finished = client.request_stream(Count { to: 9 }).await.unwrap();
        let request = service.receive_type("COUNT").await;
        service.reply(&request, "SUM", json!({"sum": 0})).await;
        assert_eq!(finished.finish().await.unwrap().sum, 0);
        for original in [&given_up["id"], &request["id"], &json!("never-made")] {
            for number in ["1", "1", "77"] {
                let members = format!(",\"item\":{number}");
                // A type that has a handler here.
                let payload = json!({"what": "x"});
                let item = written(form, "i", "ASK", &members, &payload, Some(original));
                service.write(&item).await;
            }
        }
        settle().await;
        assert_eq!(watch.counter_with("ipc_late_items_total", &[]), 9);
        assert_eq!(stage.take(), [""; 0]);
        assert!(service.is_silent_for(Duration::from_secs(5)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_or_items_in_another_form_are_answered_as_malformed() {
    let stage = Stage::new();
    let (_server, mut peer) = served_peer(&stage).await;
    for form in FORMS {
        for member in ["deadline", "items", "item"] {
            for value in [
                "0",
                "-1",
                "-0",
                "1.5",
                "1e3",
                "\"5\"",
                "true",
                "[]",
                "{}",
                "18446744073709551616",
                "99999999999999999999999999",
            ] {
                let members = format!(",\"{member}\":{value}");
                let payload = json!({"what": "x"});
                peer.write(&written(form, "q", "ASK", &members, &payload, None))
                    .await;
                let acknowledgment = peer.receive_acknowledgment().await;
                assert_eq!(acknowledgment["code"], "malformed", "{members}");
                assert_eq!(acknowledgment["originalMessageId"], "q");
            }
        }
        for members in [
            ",\"deadline\":31536000001",
            ",\"items\":1025",
            ",\"item\":1",
        ] {
            let payload = json!({"what": "x"});
            peer.write(&written(form, "q", "ASK", members, &payload, None))
                .await;
            let acknowledgment = peer.receive_acknowledgment().await;
            assert_eq!(acknowledgment["code"], "malformed", "{members}");
        }
        assert_eq!(stage.take(), [""; 0]);
        for members in [
            ",\"deadline\":31536000000",
            ",\"items\":1024",
            ",\"deadline\":null",
        ] {
            let payload = json!({"what": "x"});
            peer.write(&written(form, "q", "ASK", members, &payload, None))
                .await;
            assert_eq!(peer.receive().await["type"], "TOLD", "{members}");
        }
        stage.take();
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_at_work_cannot_be_used_again() {
    for form in FORMS {
        let stage = Stage::new();
        let (_server, mut peer) = served_peer(&stage).await;
        for _ in 0..2 {
            let payload = json!({"what": "gate"});
            peer.write(&written(
                form,
                "q",
                "ASK",
                ",\"deadline\":60000",
                &payload,
                None,
            ))
            .await;
        }
        settle().await;
        stage.gate.open();
        let answers = [peer.receive().await, peer.receive().await];
        assert_eq!(answers[0]["type"], "TOLD");
        assert_eq!(answers[1]["payload"]["code"], "malformed");
        assert_eq!(stage.take(), ["begin gate", "end gate"]);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_cancels_the_requests_of_somebody_else() {
    let stage = Stage::new();
    let (_server, connector) = serve(stage.dispatcher()).await;
    let mut peers = Vec::new();
    for name in ["1000", "1001"] {
        let mut peer = WirePeer::connect(&connector, user(name)).await;
        peer.send("HELLO", asking_hello(1024)).await;
        peer.receive().await;
        peers.push(peer);
    }
    let heed = json!({"what": "heed"});
    let request = written(Form::Usual, "q", "ASK", ",\"deadline\":60000", &heed, None);
    peers[0].write(&request).await;
    settle().await;
    let cancel = json!({"requestId": "q"});
    peers[1].send("CANCEL", cancel.clone()).await;
    settle().await;
    assert_eq!(stage.take(), ["begin heed"]);
    peers[0].send("CANCEL", cancel).await;
    settle().await;
    assert_eq!(stage.take(), ["cancelled heed", "end heed"]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_cancellations_and_grants_changes_nothing() {
    let watch = Watch::begin();
    let stage = Stage::new();
    let (_server, mut peer) = served_peer(&stage).await;
    let count = json!({"to": 3});
    let members = ",\"deadline\":60000,\"items\":1";
    peer.write(&written(Form::Usual, "q", "COUNT", members, &count, None))
        .await;
    let item = peer.receive().await;
    assert_eq!(item["item"], 1);
    for round in 0..3000 {
        for (message_type, payload) in [
            ("CANCEL", json!({"requestId": format!("unknown-{round}")})),
            ("CANCEL", json!({"request": "q"})),
            ("ITEMS", json!({"requestId": "unknown", "items": 1024})),
            ("ITEMS", json!({"requestId": "q", "items": 0})),
            ("ITEMS", json!({"requestId": "q", "items": 1025})),
            ("ITEMS", json!({"requestId": "q", "items": -1})),
        ] {
            peer.send(message_type, payload).await;
        }
    }
    assert!(peer.is_silent_for(Duration::from_secs(5)).await);
    assert_eq!(watch.counter("ipc_refusals_total", "bad_cancel"), 3000);
    assert_eq!(watch.counter("ipc_refusals_total", "bad_items"), 9000);
    for _ in 0..3000 {
        let grant = json!({"requestId": "q", "items": 1024});
        peer.send("ITEMS", grant).await;
    }
    for number in 2..=3 {
        assert_eq!(peer.receive().await["item"], number);
    }
    assert_eq!(peer.receive().await["type"], "SUM");
}

/// Whoever grants a great deal and reads nothing gets what its lane holds, and no more is made.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_held_to_the_bound_of_its_lane() {
    let stage = Stage::new();
    let mut config = ConnectionConfig::default();
    config.limits.outbound_bytes = 16 * 1024;
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut events = server.connections().events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", asking_hello(1024)).await;
    let count = json!({"to": 1_000_000});
    let members = ",\"deadline\":600000,\"items\":1024";
    peer.write(&written(Form::Usual, "q", "COUNT", members, &count, None))
        .await;
    for _ in 0..1000 {
        let grant = json!({"requestId": "q", "items": 1024});
        peer.send("ITEMS", grant).await;
    }
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::SlowReader);
    settle().await;
    let said = stage.take();
    let stopped = said
        .iter()
        .find_map(|said| said.strip_prefix("stopped at "));
    let number: u64 = stopped.unwrap().split_once(':').unwrap().0.parse().unwrap();
    // Each takes some 160 bytes: the lane, one write, and what the stream in memory holds.
    assert!(number < (16 + 64 + 64) * 1024 / 140, "{number}");
}

/// The final answers of streams count as answers, which nobody makes without end.
#[tokio::test(start_paused = true)]
async fn who_asks_for_streams_and_never_reads_is_held_to_a_bound() {
    let stage = Stage::new();
    let mut config = ConnectionConfig::default();
    config.limits.outbound_bytes = 16 * 1024;
    let (_server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", asking_hello(1024)).await;
    let flood = async {
        for number in 0..20_000 {
            let count = json!({"to": 0});
            let members = ",\"deadline\":600000,\"items\":1";
            let id = format!("q{number}");
            peer.write(&written(Form::Usual, &id, "COUNT", members, &count, None))
                .await;
        }
    };
    let stuck = tokio::time::timeout(Duration::from_secs(10), flood).await;
    assert!(stuck.is_err(), "everything was taken");
    let begun = stage
        .take()
        .iter()
        .filter(|said| *said == "counted")
        .count();
    assert!(begun < (16 + 64 + 64) * 1024 / 100, "{begun}");
}

/// A service asks, and does not read what it gets. What its agent sends is charged to that agent's
/// account.
#[tokio::test(start_paused = true)]
async fn items_that_are_not_read_count_as_the_memory_of_their_senders_account() {
    const ITEM: usize = 32 * 1024;
    let (server, connector) = serve_with(Stage::new().dispatcher(), |server| {
        let mut limits = ServerLimits::default();
        limits.account.memory = 8 * ITEM;
        server.limits(limits)
    })
    .await;
    let mut events = server.connections().events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", asking_hello(1024)).await;
    peer.receive().await;
    let connection = only_connection(&server).await;
    let pending = connection.request_stream(Count { to: 9 }).window(1024);
    let mut stream = pending.within(Duration::from_secs(600)).await.unwrap();
    let request = peer.receive_type("COUNT").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let flood = tokio::spawn(async move {
        for number in 1.. {
            let members = format!(",\"item\":{number}");
            let item = json!({"number": number, "filler": "x".repeat(ITEM)});
            let id = Some(&request["id"]);
            let item = written(Form::Usual, "i", "NUMBER", &members, &item, id);
            if peer.try_write(&item).await.is_err() {
                return;
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    settle().await;
    let stuck = sent.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(sent.load(Ordering::Relaxed), stuck);
    assert!((8..24).contains(&stuck), "{stuck}");
    // Who reads makes room.
    for _ in 0..8 {
        stream.next().await.unwrap().unwrap();
    }
    settle().await;
    assert!(sent.load(Ordering::Relaxed) > stuck);
    // Who never does is not waited for.
    let end = next_end(&mut events).await;
    assert_eq!(end.reason, DisconnectReason::OverMemory);
    within(flood).await.unwrap();
}
