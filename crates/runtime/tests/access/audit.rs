//! What is recorded, and that it has a bound.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ShutdownRequest, UserAction};
use migration_ipc::{
    AuditRecord, AuditSink, MessageDispatcher, OsSession, Peer, PeerIdentity, Policy,
};
use serde_json::{Value, json};

use super::notes::Notes;
use crate::common::*;

async fn on_action(action: UserAction, peer: Peer) {
    peer.audit("drop mail", &action.action, "alice");
}

fn dispatcher() -> MessageDispatcher {
    MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(on_action)
        .handle(|_: ShutdownRequest| async {})
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_connects_is_refused_and_acts_is_recorded() {
    let notes = Notes::default();
    let (server, connector) = serve_with(dispatcher(), |server| server.audit(notes.clone())).await;
    let identity = user("1000")
        .with_session(OsSession::Id(3))
        .with_process_id(Some(42));
    let mut peer = WirePeer::connect(&connector, identity).await;
    peer.hello("agent", 100).await;
    peer.send("AGENT_STARTED", agent_started("", "s")).await;
    peer.receive_acknowledgment().await;
    peer.send("USER_ACTION", action("7")).await;
    peer.receive_acknowledgment().await;
    peer.send("SHUTDOWN_REQUEST", json!({})).await;
    peer.receive_acknowledgment().await;
    // Nobody handles this one: that is no matter of permission.
    peer.send("BACKUP_STARTED", json!({})).await;
    peer.receive_acknowledgment().await;
    peer.write(&frame_of_bytes(&[])).await;
    peer.receive_to_end().await;
    within(server.stop(PATIENCE)).await;

    let records: Vec<Value> = notes
        .all()
        .iter()
        .map(|record| serde_json::to_value(record).unwrap())
        .collect();
    let events: Vec<&Value> = records.iter().map(|record| &record["event"]).collect();
    assert_eq!(
        events,
        [
            "policy_in_force",
            "connected",
            "action",
            "type_refused",
            "disconnected"
        ]
    );
    let policy = &records[0]["policy"];
    assert!(
        policy["agent"]
            .as_array()
            .unwrap()
            .contains(&json!("AGENT_STARTED"))
    );
    assert_eq!(policy["operator"], json!([]));
    let who = |record: &Value| {
        let parts = ["account", "osSession", "process", "connection"];
        parts.map(|part| record[part].clone())
    };
    let expected = [json!("1000"), json!(3), json!(42), json!("c1")];
    for record in &records[1..] {
        assert_eq!(who(record), expected, "{record}");
        assert!(record["time"].is_string());
    }
    assert_eq!(records[1]["role"], "agent");
    let acted = ["action", "what", "to", "session", "outcome"].map(|part| &records[2][part]);
    assert_eq!(acted, ["drop mail", "7", "alice", "s", "allowed"]);
    let refused = ["type", "outcome"].map(|part| &records[3][part]);
    assert_eq!(refused, ["SHUTDOWN_REQUEST", "refused"]);
    let ended = ["reason", "outcome"].map(|part| &records[4][part]);
    assert_eq!(ended, ["framing", "ended"]);
}

/// The policy is recorded whole, in the same order at every start.
#[tokio::test(start_paused = true)]
async fn the_policy_in_force_is_recorded_at_the_start() {
    let mut recorded = Vec::new();
    for _ in 0..3 {
        let notes = Notes::default();
        let policy = Policy::migration()
            .role("auditor", |_| true)
            .allow("auditor", "SERVICE_STATUS_REQUEST")
            .allow_unlisted("auditor");
        let (_server, _connector) = serve_with(dispatcher(), |server| {
            server.policy(policy).audit(notes.clone())
        })
        .await;
        recorded.push(notes.lines("policy_in_force"));
    }
    let agents = "AGENT_STARTED BACKUP_COMPLETED BACKUP_PROGRESS BACKUP_STARTED DELAY_REQUEST \
                  ERROR_REPORT USER_ACTION";
    let expected = format!(": agent: {agents}; operator:; auditor: SERVICE_STATUS_REQUEST *");
    for lines in recorded {
        assert_eq!(lines, [expected.as_str()]);
    }
}

/// Threat: a peer that makes ten thousand refused requests fills the disk, or hides what others do.
#[tokio::test(start_paused = true)]
async fn ten_thousand_refusals_of_one_account_are_a_few_records_and_a_count() {
    const REFUSALS: u64 = 10_000;
    let notes = Notes::default();
    let (server, connector) = serve_with(dispatcher(), |server| server.audit(notes.clone())).await;
    let mut noisy = WirePeer::connect(&connector, user("1000")).await;
    let begun = tokio::time::Instant::now();
    for _ in 0..REFUSALS {
        noisy.send("SHUTDOWN_REQUEST", json!({})).await;
        noisy.receive_acknowledgment().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "one window");
    let recorded = notes.of("type_refused").len() as u64;
    assert!((1..100).contains(&recorded), "{recorded}");
    // Another account is recorded as ever, in the same minute.
    let mut other = WirePeer::connect(&connector, user("1001")).await;
    other.send("SHUTDOWN_REQUEST", json!({})).await;
    other.receive_acknowledgment().await;
    let last = notes.lines("type_refused").pop().unwrap();
    assert_eq!(last, "1001: type SHUTDOWN_REQUEST");
    // What was left out is said, though nothing more happens.
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_eq!(notes.suppressed(), REFUSALS - recorded);
    let counts = notes.lines("suppressed");
    assert_eq!(counts.len(), 1);
    assert!(counts[0].starts_with("1000: "), "{counts:?}");
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn what_was_left_out_is_said_when_the_server_stops() {
    let notes = Notes::default();
    let (server, connector) = serve_with(dispatcher(), |server| server.audit(notes.clone())).await;
    let mut noisy = WirePeer::connect(&connector, user("1000")).await;
    for _ in 0..100 {
        noisy.send("SHUTDOWN_REQUEST", json!({})).await;
        noisy.receive_acknowledgment().await;
    }
    drop(noisy);
    within(server.stop(PATIENCE)).await;
    let recorded = notes.of("type_refused").len() as u64;
    assert_eq!(recorded + notes.suppressed(), 100);
}

/// A sink is code of the user's.
#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_ends_nothing() {
    #[derive(Debug)]
    struct Broken;

    impl AuditSink for Broken {
        fn record(&self, _: &AuditRecord) {
            panic!("on purpose");
        }
    }

    let (_server, connector) = serve_with(dispatcher(), |server| server.audit(Broken)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

/// A peer that nobody could identify is refused, and recorded without a name.
#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_before_its_peer_is_known_is_recorded() {
    let notes = Notes::default();
    let (listener, connector) = listen();
    let listening = (
        listener.identifying(migration_ipc::transport::IdentifyWhen::AfterFirstRead),
        connector,
    );
    let identity: PeerIdentity = user("1000");
    let (_server, connector) = serve_on(listening, dispatcher(), |server| {
        server.audit(notes.clone())
    })
    .await;
    let silent = WirePeer::connect(&connector, identity).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    let refused = notes.lines("connection_refused");
    assert_eq!(
        refused,
        [": handshake_timeout: no whole first frame in time"]
    );
    drop(silent);
}
