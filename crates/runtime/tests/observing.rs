//! What can be seen of a server: events, messages, states, counters; and sending to many.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountId, ConfigError, ConnectionConfig, ConnectionEvent, ConnectionState, DisconnectReason,
    IpcServer, MessageDispatcher, MessagePayload, Observed, Sender, ServerLimits, StartError,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

async fn serve_agents() -> (IpcServer, MemoryConnector) {
    serve_agents_with(ServerLimits::default()).await
}

async fn serve_agents_with(limits: ServerLimits) -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(|_: UserAction| async {})
        .build()
        .unwrap();
    serve_with(dispatcher, |server| server.limits(limits)).await
}

async fn agent(connector: &MemoryConnector, account: &str, session: &str) -> WirePeer {
    let mut peer = WirePeer::connect(connector, user(account)).await;
    peer.send("AGENT_STARTED", agent_started("", session)).await;
    peer.receive_acknowledgment().await;
    peer
}

#[tokio::test(start_paused = true)]
async fn events_tell_a_connections_life_in_order() {
    let (server, connector) = serve_agents().await;
    let mut events = server.events();
    let mut peer = agent(&connector, "1000", "7").await;
    peer.write(&[0; 4]).await;
    let mut told = Vec::new();
    while told.len() < 3 {
        let Observed::Item(event) = events.recv().await.unwrap() else {
            panic!("missed")
        };
        told.push(match event {
            ConnectionEvent::Connected { connection } => format!("connected {}", connection.id()),
            ConnectionEvent::Announced {
                connection,
                announcement,
            } => {
                format!("announced {} {}", connection.id(), announcement.session_id)
            }
            ConnectionEvent::Disconnected {
                connection, reason, ..
            } => {
                assert_eq!(
                    connection.current_state(),
                    ConnectionState::Gone(reason.clone())
                );
                format!("disconnected {} {}", connection.id(), reason.label())
            }
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(
        told,
        ["connected c1", "announced c1 7", "disconnected c1 framing"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_connection_can_be_watched_to_its_end() {
    let (server, connector) = serve_agents().await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let connection = only_connection(&server).await;
    let mut state = connection.state();
    assert_eq!(*state.borrow_and_update(), ConnectionState::Identified);
    peer.send("AGENT_STARTED", agent_started("alice", "7"))
        .await;
    within(state.wait_for(|state| *state == ConnectionState::Announced))
        .await
        .unwrap();
    assert_eq!(connection.announcement().unwrap().user_id, "alice");
    drop(peer);
    within(state.wait_for(|state| matches!(state, ConnectionState::Gone(_))))
        .await
        .unwrap();
    assert_eq!(
        connection.current_state(),
        ConnectionState::Gone(DisconnectReason::ClosedByPeer)
    );
}

#[tokio::test(start_paused = true)]
async fn observers_see_every_message_beside_its_handler() {
    let (server, connector) = serve_agents().await;
    let mut messages = server.messages();
    let mut peer = agent(&connector, "1000", "7").await;
    peer.send("USER_ACTION", action("x")).await;
    peer.send("HEARTBEAT", heartbeat(1)).await;
    peer.send("MADE_UP", json!({"n": 1})).await;
    for expected in ["AGENT_STARTED", "USER_ACTION", "MADE_UP"] {
        match within(messages.recv()).await.unwrap() {
            Observed::Item(received) => {
                assert_eq!(received.message.message_type, expected);
                assert_eq!(received.connection.peer().account().as_str(), "1000");
            }
            Observed::Missed(missed) => panic!("{missed} were missed"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_falls_behind_is_told_and_holds_nobody_up() {
    let limits = ServerLimits {
        observer_backlog: 4,
        ..ServerLimits::default()
    };
    let (server, connector) = serve_agents_with(limits).await;
    let mut messages = server.messages();
    let mut peer = agent(&connector, "1000", "7").await;
    for _ in 0..20 {
        peer.send("USER_ACTION", action("x")).await;
        peer.receive_acknowledgment().await;
    }
    match messages.recv().await.unwrap() {
        Observed::Missed(missed) => assert_eq!(missed, 17),
        Observed::Item(item) => panic!("{item:?}"),
    }
    for _ in 0..4 {
        assert!(matches!(messages.recv().await.unwrap(), Observed::Item(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn observers_see_the_end_of_the_server() {
    let (server, _connector) = serve_agents().await;
    let (mut events, mut messages) = (server.events(), server.messages());
    server.stop(PATIENCE).await;
    assert!(within(events.recv()).await.is_none());
    assert!(within(messages.recv()).await.is_none());
}

static WRITTEN: AtomicUsize = AtomicUsize::new(0);

/// A message that counts how often it is written as JSON.
#[derive(Debug, Clone, Deserialize)]
struct Counted {}

impl Serialize for Counted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WRITTEN.fetch_add(1, Ordering::Relaxed);
        json!({}).serialize(serializer)
    }
}

impl MessagePayload for Counted {
    const TYPE: &'static str = "COUNTED";
    const SENDER: Sender = Sender::Service;
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_is_encoded_once_and_reaches_all_agents() {
    let (server, connector) = serve_agents().await;
    let mut agents = Vec::new();
    for session in 0..10 {
        agents.push(agent(&connector, "1000", &session.to_string()).await);
    }
    let mut bystander = WirePeer::connect(&connector, user("1000")).await;
    bystander.send("USER_ACTION", action("x")).await;
    bystander.receive_acknowledgment().await;
    let delivery = server.broadcast(&Counted {}).unwrap();
    assert_eq!((delivery.accepted.len(), delivery.refused.len()), (10, 0));
    assert_eq!(WRITTEN.load(Ordering::Relaxed), 1);
    let mut ids = Vec::new();
    for agent in &mut agents {
        let message = agent.receive().await;
        assert_eq!(message["type"], "COUNTED");
        ids.push(message["id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "it is one message");
    assert!(
        bystander.is_silent_for(Duration::from_secs(10)).await,
        "nobody announced it"
    );
}

/// Sessions are labels of the agents' own: two users may use the same, and what is for one of them
/// does not reach the other.
#[tokio::test(start_paused = true)]
async fn users_and_sessions_are_addressed_exactly() {
    let (server, connector) = serve_agents().await;
    let mut peers = Vec::new();
    for (account, session) in [("1000", "1"), ("1000", "2"), ("1001", "1")] {
        peers.push(agent(&connector, account, session).await);
    }
    let sender = server.sender();
    assert_eq!(
        sender
            .send_to_user(&AccountId::new("1000"), Counted {})
            .unwrap()
            .accepted
            .len(),
        2
    );
    assert_eq!(
        sender
            .send_to_session(&AccountId::new("1000"), &"1".into(), Counted {})
            .unwrap()
            .accepted
            .len(),
        1
    );
    assert!(
        sender
            .send_to_session(&AccountId::new("1001"), &"2".into(), Counted {})
            .unwrap()
            .had_no_recipient()
    );
    for (peer, expected) in peers.iter_mut().zip([2, 1, 0]) {
        for _ in 0..expected {
            assert_eq!(peer.receive().await["type"], "COUNTED");
        }
        assert!(peer.is_silent_for(Duration::from_millis(10)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_work_does_not_start() {
    let start = |limits: ServerLimits, config: ConnectionConfig| {
        IpcServer::builder(MessageDispatcher::empty())
            .listener(listen().0)
            .limits(limits)
            .connection_config(config)
            .start()
    };
    let nowhere = IpcServer::builder(MessageDispatcher::empty())
        .start()
        .await
        .unwrap_err();
    assert!(matches!(nowhere, StartError::NoEndpoint), "{nowhere:?}");
    let none = ServerLimits {
        connections: 0,
        ..ServerLimits::default()
    };
    let error = start(none, ConnectionConfig::default()).await.unwrap_err();
    assert!(
        matches!(error, StartError::Config(ConfigError { .. })),
        "{error:?}"
    );
    assert!(
        error.to_string().starts_with("connections must be"),
        "{error}"
    );
    let mut config = ConnectionConfig::default();
    config.timeouts.first_byte = Duration::ZERO;
    let error = start(ServerLimits::default(), config).await.unwrap_err();
    assert!(
        error.to_string().starts_with("first_byte must be"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn messages_are_counted_by_type_and_strangers_together() {
    let watch = Watch::begin();
    let (_server, connector) = serve_agents().await;
    let mut peer = agent(&connector, "1000", "1").await;
    for _ in 0..3 {
        peer.send("USER_ACTION", action("x")).await;
        peer.receive_acknowledgment().await;
    }
    for made_up in 0..5 {
        peer.send(&format!("MADE_UP_{made_up}"), json!({})).await;
        peer.receive_acknowledgment().await;
    }
    let messages = |name: &str, direction: &str| {
        watch.counter_with(
            "ipc_messages_total",
            &[("type", name), ("direction", direction)],
        )
    };
    assert_eq!(messages("USER_ACTION", "in"), 3);
    assert_eq!(messages("AGENT_STARTED", "in"), 1);
    assert_eq!(messages("other", "in"), 5);
    assert_eq!(messages("ACKNOWLEDGMENT", "out"), 9);
    assert!(
        !watch.names().iter().any(|name| name.contains("MADE_UP")),
        "a peer cannot make series: {:?}",
        watch.names()
    );
    let bytes = [("type", "USER_ACTION"), ("direction", "in")];
    let bytes = watch.counter_with("ipc_bytes_total", &bytes);
    assert_eq!(bytes % 3, 0, "three of one size");
    assert!(bytes > 3 * 100, "{bytes}");
}
