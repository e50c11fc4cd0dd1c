//! The table: what is not in it is refused.

use migration_ipc::messages::{AgentStarted, BackupProgress, UserAction};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountId, IpcServer, MessageDispatcher, MessagePayload, Peer, PeerIdentity, Policy, Privilege,
    Role, Sender, StartError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::notes::Notes;
use crate::common::*;

macro_rules! payload {
    ($name:ident, $type:literal, $sender:ident) => {
        #[derive(Debug, Serialize, Deserialize)]
        pub(crate) struct $name {}

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

pub(crate) fn dispatcher() -> MessageDispatcher {
    MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(|_: BackupProgress| async {})
        .handle(|_: UserAction| async {})
        .handle(|_: OfAgents| async {})
        .handle(|_: OfServices| async {})
        .handle(|_: OfOperators| async {})
        .handle(|_: OfAnybody| async {})
        .fallback(|_, _: Peer| async {})
        .build()
        .unwrap()
}

async fn serve_policy(policy: Policy, notes: &Notes) -> (IpcServer, MemoryConnector) {
    serve_with(dispatcher(), |server| {
        server.policy(policy).audit(notes.clone())
    })
    .await
}

/// What came of a message: `true`, or the code of its refusal.
pub(crate) async fn ask(peer: &mut WirePeer, message_type: &str) -> Value {
    let payload = match message_type {
        "AGENT_STARTED" => agent_started("", "1"),
        "BACKUP_PROGRESS" => progress(1),
        "USER_ACTION" => action("x"),
        "SHUTDOWN_REQUEST" => json!({"reason": "x", "gracePeriodSeconds": 1}),
        _ => json!({}),
    };
    peer.send(message_type, payload).await;
    let answer = peer.receive_acknowledgment().await;
    match &answer["success"] {
        Value::Bool(true) => Value::Bool(true),
        _ => answer["code"].clone(),
    }
}

const TYPES: [&str; 11] = [
    "AGENT_STARTED",
    "BACKUP_PROGRESS",
    "USER_ACTION",
    "OF_AGENTS",
    "OF_ANYBODY",
    "OF_OPERATORS",
    "OF_SERVICES",
    "SHUTDOWN_REQUEST",
    // Built in, and without a handler here: the fallback would take it.
    "BACKUP_STARTED",
    "MADE_UP",
    // Names are compared as they are.
    "agent_started",
];

/// Each role, each type: exactly these may be sent.
async fn check(policy: Policy, expected: [(&str, &[&str]); 3]) {
    let notes = Notes::default();
    let watch = Watch::begin();
    let (_server, connector) = serve_policy(policy, &notes).await;
    let mut refused = 0;
    for (role, allowed) in expected {
        // Each an account of its own, because the records of one have a bound.
        let identity = PeerIdentity::new(AccountId::new(role), Privilege::Administrator);
        let mut peer = WirePeer::connect(&connector, identity).await;
        peer.hello(role, 100).await;
        for message_type in TYPES {
            let came = ask(&mut peer, message_type).await;
            if allowed.contains(&message_type) {
                assert_eq!(came, true, "{role} {message_type}");
            } else {
                assert_eq!(came, "not_permitted", "{role} {message_type}");
                refused += 1;
            }
        }
    }
    assert_eq!(
        watch.counter("ipc_refusals_total", "not_permitted"),
        refused,
        "each is counted"
    );
    let records = notes.of("type_refused").len() as u64;
    assert_eq!(records, refused, "each is recorded");
}

fn auditor(policy: Policy) -> Policy {
    policy.role("auditor", |_| true)
}

#[tokio::test(start_paused = true)]
async fn unless_told_otherwise_everybody_sends_what_is_declared_and_nothing_else() {
    check(
        auditor(Policy::migration()),
        [
            (
                "agent",
                &[
                    "AGENT_STARTED",
                    "BACKUP_PROGRESS",
                    "USER_ACTION",
                    "OF_AGENTS",
                    "OF_ANYBODY",
                    "BACKUP_STARTED",
                ],
            ),
            ("operator", &["OF_OPERATORS", "OF_ANYBODY"]),
            ("auditor", &[]),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_strict_policy_lets_pass_what_it_names_and_nothing_else() {
    let policy = auditor(Policy::strict())
        .allow(Role::Agent, "USER_ACTION")
        .allow(Role::Operator, "OF_OPERATORS")
        .allow("auditor", "OF_OPERATORS")
        .allow("auditor", "MADE_UP");
    check(
        policy,
        [
            ("agent", &["USER_ACTION"]),
            ("operator", &["OF_OPERATORS"]),
            ("auditor", &["OF_OPERATORS", "MADE_UP"]),
        ],
    )
    .await;
}

/// Nobody speaks for the service to the service, whatever the policy says.
#[tokio::test(start_paused = true)]
async fn what_services_send_cannot_be_allowed() {
    check(
        auditor(Policy::strict())
            .allow(Role::Agent, "OF_SERVICES")
            .allow_unlisted(Role::Operator),
        [
            ("agent", &[]),
            ("operator", &["MADE_UP", "agent_started"]),
            ("auditor", &[]),
        ],
    )
    .await;
    let wrong = [
        Policy::migration().allow(Role::Agent, "SHUTDOWN_REQUEST"),
        Policy::migration().allow(Role::Agent, "HELLO"),
        Policy::migration().allow("nobody", "USER_ACTION"),
        Policy::migration().role("operator", |_| true),
        Policy::migration().role("", |_| true),
        Policy::migration().role("a\nb", |_| true),
        auditor(auditor(Policy::migration())),
        (0..63).fold(Policy::migration(), |policy, number| {
            policy.role(&format!("role {number}"), |_| true)
        }),
    ];
    for policy in wrong {
        let (listener, _connector) = listen();
        let server = IpcServer::builder(dispatcher())
            .listener(listener)
            .policy(policy.clone());
        let error = server.start().await.unwrap_err();
        assert!(
            matches!(error, StartError::Policy(_)),
            "{policy:?}: {error}"
        );
    }
}

/// The types that run a connection never get to a handler, for whoever did not negotiate them.
#[tokio::test(start_paused = true)]
async fn no_control_reaches_the_fallback() {
    let notes = Notes::default();
    let policy = Policy::migration().allow_unlisted(Role::Agent);
    let (_server, connector) = serve_policy(policy, &notes).await;
    let mut plain = WirePeer::connect(&connector, user("1000")).await;
    assert_eq!(ask(&mut plain, "MADE_UP").await, true);
    for message_type in ["CREDIT", "GOODBYE"] {
        assert_eq!(ask(&mut plain, message_type).await, Value::Null);
    }
    let refused = notes.lines("type_refused");
    assert_eq!(refused, ["1000: type CREDIT", "1000: type GOODBYE"]);
}

/// The usual form is read in one go, every other in two: neither is a way around the table.
#[tokio::test(start_paused = true)]
async fn the_table_holds_for_every_form_of_a_message() {
    let notes = Notes::default();
    let (_server, connector) = serve_policy(Policy::strict(), &notes).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 100).await;
    let forms = [
        r#"{"id":"a","type":"OF_AGENTS","timestamp":"2024-01-01T12:00:00Z","payload":{}}"#,
        r#"{"payload":{},"type":"OF_AGENTS","id":"b","timestamp":"2024-01-01T12:00:00Z"}"#,
        r#"{"id":"c","type":"OF\u005fAGENTS","timestamp":"2024-01-01T12:00:00Z","payload":{}}"#,
        r#"{"id":"d","type":"OF_AGENTS","timestamp":"2024-01-01T12:00:00Z","payload":{},"inReplyTo":"x"}"#,
    ];
    for form in forms {
        peer.write(&frame(form)).await;
        assert_eq!(
            peer.receive_acknowledgment().await["code"],
            "not_permitted",
            "{form}"
        );
    }
    assert_eq!(notes.of("type_refused").len(), forms.len());
}
