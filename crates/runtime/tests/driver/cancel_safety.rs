//! Dropping a send at any of its await points leaves the message wholly accepted or wholly absent.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use migration_ipc::messages::UserAction;
use migration_ipc::transport::memory;
use migration_ipc::{ConnectionConfig, IpcConnection, IpcServer, MessageDispatcher, SendError};

use crate::common::*;

/// A connection whose lane holds two messages, over a stream that holds less than one.
async fn crowded() -> (IpcServer, IpcConnection, WirePeer) {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_messages = 2;
    config.limits.in_flight = 3;
    let listening = memory::listen("crowded", administrator(), 64);
    let (server, connector) = serve_on(listening, MessageDispatcher::empty(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    // Whatever it says first, it is a plain peer.
    peer.send("USER_ACTION", action("x")).await;
    peer.receive_acknowledgment().await;
    let connection = only_connection(&server).await;
    (server, connection, peer)
}

/// Polls this many times, letting everybody else work in between, and drops the future.
async fn poll_times<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..times {
        if let Poll::Ready(output) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            return Some(output);
        }
        settle().await;
    }
    None
}

/// Actions that arrive until nothing more comes.
async fn arrived(peer: &mut WirePeer) -> Vec<String> {
    let mut actions = Vec::new();
    let reading = async {
        loop {
            let message = peer.receive_type("USER_ACTION").await;
            actions.push(message["payload"]["action"].as_str().unwrap().to_owned());
        }
    };
    let _ended = tokio::time::timeout(std::time::Duration::from_secs(5), reading).await;
    actions
}

#[tokio::test(start_paused = true)]
async fn a_dropped_send_is_wholly_accepted_or_wholly_absent() {
    for polls in 0..6 {
        let (_server, connection, mut peer) = crowded().await;
        let mut accepted = Vec::new();
        for round in 0..40 {
            let name = format!("{polls}-{round}");
            let sending = connection.send(UserAction::new("", &*name));
            match poll_times(sending, polls).await {
                Some(Ok(_)) => accepted.push(name),
                Some(Err(error)) => panic!("{error}"),
                None => {}
            }
            // Room comes at every moment of a later send.
            if round % 4 == 3 {
                let message = peer.receive_type("USER_ACTION");
                let _none =
                    tokio::time::timeout(std::time::Duration::from_millis(5), message).await;
            }
        }
        drop(connection);
        let rest = arrived(&mut peer).await;
        // What was read meanwhile came before the rest.
        let unread = accepted
            .len()
            .checked_sub(rest.len())
            .expect("nothing else arrives");
        assert_eq!(accepted[unread..], rest);
        assert_eq!(accepted.is_empty(), polls == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_acknowledged_send_arrives_whole_and_once_or_not_at_all() {
    for polls in 0..6 {
        let (_server, connection, mut peer) = crowded().await;
        let sending = |name: &'static str| connection.send_acknowledged(UserAction::new("", name));
        // These are accepted, and two wait in the lane for whoever comes now.
        for name in ["1", "2", "3"] {
            assert!(
                poll_times(sending(name), 1).await.is_none(),
                "it waits for its answer"
            );
        }
        assert!(poll_times(sending("dropped"), polls).await.is_none());
        let actions = arrived(&mut peer).await;
        assert_eq!(
            actions,
            ["1", "2", "3"],
            "no place was free for the dropped one"
        );
    }
}

/// A send that gave up does not keep its place in the table of those that wait for an answer.
#[tokio::test(start_paused = true)]
async fn dropped_sends_hold_no_place_for_ever() {
    let (_server, connection, mut peer) = crowded().await;
    for name in ["1", "2", "3"] {
        let sending = connection.send_acknowledged(UserAction::new("", name));
        assert!(poll_times(sending, 1).await.is_none());
    }
    // Their answers never come; the places are free when the answers' time is over.
    let reading = tokio::spawn(async move { peer.receive_to_end().await });
    let start = tokio::time::Instant::now();
    let sending = connection.send_acknowledged(UserAction::new("", "4"));
    let error = tokio::time::timeout(LONG_PATIENCE, sending)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, SendError::Unanswered), "{error:?}");
    let waited = start.elapsed().as_secs();
    assert!((55..70).contains(&waited), "{waited} s");
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn sends_that_wait_for_room_are_woken_by_it_and_by_the_end() {
    let (_server, connection, mut peer) = crowded().await;
    let sends: Vec<_> = (0..20)
        .map(|number| {
            let connection = connection.clone();
            tokio::spawn(async move {
                connection
                    .send(UserAction::new("", number.to_string()))
                    .await
            })
        })
        .collect();
    settle().await;
    for _ in 0..10 {
        peer.receive_type("USER_ACTION").await;
    }
    drop(peer);
    let (mut accepted, mut refused) = (0, 0);
    for send in sends {
        match within(send).await.unwrap() {
            Ok(_) => accepted += 1,
            Err(SendError::Closed(_)) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(accepted >= 10, "{accepted}");
    assert!(refused > 0, "{refused}");
}

/// Dropping the future of `connect` leaves no connection behind.
#[tokio::test(start_paused = true)]
async fn a_dropped_connect_leaves_no_connection() {
    let (server, connector) = serve(MessageDispatcher::empty()).await;
    for polls in 0..4 {
        let stream = connector.connect(user("1000")).await.unwrap();
        drop(poll_times(client().connect_over(stream), polls).await);
        eventually("the connection is gone", || {
            server.connections().counts().total() == 0
        })
        .await;
    }
}
