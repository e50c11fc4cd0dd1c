//! Who may have which role: any doubt is a no.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use migration_ipc::messages::UserAction;
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountId, Announcement, HandlerError, IpcServer, MessageDispatcher, MessagePayload, OsSession,
    Peer, PeerIdentity, Policy, Privilege, Role, Sender, SessionId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::notes::Notes;
use super::policy::{OfAgents, OfOperators, ask};
use crate::common::*;

async fn serve_policy(policy: Policy, notes: &Notes) -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: OfAgents| async {})
        .handle(|_: OfOperators| async {})
        .handle(|_: UserAction| async {})
        .build()
        .unwrap();
    serve_with(dispatcher, |server| {
        server.policy(policy).audit(notes.clone())
    })
    .await
}

/// What the hello of a peer that asks for a role is answered with.
async fn asks(
    connector: &MemoryConnector,
    identity: PeerIdentity,
    role: &str,
) -> (WirePeer, Value) {
    let mut peer = WirePeer::connect(connector, identity).await;
    let mut answer = peer.hello(role, 100).await;
    let payload = answer["payload"].take();
    (peer, payload)
}

/// A rule sees the whole identity: the account, the session, the privilege.
#[tokio::test(start_paused = true)]
async fn a_role_of_ones_own_is_for_whom_its_rule_says() {
    let notes = Notes::default();
    let policy = Policy::migration()
        .role("console", |peer: &PeerIdentity| {
            peer.account().as_str() == "1000"
                && peer.session() == OsSession::Id(1)
                && peer.privilege() == Privilege::Ordinary
        })
        .allow("console", "OF_OPERATORS");
    let (_server, connector) = serve_policy(policy, &notes).await;
    let right = user("1000").with_session(OsSession::Id(1));
    let (mut peer, answer) = asks(&connector, right.clone(), "console").await;
    assert_eq!(answer["role"], "console");
    assert_eq!(ask(&mut peer, "OF_OPERATORS").await, true);
    // The role takes the place of an agent's.
    assert_eq!(ask(&mut peer, "OF_AGENTS").await, "not_permitted");
    // Whoever does not ask for it does not have it.
    let (mut agent, _) = asks(&connector, right.clone(), "agent").await;
    assert_eq!(ask(&mut agent, "OF_OPERATORS").await, "not_permitted");
    let mut plain = WirePeer::connect(&connector, right).await;
    assert_eq!(ask(&mut plain, "OF_AGENTS").await, true);
    plain.send("OF_OPERATORS", json!({})).await;
    let refused = plain.receive_acknowledgment().await;
    assert_eq!(refused["error"], "this peer may not send OF_OPERATORS");

    let wrong = [
        user("1000").with_session(OsSession::Id(2)),
        user("1001").with_session(OsSession::Id(1)),
        user("1000"),
        administrator().with_session(OsSession::Id(1)),
    ];
    for identity in wrong {
        let (mut peer, answer) = asks(&connector, identity.clone(), "console").await;
        assert_eq!(answer["refused"]["code"], "role", "{identity:?}");
        assert!(peer.receive_to_end().await.is_empty(), "it is closed");
    }
    assert_eq!(notes.lines("role_refused").len(), 4);
    let roles = notes.lines("connected");
    assert_eq!(
        roles,
        ["1000: role console", "1000: role agent", "1000: role agent"]
    );
}

/// Threat: an error while deciding is taken for a yes.
#[tokio::test(start_paused = true)]
async fn a_rule_that_panics_or_fails_means_no_and_the_service_lives_on() {
    let notes = Notes::default();
    let policy = Policy::migration()
        .role("panics", |_| -> bool { panic!("on purpose") })
        .role("fails", |_| Err::<bool, _>("the directory is not there"))
        .role("lies", |_| Ok::<bool, &str>(false))
        .more_operators(|_| -> bool { panic!("on purpose") });
    let (_server, connector) = serve_policy(policy, &notes).await;
    for role in ["panics", "fails", "lies", "operator", "no such role", ""] {
        let (mut peer, answer) = asks(&connector, user("1000"), role).await;
        assert_eq!(answer["refused"]["code"], "role", "{role}");
        assert!(peer.receive_to_end().await.is_empty(), "{role}");
    }
    assert_eq!(
        notes.lines("role_refused"),
        [
            "1000: role panics: rule_failed",
            "1000: role fails: rule_failed",
            "1000: role lies: not_entitled",
            "1000: role operator: rule_failed",
            "1000: role no such role: unknown_role",
            "1000: role : unknown_role",
        ]
    );
    let (mut agent, _) = asks(&connector, user("1000"), "agent").await;
    assert_eq!(ask(&mut agent, "OF_AGENTS").await, true);
}

/// Elevation is the token's of the connection, and nothing that comes later adds to it.
#[tokio::test(start_paused = true)]
async fn a_role_is_decided_once_on_the_identity_of_the_connection() {
    let asked = Arc::new(AtomicUsize::new(0));
    let notes = Notes::default();
    let counting = Arc::clone(&asked);
    let policy = Policy::migration()
        .role("first only", move |_| {
            counting.fetch_add(1, Ordering::Relaxed) == 0
        })
        .allow("first only", "OF_AGENTS");
    let (_server, connector) = serve_policy(policy, &notes).await;
    let (mut first, _) = asks(&connector, user("1000"), "first only").await;
    for _ in 0..3 {
        assert_eq!(ask(&mut first, "OF_AGENTS").await, true);
    }
    assert_eq!(
        asked.load(Ordering::Relaxed),
        1,
        "not once for each message"
    );
    // A second hello changes nothing.
    first.send("HELLO", hello("operator", 1)).await;
    assert_eq!(first.receive_acknowledgment().await["success"], false);
    assert_eq!(ask(&mut first, "OF_OPERATORS").await, "not_permitted");
    // The same account with and without its privilege: each command by its own connection.
    let filtered = PeerIdentity::new(AccountId::new("500"), Privilege::Ordinary);
    let elevated = PeerIdentity::new(AccountId::new("500"), Privilege::Administrator);
    let (mut operator, answer) = asks(&connector, elevated, "operator").await;
    assert_eq!(answer["role"], "operator");
    let (_, answer) = asks(&connector, filtered.clone(), "operator").await;
    assert_eq!(answer["refused"]["code"], "role");
    let (mut agent, _) = asks(&connector, filtered, "agent").await;
    assert_eq!(ask(&mut agent, "OF_OPERATORS").await, "not_permitted");
    assert_eq!(ask(&mut operator, "OF_OPERATORS").await, true);
}

#[tokio::test(start_paused = true)]
async fn more_operators_are_added_to_administrators() {
    let notes = Notes::default();
    let policy = Policy::migration().more_operators(|peer| peer.account().as_str() == "1000");
    let (_server, connector) = serve_policy(policy, &notes).await;
    for (identity, may) in [
        (user("1000"), true),
        (user("1001"), false),
        (administrator(), true),
    ] {
        let (mut peer, answer) = asks(&connector, identity, "operator").await;
        assert_eq!(answer["role"] == "operator", may);
        if may {
            assert_eq!(ask(&mut peer, "OF_OPERATORS").await, true);
        }
    }
}

/// A payload of the program's own that announces its sender, whoever that is.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {}

impl MessagePayload for Introduction {
    const TYPE: &'static str = "INTRODUCTION";
    const SENDER: Sender = Sender::Any;

    fn announcement(&self) -> Option<Announcement> {
        Some(Announcement {
            user_id: "".into(),
            session_id: SessionId::from("1"),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn only_agents_are_addressed_whatever_others_announce() {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: Introduction| async {})
        .build()
        .unwrap();
    let policy = Policy::migration()
        .role("other", |_| true)
        .allow("other", "INTRODUCTION");
    let (server, connector) = serve_with(dispatcher, |server| server.policy(policy)).await;
    let mut peers = Vec::new();
    for (role, announced) in [("operator", 0), ("other", 0), ("agent", 1)] {
        let (mut peer, _) = asks(&connector, administrator(), role).await;
        assert_eq!(ask(&mut peer, "INTRODUCTION").await, true, "{role}");
        assert_eq!(server.connections().counts().announced, announced, "{role}");
        peers.push(peer);
    }
    let sent = server.broadcast(&UserAction::new("", "x")).unwrap();
    assert_eq!(sent.accepted.len(), 1);
    peers[2].receive_type("USER_ACTION").await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_sees_the_role_and_can_ask_for_one() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Question {
        secret: bool,
    }

    impl MessagePayload for Question {
        const TYPE: &'static str = "QUESTION";
        const SENDER: Sender = Sender::Any;
    }

    async fn on_question(question: Question, peer: Peer) -> Result<(), HandlerError> {
        assert!(peer.role().is_some_and(|role| *role != Role::from("other")));
        if question.secret {
            peer.require(&Role::Operator, "a secret QUESTION")?;
        }
        Ok(())
    }

    let notes = Notes::default();
    let dispatcher = MessageDispatcher::builder(()).handle(on_question).build();
    let (_server, connector) =
        serve_with(dispatcher.unwrap(), |server| server.audit(notes.clone())).await;
    for (role, secret, may) in [
        ("agent", false, true),
        ("agent", true, false),
        ("operator", true, true),
    ] {
        let (mut peer, _) = asks(&connector, administrator(), role).await;
        peer.send("QUESTION", json!({"secret": secret})).await;
        let answer = peer.receive_acknowledgment().await;
        assert_eq!(answer["success"], may);
        if !may {
            assert_eq!(answer["code"], "not_permitted");
        }
    }
    assert_eq!(notes.lines("type_refused"), ["0: type a secret QUESTION"]);
}
