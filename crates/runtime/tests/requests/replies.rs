//! A request is answered with its reply, whoever asks, and what is known of it is never lost.

use std::time::Duration;

use migration_ipc::{DisconnectReason, ErrorCode, RequestError, SendError};
use serde_json::json;

use crate::common::*;
use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn either_side_asks_and_gets_a_typed_reply() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    assert_eq!(
        ends.client.request(ask("a")).await.unwrap().text,
        "a",
        "the client asked"
    );
    assert_eq!(
        ends.at_server.request(ask("b")).await.unwrap().text,
        "b",
        "the server asked"
    );
}

#[tokio::test(start_paused = true)]
async fn many_requests_are_under_way_at_once_and_each_gets_its_own_reply() {
    let (client, mut service) = client_of_peer(&Stage::new(), 1024).await;
    let asking: Vec<_> = (0..500)
        .map(|number| tokio::spawn(client.request(ask(&number.to_string())).into_future()))
        .collect();
    let mut asked = Vec::new();
    for _ in 0..500 {
        asked.push(service.receive_type("ASK").await);
    }
    // The last one first.
    for request in asked.iter().rev() {
        let text = request["payload"]["what"].clone();
        service
            .reply(request, "TOLD", json!({ "text": text }))
            .await;
    }
    for (number, asking) in asking.into_iter().enumerate() {
        let told = within(asking).await.unwrap().unwrap();
        assert_eq!(told.text, number.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_with_its_code() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    let error = ends.client.request(ask("fail")).await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::HandlerFailed));
    assert_eq!(error.to_string(), "the peer refused the request: as told");
    assert!(error.is_certainly_unhandled());
    let error = ends.client.request(AskWhose {}).await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::NoHandler));
}

/// The type is registered as silent, and whoever asks waits all the same.
#[tokio::test(start_paused = true)]
async fn a_handler_that_has_nothing_to_say_answers_a_request() {
    let ends = ends(&Stage::new(), &Stage::new()).await;
    let error = ends.client.request(ask("nothing")).await.unwrap_err();
    assert!(matches!(error, RequestError::NoReply), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reply_of_another_type_or_form_is_an_error_of_its_own() {
    for form in FORMS {
        let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
        for (message_type, payload, expected) in [
            (
                "ODD\\u0007",
                json!({"text": "x"}),
                "the request was answered with ODD\\u{7} instead of TOLD",
            ),
            (
                "TOLD",
                json!({"words": 5}),
                "the reply cannot be read: Failed to deserialize payload: missing field",
            ),
        ] {
            let asking = tokio::spawn(client.request(ask("x")).into_future());
            let request = service.receive_type("ASK").await;
            let reply = written(form, "r", message_type, "", &payload, Some(&request["id"]));
            service.write(&reply).await;
            let error = within(asking).await.unwrap().unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(!error.is_certainly_unhandled());
        }
    }
}

/// What a reply says of accounts is checked as what any message says.
#[tokio::test(start_paused = true)]
async fn the_account_in_a_reply_is_its_senders_own() {
    for form in FORMS {
        let (server, connector) = serve(Stage::new().dispatcher()).await;
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        peer.send("HELLO", asking_hello(16)).await;
        peer.receive().await;
        let connection = only_connection(&server).await;
        let asking = tokio::spawn(connection.request(AskWhose {}).into_future());
        let request = peer.receive_type("ASK_WHOSE").await;
        let reply = written(
            form,
            "r",
            "WHOSE",
            "",
            &json!({"user": ""}),
            Some(&request["id"]),
        );
        peer.write(&reply).await;
        let whose = within(asking).await.unwrap().unwrap();
        assert_eq!(whose.user.as_str(), "1000");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_resolves_each_request_with_what_is_known() {
    let (client, mut service) = client_of_peer(&Stage::new(), 1).await;
    let sent = tokio::spawn(client.request(ask("sent")).into_future());
    service.receive_type("ASK").await;
    // No credit is left for this one.
    let unsent = tokio::spawn(client.request(ask("unsent")).into_future());
    let stream = client.request_stream(Count { to: 3 }).await.unwrap();
    settle().await;
    drop(service);
    let sent = within(sent).await.unwrap().unwrap_err();
    assert!(
        matches!(
            &sent,
            RequestError::Unknown(SendError::Lost(DisconnectReason::ClosedByPeer))
        ),
        "{sent:?}"
    );
    assert!(!sent.is_certainly_unhandled());
    let unsent = within(unsent).await.unwrap().unwrap_err();
    assert!(
        matches!(
            &unsent,
            RequestError::NotSent(SendError::Closed(DisconnectReason::ClosedByPeer))
        ),
        "{unsent:?}"
    );
    assert!(unsent.is_certainly_unhandled());
    let stream = within(stream.finish()).await.unwrap_err();
    assert!(
        matches!(stream, RequestError::NotSent(SendError::Closed(_))),
        "{stream:?}"
    );
    let after = client.request(ask("after")).await.unwrap_err();
    assert!(
        matches!(after, RequestError::NotSent(SendError::Closed(_))),
        "{after:?}"
    );
}

/// The transcript: what is on the wire of a request, in the order of its members.
#[tokio::test(start_paused = true)]
async fn the_members_of_a_request_are_on_the_wire() {
    let (client, mut service) = client_of_peer(&Stage::new(), 16).await;
    let asking = client
        .request(ask("x"))
        .within(Duration::from_micros(4_999_001));
    let asking = tokio::spawn(asking.into_future());
    let request = service.receive_type("ASK").await;
    let members: Vec<_> = request.as_object().unwrap().keys().collect();
    assert_eq!(members, ["deadline", "id", "payload", "timestamp", "type"]);
    assert_eq!(request["deadline"], 5000, "rounded up to a millisecond");
    service.reply(&request, "TOLD", json!({"text": "y"})).await;
    assert_eq!(within(asking).await.unwrap().unwrap().text, "y");

    let stream = client.request_stream(Count { to: 1 }).window(7);
    let mut stream = stream.await.unwrap();
    let request = service.receive_type("COUNT").await;
    assert_eq!(request["items"], 7);
    assert_eq!(request["deadline"], 30_000, "the default");
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
    service.reply(&request, "SUM", json!({"sum": 1})).await;
    assert!(stream.next().await.is_none());
    assert_eq!(stream.finish().await.unwrap().sum, 1);
    assert!(service.is_silent_for(Duration::from_secs(5)).await);
}
