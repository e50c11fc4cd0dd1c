//! The `userId` of payloads: authority is the operating system's identity alone.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, BackupRequest, Category, UserAction};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::transport::{BoxFuture, ResolveError};
use migration_ipc::{
    AccountId, AccountResolver, DisconnectReason, IpcServer, MessageDispatcher, Peer, Reply, State,
    Timestamp,
};
use serde_json::{Value, json};

use crate::common::*;

/// Alice is 1000 and bob 1001; case does not matter.
#[derive(Debug)]
struct Names;

impl AccountResolver for Names {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let name = name.to_lowercase();
        Box::pin(async move {
            // Some time on the way, as with a domain controller.
            tokio::time::sleep(Duration::from_millis(50)).await;
            match name.as_str() {
                "1000" | "alice" | r"corp\alice" | "alice@corp.example" => {
                    Ok(Some(AccountId::new("1000")))
                }
                "1001" | "bob" => Ok(Some(AccountId::new("1001"))),
                "panics" => panic!("on purpose"),
                "unavailable" => Err(ResolveError::TimedOut {
                    name,
                    limit: Duration::from_secs(5),
                }),
                _ => Ok(None),
            }
        })
    }
}

type Seen = Arc<Mutex<Vec<String>>>;

async fn on_action(action: UserAction, State(seen): State<Seen>) {
    seen.lock().unwrap().push(action.user_id.to_string());
}

/// Answers some versions with a request for the agent's account.
async fn on_started(
    started: AgentStarted,
    peer: Peer,
    State(seen): State<Seen>,
) -> Option<Reply<BackupRequest>> {
    seen.lock().unwrap().push(started.user_id.to_string());
    (started.agent_version == "reply-please").then(|| Reply(request_for(peer.account().as_str())))
}

fn request_for(user: &str) -> BackupRequest {
    BackupRequest::new(user, Timestamp::UNIX_EPOCH, [Category::Files])
}

async fn serve_names(seen: &Seen) -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(Arc::clone(seen))
        .handle(on_action)
        .handle(on_started)
        .build()
        .unwrap();
    serve_with(dispatcher, |server| server.account_resolver(Names)).await
}

fn action_of(user: &str) -> Value {
    json!({"userId": user, "action": "x"})
}

#[tokio::test(start_paused = true)]
async fn a_name_of_the_peers_own_account_is_replaced_by_the_canonical_id() {
    let seen = Seen::default();
    let (_server, connector) = serve_names(&seen).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let names = [
        "",
        "1000",
        "alice",
        "ALICE",
        r"CORP\Alice",
        "alice@corp.example",
        "alice",
    ];
    for name in names {
        peer.send("USER_ACTION", action_of(name)).await;
        assert_eq!(
            peer.receive_acknowledgment().await["success"],
            true,
            "{name:?}"
        );
    }
    peer.send("USER_ACTION", json!({"action": "x"})).await;
    assert_eq!(
        peer.receive_acknowledgment().await["success"],
        true,
        "absent"
    );
    assert_eq!(*seen.lock().unwrap(), vec!["1000"; names.len() + 1]);
}

/// A look-up takes its time; the messages behind it wait, and keep their order.
#[tokio::test(start_paused = true)]
async fn looking_a_name_up_keeps_the_order() {
    let seen = Seen::default();
    let (_server, connector) = serve_names(&seen).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let ids = [
        peer.send("USER_ACTION", action_of("alice")).await,
        peer.send("USER_ACTION", action_of("")).await,
    ];
    for id in ids {
        assert_eq!(peer.receive_acknowledgment().await["originalMessageId"], id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_has_is_replaced_and_counted() {
    let watch = Watch::begin();
    let seen = Seen::default();
    let (_server, connector) = serve_names(&seen).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for name in ["S-1-5-21-1-2-3-4", "testuser", "unavailable"] {
        peer.send("USER_ACTION", action_of(name)).await;
        assert_eq!(
            peer.receive_acknowledgment().await["success"],
            true,
            "{name:?}"
        );
    }
    assert_eq!(*seen.lock().unwrap(), ["1000", "1000", "1000"]);
    assert_eq!(watch.counter("ipc_refusals_total", "unresolved_user"), 3);
}

/// A resolver is code of the program's. What it did not decide is decided by nobody.
#[tokio::test(start_paused = true)]
async fn a_resolver_that_panics_is_a_refusal_and_the_connection_lives_on() {
    let seen = Seen::default();
    let (_server, connector) = serve_names(&seen).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 10).await;
    peer.send("USER_ACTION", action_of("panics")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["code"], "handler_panicked");
    assert!(seen.lock().unwrap().is_empty(), "no handler saw it");
    peer.send("AGENT_STARTED", agent_started("panics", "1"))
        .await;
    assert_eq!(peer.receive_acknowledgment().await["success"], false);
    peer.send("USER_ACTION", action_of("alice")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_names_another_account_is_refused_and_audited() {
    let watch = Watch::begin();
    let seen = Seen::default();
    let (server, connector) = serve_names(&seen).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 10).await;
    peer.send("USER_ACTION", action_of("bob")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(
        (&answer["success"], &answer["code"]),
        (&json!(false), &json!("identity_mismatch"))
    );
    peer.send("USER_ACTION", action_of("alice")).await;
    assert_eq!(
        peer.receive_acknowledgment().await["success"],
        true,
        "it lives on"
    );
    assert_eq!(*seen.lock().unwrap(), ["1000"], "no handler saw the other");
    let warnings = watch.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    for part in ["migration_ipc::audit", "account 1000", "1001"] {
        assert!(warnings[0].contains(part), "{}", warnings[0]);
    }
    assert_eq!(watch.counter("ipc_refusals_total", "identity_mismatch"), 1);
    assert_eq!(server.connections().counts().total(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_keeps_naming_other_accounts_is_disconnected() {
    let seen = Seen::default();
    let (server, connector) = serve_names(&seen).await;
    let mut events = server.events();
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let mut bytes = Vec::new();
    for _ in 0..10 {
        bytes.extend(peer.frame("USER_ACTION", action_of("1001")).1);
    }
    peer.write(&bytes).await;
    let answers = peer.receive_to_end().await;
    assert_eq!(answers.len(), 10, "each is told why");
    assert!(
        answers
            .iter()
            .all(|answer| answer["payload"]["success"] == false)
    );
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::IdentityMismatch
    );
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_announcement_of_another_account_announces_nothing() {
    let (server, connector) = serve_names(&Seen::default()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("AGENT_STARTED", agent_started("bob", "1")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], false);
    let counts = server.connections().counts();
    assert_eq!((counts.identified, counts.announced), (1, 0));
    for account in ["1000", "1001"] {
        let sent = server
            .send_to_user(&AccountId::new(account), request_for(account))
            .unwrap();
        assert!(sent.had_no_recipient());
    }
}

/// Deployed agents compare the text of the `userId` that they get with what they announced.
#[tokio::test(start_paused = true)]
async fn to_an_announced_agent_its_account_is_written_as_it_announced_it() {
    let (server, connector) = serve_names(&Seen::default()).await;
    let mut peers = Vec::new();
    for spelling in [r"Corp\ALICE", "1000", "", "nobody in particular"] {
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        let mut started = agent_started(spelling, "1");
        started["agentVersion"] = json!("reply-please");
        peer.send("AGENT_STARTED", started).await;
        let expected = if spelling.is_empty() {
            "1000"
        } else {
            spelling
        };
        let reply = peer.receive_type("BACKUP_REQUEST").await;
        assert_eq!(reply["payload"]["userId"], expected, "in a reply");
        peers.push((peer, expected));
    }
    let sent = server
        .send_to_user(&AccountId::new("1000"), request_for("1000"))
        .unwrap();
    assert_eq!(sent.accepted.len(), peers.len());
    for (peer, expected) in &mut peers {
        let sent = peer.receive_type("BACKUP_REQUEST").await;
        assert_eq!(
            sent["payload"]["userId"], *expected,
            "in a message of its own"
        );
    }
    // What names somebody else is left as it is.
    for connection in server.connections().announced() {
        connection.send(request_for("1001")).await.unwrap();
    }
    for (peer, _) in &mut peers {
        assert_eq!(
            peer.receive_type("BACKUP_REQUEST").await["payload"]["userId"],
            "1001"
        );
    }
}

/// An agent that starts anew on the same connection is what it announced last.
#[tokio::test(start_paused = true)]
async fn a_second_announcement_takes_the_place_of_the_first() {
    let (server, connector) = serve_names(&Seen::default()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for session in ["1", "2"] {
        peer.send("AGENT_STARTED", agent_started("alice", session))
            .await;
        peer.receive_acknowledgment().await;
    }
    let connections = server.connections();
    let alice = AccountId::new("1000");
    assert_eq!(connections.by_session(&alice, &"1".into()).len(), 0);
    assert_eq!(connections.by_session(&alice, &"2".into()).len(), 1);
    assert_eq!(connections.by_user(&AccountId::new("1000")).len(), 1);
    assert_eq!(connections.counts().announced, 1);
    drop(peer);
    eventually("nobody is left", || connections.counts().total() == 0).await;
    assert_eq!(connections.by_session(&alice, &"2".into()).len(), 0);
}
