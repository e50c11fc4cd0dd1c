//! Connecting, and connecting again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use migration_ipc::messages::AgentStarted;
use migration_ipc::{
    Attempts, Backoff, ConnectionTrouble, DisconnectReason, Fate, IpcConnection, MessageDispatcher,
    ReconnectState, ReconnectingIpcClient, SendError, SendOptions, ServiceKind,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::*;

/// A client with the usual number of tries.
async fn client_that_gives_up(site: &Site) -> ReconnectingIpcClient {
    let client = site.client().backoff(Backoff::default());
    client.start().await.unwrap()
}

/// Waits for a connection, beside the test.
fn waiting(client: &ReconnectingIpcClient) -> JoinHandle<Result<IpcConnection, SendError>> {
    let client = client.clone();
    tokio::spawn(async move { client.connected().await })
}

fn connected(state: &ReconnectState) -> bool {
    state.is_connected()
}

#[tokio::test(start_paused = true)]
async fn each_connection_begins_with_hello_and_a_fresh_announcement() {
    let site = Site::default();
    let count = Arc::new(AtomicU64::new(0));
    let client = site
        .client()
        .announce_with(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            AgentStarted::new("", "1.0.0", number.to_string().as_str())
        })
        .start()
        .await
        .unwrap();
    client.send(act("queued")).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..3 {
        let mut listener = site.open();
        let stream = listener_stream(&mut listener).await;
        let mut peer = WirePeer::over_boxed(stream);
        let hello = peer.receive().await;
        assert_eq!(hello["type"], "HELLO");
        peer.answer_hello(&hello, 100).await;
        let started = peer.receive().await;
        assert_eq!(started["type"], "AGENT_STARTED");
        assert_eq!(started["payload"]["sessionId"], number.to_string());
        ids.push(started["id"].clone());
        let state = until(&client, connected).await;
        assert!(matches!(
            state,
            ReconnectState::Connected {
                service: ServiceKind::New(_),
                ..
            }
        ));
        if number == 0 {
            let action = peer.receive_type("USER_ACTION").await;
            assert_eq!(action["payload"]["action"], "queued");
        }
        drop(peer);
        until(&client, |state| !state.is_connected()).await;
    }
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

async fn listener_stream(
    listener: &mut migration_ipc::transport::memory::MemoryListener,
) -> Box<dyn migration_ipc::transport::Stream> {
    use migration_ipc::transport::Listener;
    tokio::time::timeout(LONG_PATIENCE, listener.accept())
        .await
        .expect("a connection")
        .unwrap()
}

/// Each connection has credit for the announcement and ten messages more.
#[tokio::test(start_paused = true)]
async fn what_is_queued_goes_out_in_order_over_many_connections() {
    let site = Site::default();
    let client = site.client().start().await.unwrap();
    let mut receipts = Vec::new();
    for number in 0..300 {
        receipts.push(client.send(act(number)).await.unwrap());
    }
    let mut arrived = Vec::new();
    while arrived.len() < 300 {
        let mut listener = site.open();
        let mut peer = WirePeer::over_boxed(listener_stream(&mut listener).await);
        let hello = peer.receive().await;
        peer.answer_hello(&hello, 11).await;
        for message in actions(&mut peer, 10).await {
            peer.acknowledge(&message).await;
            arrived.push(message);
        }
        assert!(fate(&receipts[arrived.len() - 1]).await.is_handled());
        drop((peer, listener));
        until(&client, |state| !state.is_connected()).await;
    }
    let expected: Vec<_> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(names(&arrived), expected);
    assert!(receipts.iter().all(|receipt| label(receipt) == "handled"));
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_and_not_answered_is_unknown_and_not_sent_again() {
    let (site, client, listener, mut peer) = connected_client(Kind::Plain).await;
    let receipt = client.send(act("once")).await.unwrap();
    actions(&mut peer, 1).await;
    drop((peer, listener));
    assert!(matches!(
        fate(&receipt).await,
        Fate::Unknown(SendError::Lost(_))
    ));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
}

/// What the peer never had credit for was certainly not sent.
#[tokio::test(start_paused = true)]
async fn what_was_certainly_not_sent_goes_out_with_the_next_connection() {
    let site = Site::default();
    let client = site.client().start().await.unwrap();
    let mut listener = site.open();
    let mut peer = WirePeer::over_boxed(listener_stream(&mut listener).await);
    let hello = peer.receive().await;
    peer.answer_hello(&hello, 3).await;
    peer.receive_type("AGENT_STARTED").await;
    let mut receipts = Vec::new();
    for number in 0..6 {
        receipts.push(client.send(act(number)).await.unwrap());
    }
    // The announcement used one of three.
    assert_eq!(names(&actions(&mut peer, 2).await), ["0", "1"]);
    drop((peer, listener));
    until(&client, |state| !state.is_connected()).await;
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    assert_eq!(names(&actions(&mut peer, 4).await), ["2", "3", "4", "5"]);
    let labels: Vec<_> = receipts.iter().map(label).collect();
    assert_eq!(
        labels,
        [
            "unknown", "unknown", "pending", "pending", "pending", "pending"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_the_receipts_fate() {
    let (_, client, _listener, mut peer) = connected_client(Kind::Durable).await;
    let mut receipts = Vec::new();
    for number in 0..4 {
        receipts.push(client.send(act(number)).await.unwrap());
    }
    let messages = actions(&mut peer, 4).await;
    assert!(messages[0].get("seq").is_none(), "it is not durable");
    peer.acknowledge(&messages[0]).await;
    refuse(&mut peer, &messages[1], Some("bad_payload")).await;
    refuse(&mut peer, &messages[2], Some("busy")).await;
    peer.reply(&messages[3], "STATUS_UPDATE", serde_json::json!({}))
        .await;
    let mut labels = Vec::new();
    for receipt in &receipts {
        labels.push(fate(receipt).await.label());
    }
    assert_eq!(labels, ["handled", "rejected", "rejected", "replied"]);
    match fate(&receipts[2]).await {
        Fate::Rejected(rejection) => assert!(rejection.is_retryable()),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_after_its_attempts_and_goes_on_when_asked() {
    let site = Site::default();
    let client = client_that_gives_up(&site).await;
    let receipt = client.send(act("lost")).await.unwrap();
    let gave_up = |state: &ReconnectState| matches!(state, ReconnectState::GaveUp { .. });
    let state = until(&client, gave_up).await;
    assert!(matches!(
        state,
        ReconnectState::GaveUp {
            error: ConnectionTrouble::Failed(_)
        }
    ));
    assert!(matches!(
        fate(&receipt).await,
        Fate::NotSent(SendError::GaveUp(_))
    ));
    assert!(matches!(
        client.send(act("refused")).await,
        Err(SendError::GaveUp(_))
    ));
    let mut listener = site.open();
    client.retry();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    client.send(act("sent")).await.unwrap();
    assert_eq!(names(&actions(&mut peer, 1).await), ["sent"]);
}

#[tokio::test(start_paused = true)]
async fn who_needs_a_connection_waits_until_there_is_one() {
    let site = Site::default();
    let client = site.client().start().await.unwrap();
    let both = [waiting(&client), waiting(&client)];
    settle().await;
    assert!(both.iter().all(|one| !one.is_finished()));
    let mut listener = site.open();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    for one in both {
        let connection = within(one).await.unwrap().unwrap();
        connection.send(act("at once")).await.unwrap();
        assert_eq!(names(&actions(&mut peer, 1).await), ["at once"]);
    }

    // The lost one is not given out again.
    let lost = client.connected().await.unwrap();
    drop(peer);
    until(&client, |state| !state.is_connected()).await;
    let next = waiting(&client);
    let _peer = accept(&mut listener, Kind::Plain).await;
    let connection = within(next).await.unwrap().unwrap();
    assert_ne!(connection.id(), lost.id());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_connection_that_will_not_be_made() {
    let site = Site::default();
    let client = client_that_gives_up(&site).await;
    assert!(matches!(
        client.connected().await,
        Err(SendError::GaveUp(ConnectionTrouble::Failed(_)))
    ));
    client.retry();
    let waiting = waiting(&client);
    settle().await;
    client.stop(Duration::ZERO).await;
    for error in [waiting.await.unwrap(), client.connected().await] {
        assert!(matches!(
            error,
            Err(SendError::Closed(DisconnectReason::Stopped))
        ));
    }
}

/// A service that takes each connection and drops it is tried ever less often, and given up.
#[tokio::test(start_paused = true)]
async fn a_mere_connection_does_not_begin_the_backoff_anew() {
    let site = Site::default();
    let mut listener = site.open();
    let client = client_that_gives_up(&site).await;
    for _ in 0..10 {
        let peer = accept(&mut listener, Kind::Plain).await;
        until(&client, connected).await;
        drop(peer);
        until(&client, |state| !state.is_connected()).await;
    }
    let state = until(&client, |state| {
        matches!(state, ReconnectState::GaveUp { .. })
    });
    assert!(matches!(
        state.await,
        ReconnectState::GaveUp {
            error: ConnectionTrouble::Lost(DisconnectReason::ClosedByPeer)
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stayed_up_is_replaced_soon() {
    let site = Site::default();
    let mut listener = site.open();
    let client = site.client().start().await.unwrap();
    for _ in 0..20 {
        let mut peer = accept(&mut listener, Kind::Plain).await;
        assert!(peer.is_silent_for(Duration::from_secs(29)).await);
        settle().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(peer);
        let state = until(&client, |state| !state.is_connected()).await;
        let ReconnectState::Waiting { next_try, .. } = state else {
            panic!("{state:?}");
        };
        assert!(next_try - Instant::now() <= Backoff::default().first);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_announcement_is_a_failed_try() {
    let site = Site::default();
    let mut listener = site.open();
    let attempts = Attempts::AtMost(1.try_into().unwrap());
    let backoff = Backoff {
        attempts,
        ..Backoff::default()
    };
    let client = site.client().backoff(backoff).start().await.unwrap();
    let mut peer = WirePeer::over_boxed(listener_stream(&mut listener).await);
    let hello = peer.receive().await;
    peer.answer_hello(&hello, 3).await;
    let started = peer.receive_type("AGENT_STARTED").await;
    refuse(&mut peer, &started, Some("identity_mismatch")).await;
    let state = until(&client, |state| {
        matches!(state, ReconnectState::GaveUp { .. })
    });
    drop(peer.receive_to_end().await);
    drop(peer);
    assert!(matches!(
        state.await,
        ReconnectState::GaveUp {
            error: ConnectionTrouble::AnnouncementRefused(_)
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn stopping_sends_what_waits_and_says_what_is_left() {
    let site = Site::default();
    let client = site.client().start().await.unwrap();
    let left = client.send(act("left")).await.unwrap();
    let remaining = client.stop(Duration::from_secs(1)).await;
    assert_eq!((remaining.dropped, remaining.kept), (1, 0));
    assert_eq!(label(&left), "not_sent");
    assert!(client.send(act("late")).await.is_err());

    let mut listener = site.open();
    let client = site.client().start().await.unwrap();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    let receipt = client.send(act("sent")).await.unwrap();
    let stopping = tokio::spawn(async move { client.stop(Duration::from_secs(60)).await });
    let messages = actions(&mut peer, 1).await;
    settle().await;
    assert!(!stopping.is_finished(), "the answer is awaited");
    peer.acknowledge(&messages[0]).await;
    assert!(matches!(fate(&receipt).await, Fate::Handled));
    peer.receive_to_end().await;
    drop(peer);
    let remaining = stopping.await.unwrap();
    assert_eq!(remaining, migration_ipc::Remaining::default());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_stops_the_client() {
    let site = Site::default();
    let mut listener = site.open();
    let client = site.client().start().await.unwrap();
    let mut state = client.state();
    let mut peer = accept(&mut listener, Kind::Plain).await;
    let clone = client.clone();
    drop(client);
    assert!(peer.is_silent_for(Duration::from_secs(1)).await);
    drop(clone);
    peer.receive_to_end().await;
    drop(peer);
    let stopped = state.wait_for(|state| matches!(state, ReconnectState::Stopped));
    within(stopped).await.unwrap();
}

/// A thousand agents lose their service at one moment, and it is back a second later.
#[tokio::test(start_paused = true)]
async fn a_thousand_clients_are_back_within_5_s_and_not_at_once() {
    const CLIENTS: usize = 1000;
    let site = Site::default();
    let backoff = Backoff {
        base: Duration::from_secs(1),
        cap: Duration::from_secs(2),
        ..Backoff::default()
    };
    let (server, _connector) = serve_site(&site).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(site.client().backoff(backoff).start().await.unwrap());
    }
    for client in &clients {
        until(client, connected).await;
    }
    tokio::time::sleep(Duration::from_secs(31)).await;
    within(server.stop(Duration::from_secs(1))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    let (server, _connector) = serve_site(&site).await;
    let mut back = BTreeMap::<u128, usize>::new();
    let mut counted = 0;
    while counted < CLIENTS {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let connections = server.connections().counts().total();
        let elapsed = begin.elapsed();
        assert!(
            elapsed <= Duration::from_secs(5),
            "{counted} after {elapsed:?}"
        );
        *back.entry(elapsed.as_millis() / 100).or_default() += connections - counted;
        counted = connections;
    }
    eprintln!("connections by tenths of a second: {back:?}");
    let most = back.values().max().unwrap();
    assert!(*most <= CLIENTS / 5, "a stampede: {back:?}");
}

async fn serve_site(site: &Site) -> (migration_ipc::IpcServer, ()) {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .build()
        .unwrap();
    // A thousand agents are a thousand accounts; here they have one name.
    let mut limits = migration_ipc::ServerLimits::default();
    limits.account.connections = limits.connections;
    let server = migration_ipc::IpcServer::builder(dispatcher)
        .listener(site.open())
        .limits(limits)
        .start()
        .await
        .unwrap();
    (server, ())
}

/// A service that was restarted in an orderly way refused what came during its last moments, and a
/// client took that for the last word: a crash would have lost less.
#[tokio::test(start_paused = true)]
async fn what_a_stopping_service_refuses_goes_to_the_next_one_in_order() {
    let (_, client, mut listener, mut peer) = connected_client(Kind::Durable).await;
    let mut receipts = Vec::new();
    for number in 0..3 {
        receipts.push(client.send(act(number)).await.unwrap());
    }
    let messages = actions(&mut peer, 3).await;
    peer.acknowledge(&messages[0]).await;
    for message in &messages[1..] {
        refuse(&mut peer, message, Some("stopping")).await;
    }
    settle().await;
    receipts.push(client.send(act(3)).await.unwrap());
    assert!(
        peer.is_silent_for(Duration::from_millis(200)).await,
        "nothing more goes to a service that stops"
    );
    drop(peer);
    let mut peer = accept(&mut listener, Kind::Durable).await;
    let messages = actions(&mut peer, 3).await;
    assert_eq!(names(&messages), ["1", "2", "3"]);
    for message in &messages {
        peer.acknowledge(message).await;
    }
    for receipt in &receipts {
        assert!(fate(receipt).await.is_handled());
    }
}

/// `Sent` was promised and never came. Of a message that a service takes and does not answer, more is
/// known than of one that it has not taken yet: that one goes to the next service.
#[tokio::test(start_paused = true)]
async fn what_was_written_and_is_not_answered_was_sent() {
    let site = Site::default();
    let client = site.client().start().await.unwrap();
    let mut listener = site.open();
    let mut peer = accept_with(&mut listener, Kind::Durable, json!({"credit": 2})).await;
    let written = client.send(act("written")).await.unwrap();
    let held_back = client.send(act("held back")).await.unwrap();
    assert_eq!(names(&actions(&mut peer, 1).await), ["written"]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(80) {
        assert_eq!(peer.receive().await["type"], "HEARTBEAT");
        peer.send("HEARTBEAT", heartbeat(1)).await;
    }
    assert_eq!((label(&written), label(&held_back)), ("sent", "pending"));
    drop(peer);
    let mut peer = accept(&mut listener, Kind::Durable).await;
    assert_eq!(names(&actions(&mut peer, 1).await), ["held back"]);
}

#[tokio::test(start_paused = true)]
async fn at_most_1024_messages_in_memory_wait_for_an_answer() {
    let (_, client, _listener, mut peer) = connected_client(Kind::Durable).await;
    let batch = (0..1030).map(act);
    let receipts = client.send_batch(batch, SendOptions::new()).await.unwrap();
    actions(&mut peer, 1024).await;
    assert!(peer.is_silent_for(Duration::from_secs(20)).await);
    assert_eq!(names(&actions(&mut peer, 6).await)[0], "1024");
    assert_eq!(label(&receipts[0]), "sent");
}
