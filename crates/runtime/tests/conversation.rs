//! A server and clients talk: handlers, answers, addressing, the end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::*;
use migration_ipc::messages::{
    AgentStarted, BackupProgress, BackupRequest, Category, ErrorReport, OverallStatus, Percent,
    StatusUpdate, UserAction,
};
use migration_ipc::{
    AccountId, Answer, Clock, ConnectionConfig, ConnectionEvent, DisconnectReason, HandlerError,
    HandlerOptions, IpcClient, MessageDispatcher, MessageInfo, Observed, Peer, Reply, Role,
    SendError, ServiceKind, SessionId, State, Timestamp,
};

type Seen = Arc<Mutex<Vec<String>>>;

async fn on_started(started: AgentStarted, peer: Peer) -> Option<Reply<BackupRequest>> {
    (started.agent_version == "reply-please").then(|| {
        Reply(BackupRequest::new(
            peer.account().as_str(),
            Timestamp::UNIX_EPOCH,
            [Category::Files],
        ))
    })
}

async fn on_progress(progress: BackupProgress, State(seen): State<Seen>) {
    seen.lock().unwrap().push(format!(
        "{} {}",
        progress.user_id, progress.bytes_transferred
    ));
}

async fn on_error(report: ErrorReport) -> Result<(), HandlerError> {
    if report.error_code == "panic" {
        panic!("as asked");
    }
    Err(HandlerError::new("boom"))
}

fn service(seen: &Seen) -> MessageDispatcher {
    MessageDispatcher::builder(Arc::clone(seen))
        .handle(on_started)
        .handle(on_progress)
        .handle(on_error)
        .build()
        .unwrap()
}

fn announcement() -> AgentStarted {
    AgentStarted::new("", "1.0.0", "s1")
}

fn progress_of(bytes: u64) -> BackupProgress {
    BackupProgress::new("", Category::Files, Percent::of(1, 2), bytes, 1000)
}

#[tokio::test(start_paused = true)]
async fn a_message_is_handled_and_acknowledged() {
    let seen = Seen::default();
    let (server, connector) = serve(service(&seen)).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client()
        .announce(&announcement())
        .connect_over(stream)
        .await
        .unwrap();
    assert!(matches!(client.service_kind(), ServiceKind::New(_)));
    let answer = client.send_acknowledged(progress_of(7)).await.unwrap();
    assert!(matches!(answer, Answer::Handled));
    assert_eq!(*seen.lock().unwrap(), ["1000 7"]);
    assert_eq!(client.disconnect().await, DisconnectReason::ClosedLocally);
    assert_eq!(server.stop(PATIENCE).await.unhandled_messages, 0);
}

#[tokio::test(start_paused = true)]
async fn failures_are_answers_and_the_connection_lives_on() {
    let seen = Seen::default();
    let (_server, connector) = serve(service(&seen)).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    for (code, expected) in [("x", "boom"), ("panic", "the handler panicked: as asked")] {
        match client
            .send_acknowledged(ErrorReport::new("", code, "text"))
            .await
        {
            Err(SendError::Rejected(rejection)) => assert_eq!(rejection.error, expected),
            other => panic!("{other:?}"),
        }
    }
    match client
        .send_acknowledged(UserAction::new("", "opened"))
        .await
    {
        Err(SendError::Rejected(rejection)) => {
            assert_eq!(
                rejection.error,
                "No handler registered for message type: USER_ACTION"
            );
        }
        other => panic!("{other:?}"),
    }
    client.send_acknowledged(progress_of(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_reply_to_an_announcement_reaches_its_handler() {
    let (_server, connector) = serve(service(&Seen::default())).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let (dispatcher, mut incoming) = MessageDispatcher::into_channel(8);
    let mut client = IpcClient::builder(dispatcher)
        .announce(&AgentStarted::new("jdoe", "reply-please", "s1"))
        .connect_over(stream)
        .await
        .unwrap();
    client.announced().await.unwrap();
    let (message, _) = incoming.recv().await.unwrap();
    let request: BackupRequest = message.payload().unwrap();
    // Nobody is called jdoe here, so the name counts as the agent's own spelling.
    assert_eq!(request.user_id, "jdoe");
}

#[tokio::test(start_paused = true)]
async fn only_announced_connections_are_addressable() {
    let (server, connector) = serve(service(&Seen::default())).await;
    let mut events = server.events();
    let (dispatcher, mut incoming) = MessageDispatcher::into_channel(8);
    let stream = connector.connect(user("1000")).await.unwrap();
    let quiet = client().connect_over(stream).await.unwrap();
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut agent = IpcClient::builder(dispatcher)
        .announce(&announcement())
        .connect_over(stream)
        .await
        .unwrap();
    agent.announced().await.unwrap();

    let status = StatusUpdate::new(OverallStatus::Waiting, vec![], vec![], 1);
    assert_eq!(server.broadcast(&status).unwrap().accepted.len(), 1);
    let user = AccountId::new("1000");
    assert_eq!(
        server
            .send_to_user(&user, status.clone())
            .unwrap()
            .accepted
            .len(),
        1
    );
    let session = SessionId::from("s1");
    assert_eq!(
        server
            .send_to_session(&user, &session, status.clone())
            .unwrap()
            .accepted
            .len(),
        1
    );
    assert!(
        server
            .send_to_user(&AccountId::new("1"), status)
            .unwrap()
            .had_no_recipient()
    );
    for _ in 0..3 {
        assert_eq!(
            incoming.recv().await.unwrap().0.message_type,
            "STATUS_UPDATE"
        );
    }

    let counts = server.connections().counts();
    assert_eq!(
        (counts.identified, counts.announced, counts.total()),
        (1, 1, 2)
    );
    drop(quiet);
    agent.disconnect().await;
    eventually("both connections are gone", || {
        server.connections().counts().total() == 0
    })
    .await;
    let mut kinds = Vec::new();
    while kinds.len() < 5 {
        match events.recv().await.unwrap() {
            Observed::Item(ConnectionEvent::Connected { .. }) => kinds.push("connected"),
            Observed::Item(ConnectionEvent::Announced { .. }) => kinds.push("announced"),
            Observed::Item(ConnectionEvent::Disconnected { reason, .. }) => {
                assert!(matches!(reason, DisconnectReason::Goodbye(_)), "{reason}");
                kinds.push("disconnected");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        kinds,
        [
            "connected",
            "connected",
            "announced",
            "disconnected",
            "disconnected"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn only_privileged_accounts_are_operators() {
    let (_server, connector) = serve(MessageDispatcher::empty()).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let refused = client()
        .role(Role::Operator)
        .connect_over(stream)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("operators"), "{refused}");
    let stream = connector.connect(administrator()).await.unwrap();
    client()
        .role(Role::Operator)
        .connect_over(stream)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_finishes_handlers_and_says_goodbye() {
    let release = Arc::new(tokio::sync::Notify::new());
    let dispatcher = MessageDispatcher::builder(Arc::clone(&release))
        .handle(
            |_: BackupProgress, State(release): State<Arc<tokio::sync::Notify>>| async move {
                release.notified().await;
            },
        )
        .build()
        .unwrap();
    let (server, connector) = serve(dispatcher).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    let connection = client.connection().clone();
    let first = tokio::spawn(async move { connection.send_acknowledged(progress_of(1)).await });
    let connection = client.connection().clone();
    let second = tokio::spawn(async move { connection.send_acknowledged(progress_of(2)).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let stopping = tokio::spawn(server.stop(Duration::from_secs(5)));
    tokio::time::sleep(Duration::from_millis(10)).await;
    release.notify_one();
    assert!(matches!(first.await.unwrap(), Ok(Answer::Handled)));
    match second.await.unwrap() {
        Err(SendError::Rejected(rejection)) => assert!(rejection.is_retryable()),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        client.closed().await,
        DisconnectReason::Goodbye("stopping".into())
    );
    let report = stopping.await.unwrap();
    assert_eq!(
        (
            report.connections,
            report.unhandled_messages,
            report.unsent_messages
        ),
        (1, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_registration_sends_no_acknowledgment() {
    let seen = Seen::default();
    let dispatcher = MessageDispatcher::builder(Arc::clone(&seen))
        .handle_with(HandlerOptions::new().silent(), on_progress)
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("BACKUP_PROGRESS", progress(3)).await;
    peer.send("BACKUP_STARTED", serde_json::json!({})).await;
    assert_eq!(peer.receive().await["payload"]["originalMessageId"], "m2");
    assert_eq!(*seen.lock().unwrap(), ["1000 3"]);
}

async fn on_dated(_: UserAction, info: MessageInfo, State(dates): State<Seen>) {
    dates.lock().unwrap().push(info.timestamp.to_string());
}

#[tokio::test(start_paused = true)]
async fn messages_are_dated_by_the_clock_of_their_connection() {
    let dates = Seen::default();
    let dispatcher = MessageDispatcher::builder(Arc::clone(&dates)).handle(on_dated);
    let (_server, connector) = serve(dispatcher.build().unwrap()).await;
    let config = ConnectionConfig {
        clock: Clock::from_fn(|| SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)),
        ..ConnectionConfig::default()
    };
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connection_config(config);
    let client = client.connect_over(stream).await.unwrap();
    let action = UserAction::new("", "look at the clock");
    client.send_acknowledged(action).await.unwrap();
    assert_eq!(*dates.lock().unwrap(), ["1970-01-02T00:00:00Z"]);
}
