//! What every operating system's transport does alike.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use migration_ipc_transport::{
    AccountId, BindError, BindOptions, ConnectError, ConnectOptions, Endpoint, IdentifyWhen,
    Listener, PeerIdentity, ServiceMode, Stream, Trust, account_name, bind, connect_with,
    resolve_account,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("not stuck")
}

/// A bare name means something on each system.
fn endpoint(test: &str) -> Endpoint {
    Endpoint::parse(&format!("mig-seam-{test}-{}", std::process::id())).unwrap()
}

/// As a client of a service in development mode.
async fn connect(endpoint: &Endpoint, limit: Duration) -> Result<Box<dyn Stream>, ConnectError> {
    let options = ConnectOptions::new().trust(Trust::OwnAccount);
    connect_with(endpoint, limit, &options).await
}

async fn serve(endpoint: &Endpoint) -> Result<Box<dyn Listener>, BindError> {
    within(bind(
        endpoint,
        &BindOptions::new().mode(ServiceMode::Development),
    ))
    .await
}

/// A client's end and the service's.
async fn connected(listener: &mut Box<dyn Listener>) -> (Box<dyn Stream>, Box<dyn Stream>) {
    let endpoint = listener.endpoint().clone();
    let (client, server) =
        within(async { tokio::join!(connect(&endpoint, PATIENCE), listener.accept()) }).await;
    (client.unwrap(), server.unwrap())
}

/// The client's identity as the service learns it, after a byte was read where that is needed.
async fn identified(client: &mut Box<dyn Stream>, server: &mut Box<dyn Stream>) -> PeerIdentity {
    client.write_u8(1).await.unwrap();
    within(server.read_u8()).await.unwrap();
    within(server.identify()).await.unwrap()
}

#[tokio::test]
async fn both_ends_know_each_other_as_this_account() {
    let mut listener = serve(&endpoint("identity")).await.unwrap();
    let (mut client, mut server) = connected(&mut listener).await;
    assert_eq!(
        client.identify_when(),
        IdentifyWhen::Now,
        "a client knows its server at once"
    );
    let seen_by_server = identified(&mut client, &mut server).await;
    let seen_by_client = within(client.identify()).await.unwrap();
    assert_eq!(seen_by_server.account(), seen_by_client.account());
    assert!(seen_by_server.is_operator(), "{seen_by_server:?}");
}

#[tokio::test]
async fn bytes_arrive_in_order_however_they_are_grouped() {
    let mut listener = serve(&endpoint("bytes")).await.unwrap();
    let (mut client, mut server) = connected(&mut listener).await;
    let sent: Vec<u8> = (0..300_000_u32)
        .map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
        .collect();
    let write = async {
        let mut rest = sent.as_slice();
        let mut length = 1;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(length.min(rest.len()));
            client.write_all(now).await.unwrap();
            (rest, length) = (later, length * 3 % 70_001);
        }
        client.shutdown().await.unwrap();
        drop(client);
    };
    let mut received = Vec::new();
    let read = async {
        // A pipe tells its client's departure as an error on some systems, after the last byte.
        let _end = server.read_to_end(&mut received).await;
    };
    within(async { tokio::join!(write, read) }).await;
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_writer() {
    let mut listener = serve(&endpoint("pressure")).await.unwrap();
    let (mut client, mut server) = connected(&mut listener).await;
    let mut sent = 0;
    let flood = async {
        loop {
            sent += client.write(&[0; 65_536]).await.unwrap();
            assert!(sent < 64 << 20, "somebody buffers without bound");
        }
    };
    let stopped = tokio::time::timeout(Duration::from_millis(200), flood).await;
    assert!(stopped.is_err());
    let mut received = 0;
    let mut buffer = vec![0; 65_536];
    while received < sent {
        received += within(server.read(&mut buffer)).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once() {
    let error = within(connect(&endpoint("nobody"), PATIENCE))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::NotRunning { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_name_is_free_again_after_its_service() {
    let endpoint = endpoint("again");
    for _ in 0..3 {
        let mut listener = serve(&endpoint).await.unwrap();
        let (client, server) = connected(&mut listener).await;
        drop((client, server, listener));
    }
    assert!(within(connect(&endpoint, PATIENCE)).await.is_err());
}

#[tokio::test]
async fn a_connection_outlives_its_listener() {
    let mut listener = serve(&endpoint("outlive")).await.unwrap();
    let (mut client, mut server) = connected(&mut listener).await;
    drop(listener);
    client.write_u8(7).await.unwrap();
    assert_eq!(within(server.read_u8()).await.unwrap(), 7);
}

#[tokio::test]
async fn a_dropped_accept_loses_no_client() {
    let endpoint = endpoint("cancel");
    let mut listener = serve(&endpoint).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..20 {
        assert!(futures_util::poll!(listener.accept()).is_pending());
        clients.push(within(connect(&endpoint, PATIENCE)).await.unwrap());
        within(listener.accept()).await.unwrap();
    }
}

#[tokio::test]
async fn an_account_and_its_name_lead_to_each_other() {
    let mut listener = serve(&endpoint("account")).await.unwrap();
    let (mut client, mut server) = connected(&mut listener).await;
    let account = identified(&mut client, &mut server).await.account().clone();
    assert_eq!(
        resolve_account(account.as_str()).await.unwrap().as_ref(),
        Some(&account)
    );
    if let Some(name) = account_name(&account).await.unwrap() {
        assert_eq!(
            resolve_account(&name).await.unwrap(),
            Some(account),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_name_that_no_account_has_is_nobody() {
    let endless = "x".repeat(1 << 20);
    for name in ["", "no such account here", "a\0b", &endless] {
        assert_eq!(resolve_account(name).await.unwrap(), None, "{name:.40?}");
    }
    assert_eq!(
        account_name(&AccountId::new("no account id"))
            .await
            .unwrap(),
        None
    );
}

/// More lookups than may run at a time all get their answer, and paused time does not run out
/// meanwhile.
#[tokio::test(start_paused = true)]
async fn lookups_queue_up() {
    let begun = tokio::time::Instant::now();
    let look_up = |i| tokio::spawn(async move { resolve_account(&format!("{i}x")).await });
    let lookups: Vec<_> = (0..50).map(look_up).collect();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap().unwrap(), None);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[test]
fn defaults_are_stable_and_ends_agree() {
    let service = Endpoint::service_default().unwrap();
    assert_eq!(Endpoint::client_default().unwrap(), service);
    assert_eq!(
        Endpoint::parse(&service.to_string()).unwrap(),
        service,
        "what is shown can be given"
    );
}

#[test]
fn what_is_no_endpoint_is_refused() {
    for text in ["", "\0", "a\0b"] {
        assert!(Endpoint::parse(text).is_err(), "{text:?}");
        assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
    }
    assert!(Endpoint::parse(&"x".repeat(1000)).is_err());
}
