//! Who may send what.

use migration_ipc::messages::{BackupProgress, ShutdownRequest};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountId, IpcServer, MessageDispatcher, MessagePayload, PeerIdentity, Privilege, Sender,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::common::*;

/// A payload of a type that only `$sender` may send.
macro_rules! payload {
    ($name:ident, $type:literal, $sender:ident) => {
        #[derive(Debug, Serialize, Deserialize)]
        struct $name {}

        impl MessagePayload for $name {
            const TYPE: &'static str = $type;
            const SENDER: Sender = Sender::$sender;
        }
    };
}

payload!(OfAgents, "OF_AGENTS", Agent);
payload!(OfServices, "OF_SERVICES", Service);
payload!(OfOperators, "OF_OPERATORS", Operator);
payload!(OfAnybody, "OF_ANYBODY", Any);

/// A service with a handler for everything.
async fn serve_everything() -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: OfAgents| async {})
        .handle(|_: OfServices| async {})
        .handle(|_: OfOperators| async {})
        .handle(|_: OfAnybody| async {})
        .handle(|_: ShutdownRequest| async {})
        .handle(|_: BackupProgress| async {})
        .handle(|_: migration_ipc::messages::AgentStarted| async {})
        .build()
        .unwrap();
    serve(dispatcher).await
}

async fn may_send(peer: &mut WirePeer, message_type: &str, payload: serde_json::Value) -> bool {
    let id = peer.send(message_type, payload).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["originalMessageId"], id);
    if answer["success"] == false {
        assert_eq!(
            answer["error"],
            format!("this peer may not send {message_type}")
        );
    }
    answer["success"] == true
}

async fn check(peer: &mut WirePeer, allowed: [bool; 6]) {
    let shutdown = json!({"reason": "x", "gracePeriodSeconds": 1});
    let types = [
        ("OF_AGENTS", json!({})),
        ("OF_SERVICES", json!({})),
        ("OF_OPERATORS", json!({})),
        ("OF_ANYBODY", json!({})),
        ("SHUTDOWN_REQUEST", shutdown),
        ("BACKUP_PROGRESS", progress(1)),
    ];
    for ((message_type, payload), allowed) in types.into_iter().zip(allowed) {
        assert_eq!(
            may_send(peer, message_type, payload).await,
            allowed,
            "{message_type}"
        );
    }
}

const AGENT: [bool; 6] = [true, false, false, true, false, true];
const OPERATOR: [bool; 6] = [false, false, true, true, false, false];

#[tokio::test(start_paused = true)]
async fn agents_send_what_agents_may_whoever_they_are() {
    let (_server, connector) = serve_everything().await;
    for identity in [user("1000"), administrator()] {
        let mut plain = WirePeer::connect(&connector, identity.clone()).await;
        check(&mut plain, AGENT).await;
        let mut new = WirePeer::connect(&connector, identity).await;
        new.hello("agent", 100).await;
        check(&mut new, AGENT).await;
    }
}

#[tokio::test(start_paused = true)]
async fn operators_send_nothing_that_is_an_agents_to_send() {
    let (server, connector) = serve_everything().await;
    let service = PeerIdentity::new(AccountId::new("990"), Privilege::ServiceAccount);
    for identity in [administrator(), service] {
        let mut operator = WirePeer::connect(&connector, identity).await;
        operator.hello("operator", 100).await;
        check(&mut operator, OPERATOR).await;
        assert!(!may_send(&mut operator, "AGENT_STARTED", agent_started("", "1")).await);
    }
    assert_eq!(
        server.connections().counts().announced,
        0,
        "operators are not addressable"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_sender_is_told_the_code_and_counted() {
    let watch = Watch::begin();
    let (_server, connector) = serve_everything().await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 100).await;
    peer.send("OF_SERVICES", json!({})).await;
    assert_eq!(peer.receive_acknowledgment().await["code"], "not_permitted");
    assert_eq!(watch.counter("ipc_refusals_total", "not_permitted"), 1);
}

/// A client obeys its service and nobody else, so nothing but a service's messages reach it.
#[tokio::test(start_paused = true)]
async fn a_client_takes_only_what_services_send() {
    let stream = migration_ipc::transport::memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(stream.1);
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: OfAgents| async {})
        .handle(|_: OfServices| async {})
        .handle(|_: OfOperators| async {})
        .handle(|_: OfAnybody| async {})
        .handle(|_: ShutdownRequest| async {})
        .handle(|_: BackupProgress| async {})
        .build()
        .unwrap();
    let connecting =
        tokio::spawn(migration_ipc::IpcClient::builder(dispatcher).connect_over(stream.0));
    let hello = service.receive().await;
    service.answer_hello(&hello, 100).await;
    let _client = connecting.await.unwrap().unwrap();
    check(&mut service, [false, true, false, true, true, false]).await;
}
