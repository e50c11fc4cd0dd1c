//! Message credit between new peers: how many more messages the receiver will take.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::transport::memory;
use migration_ipc::{DisconnectReason, IpcClient, IpcConnection, MessageDispatcher};
use serde_json::json;

use crate::common::*;
use crate::stage::{Stage, inbox_of};

const INBOX: usize = 4;

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_more_than_it_was_granted_is_held_up_and_loses_nothing() {
    let stage = Stage::new();
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let answer = peer.hello("agent", 16).await;
    assert_eq!(answer["payload"]["credit"], INBOX);
    // A peer whose hello was answered late may have sent them in good faith.
    for _ in 0..INBOX * 10 {
        peer.send("USER_ACTION", action("x")).await;
    }
    settle().await;
    assert_eq!(server.connections().counts().identified, 1);
    stage.gate.open();
    for _ in 0..INBOX * 10 {
        let acknowledgment = peer.receive_type("ACKNOWLEDGMENT").await;
        assert_eq!(acknowledgment["payload"]["success"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn credit_is_granted_anew_for_what_was_handled() {
    let stage = Stage::new();
    let (_server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(inbox_of(INBOX))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut credit = u64::try_from(INBOX).unwrap();
    peer.hello("agent", 16).await;
    let (mut sent, mut granted, mut acknowledged) = (0, 0, 0);
    while sent < 100 {
        while credit > 0 {
            peer.send("USER_ACTION", action("x")).await;
            (credit, sent) = (credit - 1, sent + 1);
        }
        assert!(
            peer.is_silent_for(Duration::from_secs(1)).await,
            "nothing was handled"
        );
        stage.gate.admit(INBOX);
        while granted < sent {
            let message = peer.receive().await;
            match message["type"].as_str().unwrap() {
                "CREDIT" => {
                    credit += message["payload"]["messages"].as_u64().unwrap();
                    granted += message["payload"]["messages"].as_u64().unwrap();
                }
                "ACKNOWLEDGMENT" => acknowledged += 1,
                "HEARTBEAT" => {}
                other => panic!("{other}"),
            }
            assert!(granted <= acknowledged, "granted before it was handled");
        }
    }
}

/// A refused message was taken as well: its sender gets the credit back.
#[tokio::test(start_paused = true)]
async fn credit_comes_back_for_refused_messages() {
    let (_server, connector) = serve_with(MessageDispatcher::empty(), |server| {
        server.connection_config(inbox_of(1))
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 16).await;
    for _ in 0..10 {
        peer.send("USER_ACTION", action("x")).await;
        assert_eq!(peer.receive_acknowledgment().await["code"], "no_handler");
        assert_eq!(peer.receive().await["payload"], json!({"messages": 1}));
    }
}

/// A client whose service grants `credit`, and the service.
async fn client_with_credit(
    credit: u32,
    announcement: Option<AgentStarted>,
) -> (IpcClient, WirePeer) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let mut setup = client();
    if let Some(announcement) = &announcement {
        setup = setup.announce(announcement);
    }
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    if announcement.is_some() {
        assert_eq!(service.receive().await["type"], "AGENT_STARTED");
    }
    service.answer_hello(&hello, credit).await;
    (within(connecting).await.unwrap().unwrap(), service)
}

async fn send_actions(connection: &IpcConnection, names: impl IntoIterator<Item = u32>) {
    for name in names {
        connection
            .send(UserAction::new("", name.to_string()))
            .await
            .unwrap();
    }
}

async fn receive_actions(service: &mut WirePeer, names: impl IntoIterator<Item = u32>) {
    for name in names {
        let message = service.receive_type("USER_ACTION").await;
        assert_eq!(message["payload"]["action"], name.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_sends_no_more_than_it_was_granted() {
    let (client, mut service) = client_with_credit(3, None).await;
    send_actions(client.connection(), 0..6).await;
    receive_actions(&mut service, 0..3).await;
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
    assert_eq!(client.connection().queued_messages(), 3);
    service.send("CREDIT", json!({"messages": 2})).await;
    receive_actions(&mut service, 3..5).await;
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
    service
        .send("CREDIT", json!({"messages": 4_000_000_000_u32}))
        .await;
    service
        .send("CREDIT", json!({"messages": 4_000_000_000_u32}))
        .await;
    receive_actions(&mut service, 5..6).await;
}

#[tokio::test(start_paused = true)]
async fn the_announcement_that_went_with_the_hello_uses_credit() {
    let announcement = AgentStarted::new("", "1.0.0", "1");
    let (client, mut service) = client_with_credit(3, Some(announcement)).await;
    send_actions(client.connection(), 0..3).await;
    receive_actions(&mut service, 0..2).await;
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_and_goodbyes_need_no_credit() {
    let (client, mut service) = client_with_credit(0, None).await;
    assert_eq!(service.receive().await["type"], "HEARTBEAT");
    let closing = tokio::spawn(client.disconnect());
    assert_eq!(service.receive().await["type"], "GOODBYE");
    drop(service);
    assert_eq!(closing.await.unwrap(), DisconnectReason::ClosedLocally);
}

/// A grant of nobody knows what is no reason to end a connection.
#[tokio::test(start_paused = true)]
async fn a_grant_that_cannot_be_read_grants_nothing() {
    let (client, mut service) = client_with_credit(0, None).await;
    send_actions(client.connection(), 0..1).await;
    for nonsense in [
        json!({"messages": -1}),
        json!({}),
        json!({"messages": "all"}),
    ] {
        service.send("CREDIT", nonsense).await;
    }
    assert!(service.is_silent_for(Duration::from_secs(10)).await);
    service.send("CREDIT", json!({"messages": 1})).await;
    receive_actions(&mut service, 0..1).await;
}
