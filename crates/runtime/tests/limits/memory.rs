//! What becomes of connections whose account holds as much memory as it may. How much that really
//! is, `account_memory` counts.

use migration_ipc::DisconnectReason;

use super::*;
use migration_ipc::messages::DelayRequest;

async fn on_stuck(_: DelayRequest, State(gate): State<Gate>) {
    gate.pass().await;
}

fn big_delay(peer: &mut WirePeer) -> Vec<u8> {
    let mut payload = serde_json::json!({"requestedDelay": 1, "delaysUsed": 0});
    payload["reason"] = "x".repeat(20 * 1024).into();
    peer.frame("DELAY_REQUEST", payload).1
}

async fn stuck_server(gate: &Gate, account: AccountLimits) -> (IpcServer, MemoryConnector) {
    let dispatcher = MessageDispatcher::builder(gate.clone())
        .handle(on_stuck)
        .handle(|_: UserAction| async {})
        .build()
        .unwrap();
    let limits = ServerLimits {
        account,
        ..ServerLimits::default()
    };
    serve_with(dispatcher, |server| server.limits(limits)).await
}

/// Five connections with a stuck handler each, which hold more together than their account may.
async fn hoard(connector: &MemoryConnector) -> Vec<JoinHandle<WirePeer>> {
    let mut hoarders = Vec::new();
    for _ in 0..5 {
        let mut peer = WirePeer::connect(connector, user("mallory")).await;
        hoarders.push(tokio::spawn(async move {
            let message = big_delay(&mut peer);
            for _ in 0..20 {
                if peer.try_write(&message).await.is_err() {
                    break;
                }
            }
            peer
        }));
    }
    settle().await;
    hoarders
}

fn little_memory() -> AccountLimits {
    AccountLimits {
        memory: 100 * 1024,
        ..AccountLimits::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_holds_little_is_served_while_its_account_holds_much() {
    let gate = Gate::closed();
    let (_server, connector) = stuck_server(&gate, little_memory()).await;
    let hoarders = hoard(&connector).await;
    let mut other = WirePeer::connect(&connector, user("mallory")).await;
    for _ in 0..10 {
        other.send("USER_ACTION", action("x")).await;
        assert_eq!(other.receive_acknowledgment().await["success"], true);
    }
    let bystander = bystander(&connector, Duration::from_secs(1)).await;
    within(bystander).await.unwrap();
    assert!(!hoarders.iter().any(JoinHandle::is_finished));
}

/// Whoever waits for memory goes on when there is some, all of them to the end.
#[tokio::test(start_paused = true)]
async fn connections_that_wait_for_memory_go_on_when_there_is_some() {
    let gate = Gate::closed();
    let (server, connector) = stuck_server(&gate, little_memory()).await;
    let hoarders = hoard(&connector).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    gate.open();
    let begun = Instant::now();
    for hoarder in hoarders {
        let mut peer = within(hoarder).await.unwrap();
        for _ in 0..20 {
            let answer = peer.receive_type("ACKNOWLEDGMENT").await;
            assert_eq!(answer["payload"]["success"], true);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "no timer helped");
    eventually("all of them are gone", || {
        server.connections().counts().total() == 0
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_its_accounts_memory_for_too_long_ends() {
    let gate = Gate::closed();
    let (server, connector) = stuck_server(&gate, little_memory()).await;
    let mut events = server.events();
    let begun = Instant::now();
    let _hoarders = hoard(&connector).await;
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::OverMemory
    );
    // Its handler had its grace.
    assert_eq!(begun.elapsed().as_secs(), 60 + 10);
}

/// Frames that arrive in part give nothing back while they wait for the rest. If all of an
/// account's memory is in such frames, they must not wait for each other.
#[tokio::test(start_paused = true)]
async fn frames_that_arrive_in_part_do_not_wait_for_each_other() {
    let gate = Gate::closed();
    gate.open();
    let (_server, connector) = stuck_server(&gate, little_memory()).await;
    let mut peers = Vec::new();
    for _ in 0..10 {
        let mut peer = WirePeer::connect(&connector, user("mallory")).await;
        let message = big_delay(&mut peer);
        let (begin, rest) = message.split_at(message.len() - 1);
        peer.write(begin).await;
        peers.push((peer, rest.to_vec()));
    }
    settle().await;
    let begun = Instant::now();
    for (peer, rest) in &mut peers {
        peer.write(rest).await;
    }
    for (peer, _) in &mut peers {
        let answer = peer.receive_type("ACKNOWLEDGMENT").await;
        assert_eq!(answer["payload"]["success"], true);
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
}
