//! Connections in memory do as those of the operating systems do. Time stands still here, so a
//! bounded wait costs none.

use std::io;
use std::time::Duration;

use futures_util::poll;
use migration_ipc_transport::{
    AccountId, IdentifyError, IdentifyWhen, Listener, OsSession, PeerIdentity, Privilege, Stream,
    memory,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

fn service() -> PeerIdentity {
    PeerIdentity::new(AccountId::new("0"), Privilege::Administrator)
}

fn agent() -> PeerIdentity {
    PeerIdentity::new(AccountId::new("1000"), Privilege::Ordinary)
        .with_session(OsSession::Id(3))
        .with_process_id(Some(42))
}

async fn is_stuck<T>(future: impl Future<Output = T>) -> bool {
    timeout(Duration::from_secs(3600), future).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn each_end_sees_the_others_identity() {
    let (at_service, at_agent) = memory::pair(service(), agent(), 64);
    assert_eq!(at_service.identify().await.unwrap(), agent());
    assert_eq!(at_agent.identify().await.unwrap(), service());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_stops_the_writer() {
    let (mut at_service, mut at_agent) = memory::pair(service(), agent(), 8);
    at_agent.write_all(&[1; 8]).await.unwrap();
    assert!(is_stuck(at_agent.write_u8(2)).await);
    at_service.read_u8().await.unwrap();
    at_agent.write_u8(2).await.unwrap();
    // The other direction has room of its own.
    at_service.write_all(&[3; 8]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_end_is_the_end_of_the_stream_after_its_last_bytes() {
    let (mut at_service, mut at_agent) = memory::pair(service(), agent(), 64);
    at_agent.write_all(b"bye").await.unwrap();
    drop(at_agent);
    let mut heard = Vec::new();
    at_service.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"bye");
    let error = at_service.write_all(b"?").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn an_end_can_need_bytes_before_it_identifies() {
    let (at_service, mut at_agent) = memory::pair(service(), agent(), 64);
    let mut at_service = at_service.identifying(IdentifyWhen::AfterFirstRead);
    assert_eq!(at_service.identify_when(), IdentifyWhen::AfterFirstRead);
    assert!(is_stuck(at_service.read_u8()).await);
    assert!(matches!(
        at_service.identify().await,
        Err(IdentifyError::TooEarly)
    ));
    at_agent.write_u8(1).await.unwrap();
    assert!(
        matches!(at_service.identify().await, Err(IdentifyError::TooEarly)),
        "not yet read"
    );
    at_service.read_u8().await.unwrap();
    assert_eq!(at_service.identify().await.unwrap(), agent());
    assert_eq!(
        at_agent.identify().await.unwrap(),
        service(),
        "the client knows at once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_listener_hands_out_its_clients() {
    let (listener, connector) = memory::listen("test", service(), 64);
    let mut listener = listener.identifying(IdentifyWhen::AfterFirstRead);
    assert_eq!(listener.endpoint().to_string(), "memory:test");
    assert!(poll!(listener.accept()).is_pending());

    let mut at_agent = connector.clone().connect(agent()).await.unwrap();
    let mut at_service = listener.accept().await.unwrap();
    assert_eq!(at_service.identify_when(), IdentifyWhen::AfterFirstRead);
    at_agent.write_u8(7).await.unwrap();
    assert_eq!(at_service.read_u8().await.unwrap(), 7);
    assert_eq!(at_service.identify().await.unwrap(), agent());
    assert_eq!(at_agent.identify().await.unwrap(), service());
}

#[tokio::test(start_paused = true)]
async fn a_listener_without_clients_waits_even_when_none_can_come() {
    let (mut listener, connector) = memory::listen("test", service(), 64);
    drop(connector);
    assert!(is_stuck(listener.accept()).await);
}

#[tokio::test(start_paused = true)]
async fn clients_wait_for_a_busy_listener_and_are_refused_by_a_dropped_one() {
    let (mut listener, connector) = memory::listen("test", service(), 64);
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_secs(3600), connector.connect(agent())).await {
        waiting.push(connected.unwrap());
        assert!(waiting.len() <= 128, "bounded");
    }
    listener.accept().await.unwrap();
    connector.connect(agent()).await.unwrap();
    drop(listener);
    let error = connector.connect(agent()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(waiting[0].read(&mut [0]).await.unwrap(), 0);
}
