//! A reply of many items, which come as fast as they are read.

use std::time::Duration;

use migration_ipc::{ConnectionConfig, ErrorCode, RequestError};
use serde_json::json;

use crate::common::*;
use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn items_come_in_order_and_the_reply_behind_them() {
    for window in [1, 2, 16, 1024] {
        let ends = ends(&Stage::new(), &Stage::new()).await;
        for connection in [ends.client.connection(), &ends.at_server] {
            let mut stream = connection
                .request_stream(Count { to: 100 })
                .window(window)
                .await
                .unwrap();
            for number in 1..=100 {
                assert_eq!(stream.next().await.unwrap().unwrap(), Number { number });
            }
            assert!(stream.next().await.is_none());
            assert_eq!(stream.finish().await.unwrap(), Sum { sum: 5050 });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_stops_the_sender_and_nothing_else() {
    let at_server = Stage::new();
    let ends = ends(&at_server, &Stage::new()).await;
    let mut stream = ends
        .client
        .request_stream(Count { to: 100 })
        .window(4)
        .within(Duration::from_secs(600))
        .await
        .unwrap();
    settle().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(at_server.take(), ["count to 100"]);
    // Messages, replies and control go on meanwhile.
    assert_eq!(ends.client.request(ask("x")).await.unwrap().text, "x");
    assert_eq!(ends.at_server.request(ask("y")).await.unwrap().text, "y");
    at_server.take();
    for number in 1..=98 {
        assert_eq!(stream.next().await.unwrap().unwrap(), Number { number });
        settle().await;
    }
    assert_eq!(at_server.take(), ["counted"]);
    assert_eq!(stream.finish().await.unwrap(), Sum { sum: 5050 });
}

#[tokio::test(start_paused = true)]
async fn no_more_items_are_sent_than_were_granted() {
    let stage = Stage::new();
    let (_server, mut peer) = served_peer(&stage).await;
    let count = json!({"to": 6});
    let members = ",\"deadline\":60000,\"items\":2";
    peer.write(&written(Form::Usual, "q", "COUNT", members, &count, None))
        .await;
    let mut next = 1;
    for granted in [2, 1, 3] {
        for _ in 0..granted {
            let item = peer.receive().await;
            assert_eq!(item["type"], "NUMBER", "{item}");
            assert_eq!(item["item"], next);
            assert_eq!(item["inReplyTo"], "q");
            next += 1;
        }
        if next <= 6 {
            assert!(peer.is_silent_for(Duration::from_secs(5)).await);
            let more = if next == 3 { 1 } else { 3 };
            let grant = json!({"requestId": "q", "items": more});
            peer.send("ITEMS", grant).await;
        }
    }
    let reply = peer.receive().await;
    assert_eq!(reply["type"], "SUM");
    assert!(reply.get("item").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_handler_stops_sending_when_its_reader_is_gone() {
    let at_server = Stage::new();
    let ends = ends(&at_server, &Stage::new()).await;
    let stream = ends.client.request_stream(Count { to: 100 }).window(4);
    let mut stream = stream.await.unwrap();
    assert!(stream.next().await.is_some());
    settle().await;
    drop(stream);
    settle().await;
    assert_eq!(
        at_server.take(),
        [
            "count to 100",
            "stopped at 5: nobody waits for the items any more"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_its_deadline_and_its_sender_is_told() {
    let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
    let pending = client.request_stream(Count { to: 9 });
    let mut stream = pending.within(Duration::from_secs(5)).await.unwrap();
    let request = service.receive_type("COUNT").await;
    let item = written(
        Form::Usual,
        "i",
        "NUMBER",
        ",\"item\":1",
        &json!({"number": 1}),
        Some(&request["id"]),
    );
    service.write(&item).await;
    assert_eq!(stream.next().await.unwrap().unwrap().number, 1);
    assert!(stream.next().await.is_none());
    assert!(stream.next().await.is_none());
    let cancel = service.receive().await;
    assert_eq!(cancel["type"], "CANCEL");
    assert_eq!(cancel["payload"]["requestId"], request["id"]);
    let error = stream.finish().await.unwrap_err();
    assert!(matches!(error, RequestError::Deadline), "{error:?}");
}

/// A reader that is too slow for its own deadline finds what its sender made of that.
#[tokio::test(start_paused = true)]
async fn a_sender_stops_at_the_deadline_of_its_reader() {
    let at_server = Stage::new();
    let ends = ends(&at_server, &Stage::new()).await;
    let pending = ends.client.request_stream(Count { to: 100 });
    let mut stream = pending.within(Duration::from_secs(5)).await.unwrap();
    let mut read = 0;
    while stream.next().await.is_some() {
        read += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((5..40).contains(&read), "{read}");
    let error = stream.finish().await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::HandlerFailed));
}

/// Items that came before the end of the connection are still there to be read.
#[tokio::test(start_paused = true)]
async fn what_came_of_a_stream_before_the_end_is_read() {
    let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
    let mut stream = client.request_stream(Count { to: 9 }).await.unwrap();
    let request = service.receive_type("COUNT").await;
    for number in 1..=3 {
        let members = format!(",\"item\":{number}");
        let item = json!({ "number": number });
        let form = FORMS[number % 2];
        let item = written(form, "i", "NUMBER", &members, &item, Some(&request["id"]));
        service.write(&item).await;
    }
    settle().await;
    drop(service);
    settle().await;
    for number in 1..=3 {
        assert_eq!(stream.next().await.unwrap().unwrap(), Number { number });
    }
    assert!(stream.next().await.is_none());
    let error = stream.finish().await.unwrap_err();
    assert!(matches!(error, RequestError::Unknown(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_item_that_cannot_be_read_is_an_error_and_the_next_ones_follow() {
    let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
    let mut stream = client.request_stream(Count { to: 9 }).await.unwrap();
    let request = service.receive_type("COUNT").await;
    for (number, payload) in [(1, json!({"number": "x"})), (2, json!({"number": 2}))] {
        let members = format!(",\"item\":{number}");
        let item = written(
            Form::Usual,
            "i",
            "NUMBER",
            &members,
            &payload,
            Some(&request["id"]),
        );
        service.write(&item).await;
    }
    let bad = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(bad, RequestError::BadReply(_)), "{bad:?}");
    assert_eq!(stream.next().await.unwrap().unwrap().number, 2);
    service.acknowledge(&request).await;
    let error = stream.finish().await.unwrap_err();
    assert!(matches!(error, RequestError::NoReply), "{error:?}");
}

/// Without `items` a request takes none, and the handler finds out.
#[tokio::test(start_paused = true)]
async fn items_that_nobody_asked_for_are_not_sent() {
    let stage = Stage::new();
    let (_server, mut peer) = served_peer(&stage).await;
    for members in ["", ",\"deadline\":1000"] {
        let count = json!({"to": 2});
        peer.write(&written(Form::Usual, "q", "COUNT", members, &count, None))
            .await;
        let acknowledgment = peer.receive_acknowledgment().await;
        assert_eq!(acknowledgment["code"], "handler_failed");
        assert_eq!(acknowledgment["error"], "the request takes no items");
    }
}

/// The lane takes one item at a time here, and the answer waits behind them.
#[tokio::test(start_paused = true)]
async fn the_final_answer_overtakes_no_item() {
    let mut config = ConnectionConfig::default();
    config.limits.outbound_bytes = 1;
    let ends = ends_with(&Stage::new(), &Stage::new(), config).await;
    let mut stream = ends.client.request_stream(Count { to: 50 }).await.unwrap();
    let mut read = 0;
    while let Some(item) = stream.next().await {
        read += 1;
        assert_eq!(item.unwrap().number, read);
    }
    assert_eq!(read, 50);
    assert_eq!(stream.finish().await.unwrap(), Sum { sum: 1275 });
    let failing = ends.client.request_stream(UnknownCount { to: 3 }).await;
    let mut failing = failing.unwrap();
    assert!(failing.next().await.is_none(), "nobody handles it");
    let error = failing.finish().await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::NoHandler));
}
