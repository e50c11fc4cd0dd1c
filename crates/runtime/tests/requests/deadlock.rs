//! A handler that awaits a reply on its own connection, with everything full that can be.

use std::time::Duration;

use migration_ipc::{
    ConnectionConfig, HandlerError, HandlerOptions, IpcClient, IpcConnection, MessageDispatcher,
    Reply,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::*;
use crate::stage::*;

/// Two messages, and the connection is full: the inboxes, and so the credit, the lanes, and the
/// table of those that wait for an answer.
fn narrow() -> ConnectionConfig {
    let mut config = ConnectionConfig::default();
    config.limits.inbox_messages = 2;
    config.limits.outbound_messages = 2;
    config.limits.in_flight = 4;
    config
}

/// Sends so many requests at once, and expects each reply.
fn ask_often(asking: &mut JoinSet<()>, connection: &IpcConnection, what: &'static str, times: u32) {
    for _ in 0..times {
        let pending = connection
            .request(ask(what))
            .within(Duration::from_secs(600));
        asking.spawn(async move {
            pending.await.unwrap();
        });
    }
}

/// Nothing of it waits for a deadline: no time passes.
async fn all_answered(mut asking: JoinSet<()>, began: Instant) {
    within(async {
        while let Some(asked) = asking.join_next().await {
            asked.unwrap();
        }
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_a_server_awaits_a_reply_while_everything_is_full() {
    let ends = ends_with(&Stage::new(), &Stage::new(), narrow()).await;
    let (mut asking, began) = (JoinSet::new(), Instant::now());
    for _ in 0..10 {
        ask_often(&mut asking, ends.client.connection(), "back", 10);
        ask_often(&mut asking, ends.client.connection(), "x", 10);
        ask_often(&mut asking, &ends.at_server, "x", 20);
    }
    all_answered(asking, began).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_a_client_awaits_a_reply_while_everything_is_full() {
    let ends = ends_with(&Stage::new(), &Stage::new(), narrow()).await;
    let (mut asking, began) = (JoinSet::new(), Instant::now());
    for _ in 0..10 {
        ask_often(&mut asking, &ends.at_server, "back", 10);
        ask_often(&mut asking, &ends.at_server, "x", 10);
        ask_often(&mut asking, ends.client.connection(), "x", 20);
    }
    all_answered(asking, began).await;
}

/// Streams take part: their items are behind no credit.
#[tokio::test(start_paused = true)]
async fn streams_go_on_while_everything_is_full() {
    let ends = ends_with(&Stage::new(), &Stage::new(), narrow()).await;
    let (mut asking, began) = (JoinSet::new(), Instant::now());
    ask_often(&mut asking, ends.client.connection(), "back", 50);
    ask_often(&mut asking, &ends.at_server, "x", 50);
    for connection in [ends.client.connection(), &ends.at_server] {
        for _ in 0..5 {
            let pending = connection.request_stream(Count { to: 50 }).window(3);
            asking.spawn(async move {
                let mut stream = pending.await.unwrap();
                for number in 1..=50 {
                    assert_eq!(stream.next().await.unwrap().unwrap().number, number);
                }
                assert_eq!(stream.finish().await.unwrap().sum, 1275);
            });
        }
    }
    all_answered(asking, began).await;
}

/// Each handler asks the other end's, down to nothing.
async fn on_countdown(count: Ask, connection: IpcConnection) -> Result<Reply<Told>, HandlerError> {
    let left: u32 = count.what.parse()?;
    if left > 0 {
        let less = ask(&(left - 1).to_string());
        return Ok(Reply(connection.request(less).await?));
    }
    Ok(Reply(Told {
        text: "down".into(),
    }))
}

#[tokio::test(start_paused = true)]
async fn handlers_that_wait_for_each_other_go_on_when_their_type_is_concurrent() {
    let dispatcher = || {
        MessageDispatcher::builder(())
            .handle_with(HandlerOptions::new().concurrent(), on_countdown)
            .build()
            .unwrap()
    };
    let (server, connector) = serve(dispatcher()).await;
    let client = IpcClient::builder(dispatcher())
        .connect_over(connector.connect(user("1000")).await.unwrap())
        .await
        .unwrap();
    let at_server = only_connection(&server).await;
    let (mut asking, began) = (JoinSet::new(), Instant::now());
    ask_often(&mut asking, client.connection(), "20", 3);
    ask_often(&mut asking, &at_server, "20", 3);
    all_answered(asking, began).await;
}

/// One after the other they cannot: then the deadline parts them, and the connection lives.
#[tokio::test(start_paused = true)]
async fn handlers_that_wait_for_each_other_in_turn_are_parted_by_their_deadline() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    let one = tokio::spawn(ends.client.request(ask("back")).into_future());
    let other = tokio::spawn(ends.at_server.request(ask("back")).into_future());
    let began = Instant::now();
    for asking in [one, other] {
        let outcome = tokio::time::timeout(LONG_PATIENCE, asking).await;
        assert!(outcome.unwrap().unwrap().is_err());
    }
    assert_eq!(began.elapsed().as_secs(), 30);
    assert_eq!(ends.client.request(ask("x")).await.unwrap().text, "x");
}
