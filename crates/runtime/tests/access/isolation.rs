//! What is one user's does not reach another, and does not change what another sees.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::{
    AccountId, Answer, IpcConnection, MessageDispatcher, Peer, SendError, SessionId, State,
};
use serde_json::{Value, json};

use crate::common::*;

fn dispatcher() -> MessageDispatcher {
    MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .build()
        .unwrap()
}

/// Announced agents of alice, bob and mallory, all in a session of the same name.
async fn three() -> (migration_ipc::IpcServer, [WirePeer; 3]) {
    let (server, connector) = serve(dispatcher()).await;
    let mut peers = Vec::new();
    for account in ["alice", "bob", "mallory"] {
        let mut peer = WirePeer::connect(&connector, user(account)).await;
        peer.hello("agent", 100).await;
        peer.send("AGENT_STARTED", agent_started("", "1")).await;
        peer.receive_acknowledgment().await;
        peers.push(peer);
    }
    let peers = peers.try_into().unwrap_or_else(|_| panic!("three"));
    (server, peers)
}

fn agent_of(server: &migration_ipc::IpcServer, account: &str) -> IpcConnection {
    server
        .connections()
        .by_user(&AccountId::new(account))
        .remove(0)
}

/// Threat: a reply or acknowledgment of somebody else resolves what is waited for.
#[tokio::test(start_paused = true)]
async fn an_answer_over_another_connection_resolves_nothing() {
    let (server, [mut alice, mut bob, mut mallory]) = three().await;
    let connection = agent_of(&server, "alice");
    let waiting =
        tokio::spawn(async move { connection.send_acknowledged(UserAction::new("", "x")).await });
    let question = alice.receive_type("USER_ACTION").await;
    // They know the very id, and try both kinds of answer.
    for peer in [&mut bob, &mut mallory] {
        peer.acknowledge(&question).await;
        peer.reply(&question, "USER_ACTION", action("stolen")).await;
        // What nobody waits for is a message like any other.
        let told = peer.receive_acknowledgment().await;
        assert_eq!(told["success"], false);
    }
    settle().await;
    assert!(!waiting.is_finished());
    alice.acknowledge(&question).await;
    assert!(matches!(
        within(waiting).await.unwrap(),
        Ok(Answer::Handled)
    ));
}

/// The same with guesses: ids are the sender's own, and a guess hits nothing of anybody else.
#[tokio::test(start_paused = true)]
async fn a_refusal_over_another_connection_refuses_nothing() {
    let (server, [mut alice, _, mut mallory]) = three().await;
    let connection = agent_of(&server, "alice");
    let waiting =
        tokio::spawn(async move { connection.send_acknowledged(UserAction::new("", "x")).await });
    let question = alice.receive_type("USER_ACTION").await;
    let mut refusal = acknowledgment(&question);
    refusal["success"] = json!(false);
    refusal["error"] = json!("no");
    mallory.send("ACKNOWLEDGMENT", refusal.clone()).await;
    settle().await;
    assert!(!waiting.is_finished());
    alice.send("ACKNOWLEDGMENT", refusal).await;
    assert!(matches!(
        within(waiting).await.unwrap(),
        Err(SendError::Rejected(_))
    ));
}

/// Threat: whoever names its session as the victim did gets what is for the victim.
#[tokio::test(start_paused = true)]
async fn a_session_of_the_same_name_gets_nothing_of_another_user() {
    let (server, [mut alice, mut bob, mut mallory]) = three().await;
    let session = SessionId::from("1");
    let sent = server
        .send_to_session(
            &AccountId::new("alice"),
            &session,
            UserAction::new("alice", "private"),
        )
        .unwrap();
    assert_eq!(sent.accepted.len(), 1);
    let got = alice.receive_type("USER_ACTION").await;
    assert_eq!(got["payload"]["action"], "private");
    for other in [&mut bob, &mut mallory] {
        assert!(other.is_silent_for(Duration::from_secs(5)).await);
    }
    let of_nobody = server
        .send_to_session(&AccountId::new("carol"), &session, UserAction::new("", "x"))
        .unwrap();
    assert!(of_nobody.had_no_recipient());
}

/// A broadcast is for agents that announced themselves; a connection that did not is told nothing.
#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_announced_agents_alone() {
    let (server, connector) = serve(dispatcher()).await;
    let mut operator = WirePeer::connect(&connector, administrator()).await;
    operator.hello("operator", 100).await;
    let mut lane = WirePeer::connect(&connector, user("alice")).await;
    lane.hello("agent", 100).await;
    let mut liar = WirePeer::connect(&connector, user("bob")).await;
    liar.send("AGENT_STARTED", json!({"userId": 1})).await;
    assert_eq!(liar.receive_acknowledgment().await["success"], false);
    let sent = server.broadcast(&UserAction::new("", "x")).unwrap();
    assert!(sent.had_no_recipient());
    for peer in [&mut operator, &mut lane, &mut liar] {
        assert!(peer.is_silent_for(Duration::from_secs(5)).await);
    }
}

/// Threat: one connection keeps another alive. A heartbeat counts for its own connection, whatever it
/// says of its sender.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_extends_its_own_connection_alone() {
    let (server, [mut alice, bob, mut mallory]) = three().await;
    drop(bob);
    // Alice is silent from now on; mallory sends heartbeats in her name.
    for number in 0..20 {
        let mut forged = heartbeat(number);
        forged["senderId"] = json!("alice");
        forged["userId"] = json!("alice");
        mallory.send("HEARTBEAT", forged).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let alone = server.connections().announced();
    let accounts: Vec<&str> = alone
        .iter()
        .map(|connection| connection.peer().account().as_str())
        .collect();
    assert_eq!(accounts, ["mallory"]);
    let rest = alice.receive_to_end().await;
    assert!(rest.iter().all(|message| message["type"] != "USER_ACTION"));
}

/// Two users, a service that answers each with its own secret, and every kind of sending, in an
/// order that a seed decides: no byte meant for one reaches another.
#[tokio::test(start_paused = true)]
async fn no_byte_meant_for_one_user_reaches_another() {
    const ROUNDS: usize = 2000;

    async fn on_action(action: UserAction, peer: Peer, State(()): State<()>) {
        assert_eq!(action.user_id, peer.account().as_str());
    }

    let seed = std::env::var("MIGRATION_IPC_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::process::id().into());
    println!("MIGRATION_IPC_SEED={seed}");
    let mut random = Random(seed);
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(on_action)
        .build()
        .unwrap();
    let (server, connector) = serve(dispatcher).await;
    let accounts = ["alice", "bob"];
    let mut peers = Vec::new();
    for account in accounts {
        for session in ["1", "2"] {
            let mut peer = WirePeer::connect(&connector, user(account)).await;
            if session == "1" {
                peer.hello("agent", 100_000).await;
            }
            peer.send("AGENT_STARTED", agent_started("", session)).await;
            peer.receive_acknowledgment().await;
            peers.push((account, peer));
        }
    }
    for round in 0..ROUNDS {
        let account = accounts[random.below(2)];
        let named = AccountId::new(account);
        let session = SessionId::from(["1", "2", "3"][random.below(3)]);
        let secret = UserAction::new(account, format!("secret of {account} {round}"));
        match random.below(4) {
            0 => drop(server.send_to_user(&named, secret).unwrap()),
            1 => drop(server.send_to_session(&named, &session, secret).unwrap()),
            2 => {
                for agent in server.connections().by_session(&named, &session) {
                    assert_eq!(agent.peer().account(), &named);
                    agent.try_send(secret.clone()).unwrap();
                }
            }
            _ => {
                let (_, peer) = &mut peers[random.below(4)];
                peer.send("USER_ACTION", action("x")).await;
            }
        }
        if round % 50 == 0 {
            settle().await;
            take_own(&mut peers).await;
        }
    }
    settle().await;
    let taken = take_own(&mut peers).await;
    assert!(taken > 0);
}

/// Takes everything that has arrived: each secret is the taker's own.
async fn take_own(peers: &mut [(&str, WirePeer)]) -> usize {
    let mut taken = 0;
    for (account, peer) in peers {
        while let Ok(Some(message)) =
            tokio::time::timeout(Duration::from_millis(1), peer.receive_or_end()).await
        {
            taken += 1;
            if message["type"] == "USER_ACTION" {
                let action = message["payload"]["action"].as_str().unwrap();
                assert!(
                    action.starts_with(&format!("secret of {account} ")),
                    "{account} got {action}"
                );
                assert_eq!(message["payload"]["userId"], Value::from(*account));
            }
        }
    }
    taken
}

/// xorshift: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}
