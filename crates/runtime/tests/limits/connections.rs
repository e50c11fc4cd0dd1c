//! How many connections an account gets, and for whom the rest is kept.

use migration_ipc::transport::memory::{MemoryConnector, MemoryStream};

use super::*;

/// Whether a connection of this account is served. It stays open.
async fn is_served(connector: &MemoryConnector, peer: migration_ipc::PeerIdentity) -> bool {
    let mut peer = WirePeer::connect(connector, peer).await;
    if peer.try_write(&peer_message()).await.is_err() {
        return false;
    }
    let answer = peer.receive_or_end().await;
    // It holds its place.
    std::mem::forget(peer);
    answer.is_some()
}

fn peer_message() -> Vec<u8> {
    frame(&envelope("a", "USER_ACTION", action("x")).to_string())
}

async fn connect_many(
    connector: &MemoryConnector,
    account: &str,
    count: usize,
) -> Vec<MemoryStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(connector.connect(user(account)).await.unwrap());
    }
    settle().await;
    streams
}

#[tokio::test(start_paused = true)]
async fn a_thousand_connections_of_one_account_keep_no_other_account_out() {
    let watch = Watch::begin();
    let dispatcher = MessageDispatcher::builder(Handled::default())
        .handle(on_action)
        .build()
        .unwrap();
    // Fewer than the thousand, so that they would fill everything.
    let limits = ServerLimits {
        connections: 600,
        reserved_connections: 100,
        ..ServerLimits::default()
    };
    let (server, connector) = serve_with(dispatcher, |server| server.limits(limits)).await;
    let flood = connect_many(&connector, "mallory", 1000).await;
    let most = limits.account.connections;
    assert_eq!(server.connections().counts().total(), most);
    let refused = watch.counter("ipc_refusals_total", "account_limit");
    assert_eq!(refused, 1000 - most as u64);
    assert!(!is_served(&connector, user("mallory")).await);
    assert!(is_served(&connector, user("alice")).await);
    // It is no punishment: who leaves may come again.
    drop(flood);
    settle().await;
    assert!(is_served(&connector, user("mallory")).await);
}

#[tokio::test(start_paused = true)]
async fn greedy_accounts_together_keep_no_newcomer_and_no_operator_out() {
    let dispatcher = MessageDispatcher::builder(Handled::default())
        .handle(on_action)
        .build()
        .unwrap();
    let limits = ServerLimits {
        connections: 100,
        reserved_connections: 20,
        few_connections: 2,
        operator_connections: 2,
        account: AccountLimits {
            connections: 30,
            ..AccountLimits::default()
        },
        ..ServerLimits::default()
    };
    let (server, connector) = serve_with(dispatcher, |server| server.limits(limits)).await;
    let mut floods = Vec::new();
    for account in ["a", "b", "c", "d"] {
        floods.push(connect_many(&connector, account, 100).await);
    }
    // What is nobody's is gone; the last of the greedy has what is everybody's.
    assert_eq!(server.connections().counts().total(), 78 + 2);
    for number in 0..9 {
        for _ in 0..2 {
            let newcomer = user(&format!("newcomer {number}"));
            assert!(is_served(&connector, newcomer.clone()).await, "{number}");
        }
    }
    assert_eq!(server.connections().counts().total(), 98);
    assert!(!is_served(&connector, user("too late")).await);
    assert!(is_served(&connector, administrator()).await);
    assert!(is_served(&connector, administrator()).await);
    assert!(!is_served(&connector, administrator()).await);
}

/// A burst is accepted before any of its connections has run: on Unix nobody is pending even so.
#[tokio::test(start_paused = true)]
async fn who_is_named_at_accept_is_never_pending() {
    let watch = Watch::begin();
    let (server, connector, _) = serving(AccountLimits::default()).await;
    let (_flood, other) = tokio::join!(
        connect_many(&connector, "mallory", 1000),
        is_served(&connector, user("alice")),
    );
    assert!(other);
    assert_eq!(server.connections().counts().pending, 0);
    assert_eq!(watch.counter("ipc_refusals_total", "pending_limit"), 0);
    assert_eq!(watch.counter("ipc_refusals_total", "gave_way"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_floods_with_connections_harms_no_bystander() {
    let (_server, connector, _) = serving(AccountLimits::default()).await;
    let bystander = bystander(&connector, Duration::from_secs(1)).await;
    for _ in 0..10 {
        drop(connect_many(&connector, "mallory", 500).await);
    }
    within(bystander).await.unwrap();
}
