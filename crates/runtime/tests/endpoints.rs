//! Server and client over the operating system's endpoints.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, UserAction};
use migration_ipc::transport::{self, ConnectError as TransportError};
use migration_ipc::{
    Answer, ConnectError, DisconnectReason, EncodeError, Endpoint, IpcClient, IpcServer,
    MessageDispatcher, Peer, Reply, Role, SendError, ServiceKind, StartError, Trust,
};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// Says the action's details back, and who asked.
async fn echo(action: UserAction, peer: Peer) -> Reply<ConfigurationUpdate> {
    let said = action.details.get("said").cloned().unwrap_or_default();
    Reply(ConfigurationUpdate::new(peer.account().as_str(), said))
}

async fn start(endpoint: Endpoint) -> Result<IpcServer, StartError> {
    let dispatcher = MessageDispatcher::builder(())
        .handle(echo)
        .handle(|_: AgentStarted| async {})
        .build()
        .unwrap();
    IpcServer::builder(dispatcher)
        .endpoint_with(endpoint, development())
        .start()
        .await
}

async fn connect(endpoint: Endpoint) -> Result<IpcClient, ConnectError> {
    within(
        client()
            .endpoint(endpoint)
            .trust(Trust::OwnAccount)
            .connect_timeout(PATIENCE)
            .connect(),
    )
    .await
}

fn saying(text: &str) -> UserAction {
    UserAction::new("", "say").with_detail("said", text)
}

async fn echoed(client: &IpcClient, text: &str) -> ConfigurationUpdate {
    match within(client.send_acknowledged(saying(text))).await {
        Ok(Answer::Replied(reply)) => reply.payload().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn both_ends_talk_and_know_each_other() {
    let place = Place::new("talk");
    let server = start(place.endpoint()).await.unwrap();
    let client = connect(place.endpoint()).await.unwrap();
    assert!(matches!(client.service_kind(), ServiceKind::New(_)));
    let echo = echoed(&client, "hello").await;
    assert_eq!(echo.value, "hello");
    // Both ends are this account.
    assert_eq!(echo.key, client.connection().peer().account().as_str());
    let connection = only_connection(&server).await;
    assert!(connection.peer().is_operator(), "{:?}", connection.peer());
    assert!(connection.last_message_at().unwrap() >= connection.connected_at());
}

#[tokio::test]
async fn messages_of_every_size_arrive() {
    let place = Place::new("sizes");
    let _server = start(place.endpoint()).await.unwrap();
    let client = connect(place.endpoint()).await.unwrap();
    for size in [0, 1, 4095, 65_535, 65_536, 65_537, 300_000, 1_048_576 - 500] {
        let text = "x".repeat(size);
        let Value::String(said) = echoed(&client, &text).await.value else {
            panic!("it was a text")
        };
        assert!(said == text, "{size}");
    }
}

#[tokio::test]
async fn a_message_over_1_mib_is_refused_at_its_sender_and_named_with_its_size() {
    let place = Place::new("over");
    let _server = start(place.endpoint()).await.unwrap();
    let client = connect(place.endpoint()).await.unwrap();
    let error = client
        .send(saying(&"x".repeat(1_048_576)))
        .await
        .unwrap_err();
    let SendError::Encode(error) = error else {
        panic!("{error:?}")
    };
    let EncodeError::TooLarge { size, limit } = *error else {
        panic!("{error:?}")
    };
    assert_eq!(limit, 1_048_576);
    assert!((limit + 1..limit + 500).contains(&size), "{size}");
    // Not a byte of it was written: the next message is understood.
    assert_eq!(echoed(&client, "after").await.value, "after");
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once_that_names_the_endpoint() {
    let place = Place::new("nobody");
    let begun = Instant::now();
    let error = connect(place.endpoint()).await.unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Transport(TransportError::NotRunning { .. })
        ),
        "{error:?}"
    );
    assert!(
        error.to_string().contains(&place.endpoint().to_string()),
        "{error}"
    );
    assert!(
        begun.elapsed() < PATIENCE / 2,
        "it did not wait for the timeout"
    );
}

/// A service that is there and stuck: nobody accepts, or nobody answers.
#[tokio::test]
async fn a_service_that_does_not_answer_in_time_is_an_error() {
    let place = Place::new("stuck");
    let _listener = transport::bind(&place.endpoint(), &development())
        .await
        .unwrap();
    let limit = Duration::from_millis(300);
    let begun = Instant::now();
    let connecting = client()
        .endpoint(place.endpoint())
        .trust(Trust::OwnAccount)
        .connect_timeout(limit)
        .connect();
    let error = within(connecting).await.unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::TimedOut(_) | ConnectError::Transport(TransportError::TimedOut { .. })
        ),
        "{error:?}"
    );
    assert!(begun.elapsed() >= limit);
}

#[tokio::test]
async fn a_client_survives_a_restart_of_its_service_by_connecting_again() {
    let place = Place::new("restart");
    for round in 0..3 {
        let server = start(place.endpoint()).await.unwrap();
        let client = connect(place.endpoint()).await.unwrap();
        assert_eq!(echoed(&client, "x").await.value, "x", "round {round}");
        let stopping = tokio::spawn(server.stop(PATIENCE));
        assert_eq!(
            within(client.closed()).await,
            DisconnectReason::Goodbye("stopping".into())
        );
        drop(client);
        let report = within(stopping).await.unwrap();
        assert_eq!((report.connections, report.unsent_messages), (1, 0));
        assert!(
            connect(place.endpoint()).await.is_err(),
            "nobody is there in between"
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_stopped_server_leaves_nothing_in_its_folder() {
    let place = Place::new("remains");
    let server = start(place.endpoint()).await.unwrap();
    assert!(place.endpoint().address().exists());
    within(server.stop(PATIENCE)).await;
    let left: Vec<_> = std::fs::read_dir(place.folder()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Wine lets anybody add an instance to a pipe; the transport's own tests say what Windows does.
#[cfg(unix)]
#[tokio::test]
async fn a_second_server_at_one_endpoint_is_refused_and_the_first_goes_on() {
    let place = Place::new("second");
    let _first = start(place.endpoint()).await.unwrap();
    let error = start(place.endpoint()).await.unwrap_err();
    assert!(
        matches!(error, StartError::Bind(transport::BindError::InUse { .. })),
        "{error:?}"
    );
    assert!(
        error.to_string().contains(&place.endpoint().to_string()),
        "{error}"
    );
    let client = connect(place.endpoint()).await.unwrap();
    assert_eq!(echoed(&client, "still here").await.value, "still here");
}

#[tokio::test]
async fn one_server_serves_several_endpoints() {
    let (first, second) = (Place::new("first"), Place::new("second"));
    let dispatcher = MessageDispatcher::builder(()).handle(echo).build().unwrap();
    let server = IpcServer::builder(dispatcher)
        .endpoint_with(first.endpoint(), development())
        .endpoint_with(second.endpoint(), development())
        .start()
        .await
        .unwrap();
    for place in [&first, &second] {
        let client = connect(place.endpoint()).await.unwrap();
        assert_eq!(echoed(&client, "x").await.value, "x");
        client.disconnect().await;
    }
    within(server.stop(PATIENCE)).await;
    for place in [&first, &second] {
        assert!(connect(place.endpoint()).await.is_err());
    }
}

#[tokio::test]
async fn the_account_that_runs_the_service_may_be_an_operator() {
    let place = Place::new("operator");
    let _server = start(place.endpoint()).await.unwrap();
    let operator = client()
        .role(Role::Operator)
        .endpoint(place.endpoint())
        .trust(Trust::OwnAccount)
        .connect();
    within(operator).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_client_has_its_reason() {
    let place = Place::new("ends");
    let server = start(place.endpoint()).await.unwrap();
    let mut events = server.events();

    let client = connect(place.endpoint()).await.unwrap();
    assert_eq!(
        within(client.disconnect()).await,
        DisconnectReason::ClosedLocally
    );
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::Goodbye("done".into())
    );

    drop(connect(place.endpoint()).await.unwrap());
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::Goodbye("done".into())
    );

    let mut stream = place.open(PATIENCE).await.unwrap();
    stream.write_all(&[200, 0, 0, 0, b'{']).await.unwrap();
    stream.flush().await.unwrap();
    // The server has read it: on Windows only then it knows whose it is.
    eventually("the client is known", || {
        server.connections().counts().identified == 1
    })
    .await;
    drop(stream);
    assert_eq!(
        next_end(&mut events).await.reason,
        DisconnectReason::TruncatedFrame
    );
    assert_eq!(server.connections().counts().total(), 0);
}

/// A fire-and-forget client: it writes, and is gone before anybody reads.
#[tokio::test]
async fn what_a_client_wrote_before_it_left_is_handled() {
    let place = Place::new("forget");
    let (dispatcher, mut incoming) = MessageDispatcher::into_channel(16);
    let _server = IpcServer::builder(dispatcher)
        .endpoint_with(place.endpoint(), development())
        .start()
        .await
        .unwrap();
    let stream = place.open(PATIENCE).await.unwrap();
    let mut peer = WirePeer::over_boxed(stream);
    for _ in 0..10 {
        peer.send("USER_ACTION", action("x")).await;
    }
    drop(peer);
    for number in 1..=10 {
        let (message, _) = within(incoming.recv()).await.unwrap();
        assert_eq!(message.id.to_string(), format!("m{number}"));
    }
}

/// Writes wait for a reader in the system's buffers, and go on from there.
#[tokio::test]
async fn a_flood_through_a_slow_reader_arrives_whole_and_in_order() {
    let place = Place::new("flood");
    let server = start(place.endpoint()).await.unwrap();
    let stream = place.open(PATIENCE).await.unwrap();
    let mut peer = WirePeer::over_boxed(stream);
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    peer.receive_acknowledgment().await;
    let connection = only_connection(&server).await;
    let sending = tokio::spawn(async move {
        for number in 0..200 {
            let key = "k".repeat(number * 331 % 30_000);
            connection
                .send(ConfigurationUpdate::new(key, number.into()))
                .await
                .unwrap();
        }
    });
    for number in 0..200 {
        assert_eq!(within(peer.receive()).await["payload"]["value"], number);
    }
    within(sending).await.unwrap();
}
