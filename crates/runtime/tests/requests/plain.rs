//! Peers that did not negotiate requests: they see nothing of them, and what they say means nothing.

use std::time::Duration;

use migration_ipc::transport::memory;
use migration_ipc::{IpcClient, RequestError};
use serde_json::json;

use crate::common::*;
use crate::stage::*;

#[tokio::test(start_paused = true)]
async fn a_plain_peer_is_asked_nothing_and_the_caller_learns_so_at_once() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let setup = IpcClient::builder(Stage::new().dispatcher());
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    service.acknowledge(&hello).await;
    let client = within(connecting).await.unwrap().unwrap();
    let error = client.request(ask("x")).await.unwrap_err();
    assert!(matches!(error, RequestError::NotNegotiated), "{error:?}");
    assert!(error.is_certainly_unhandled());
    let error = client.request_stream(Count { to: 1 }).await.unwrap_err();
    assert!(matches!(error, RequestError::NotNegotiated), "{error:?}");
    assert!(service.is_silent_for(Duration::from_secs(20)).await);
    // What works with every peer still does.
    let sending = tokio::spawn(async move { client.send_acknowledged(ask("x")).await });
    let message = service.receive_type("ASK").await;
    assert_eq!(message.as_object().unwrap().len(), 4, "{message}");
    service.acknowledge(&message).await;
    within(sending).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_correlates_is_asked_without_any_new_member() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let setup = IpcClient::builder(Stage::new().dispatcher());
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let said = service.receive().await;
    service.answer_hello(&said, 16).await;
    let client = within(connecting).await.unwrap().unwrap();
    let asking = tokio::spawn(client.request(ask("x")).into_future());
    let request = service.receive_type("ASK").await;
    let members: Vec<_> = request.as_object().unwrap().keys().collect();
    assert_eq!(members, ["id", "payload", "timestamp", "type"]);
    service.reply(&request, "TOLD", json!({"text": "y"})).await;
    assert_eq!(within(asking).await.unwrap().unwrap().text, "y");
    // It is not told of what is given up, and the late answer is dropped all the same.
    let watch = Watch::begin();
    let asking = tokio::spawn(client.request(ask("x")).into_future());
    let request = service.receive_type("ASK").await;
    asking.abort();
    assert!(service.is_silent_for(Duration::from_secs(20)).await);
    service.reply(&request, "TOLD", json!({"text": "y"})).await;
    assert!(service.is_silent_for(Duration::from_secs(5)).await);
    assert!(watch.warnings().is_empty());
    let error = client.request_stream(Count { to: 1 }).await.unwrap_err();
    assert!(matches!(error, RequestError::NotNegotiated), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_negotiated_means_nothing() {
    for form in FORMS {
        let stage = Stage::new();
        let (_server, connector) = serve(stage.dispatcher()).await;
        let mut peer = WirePeer::connect(&connector, user("1000")).await;
        peer.hello("agent", 1024).await;
        for members in [
            ",\"deadline\":1",
            ",\"deadline\":-1",
            ",\"items\":5",
            ",\"items\":\"x\"",
            ",\"item\":0",
        ] {
            let payload = json!({"what": "left"});
            peer.write(&written(form, "q", "ASK", members, &payload, None))
                .await;
            let reply = peer.receive().await;
            assert_eq!(reply["payload"]["text"], "for ever", "{members}: {reply}");
        }
        for (message_type, payload) in [
            ("CANCEL", json!({"requestId": "q"})),
            ("ITEMS", json!({"requestId": "q", "items": 1})),
        ] {
            peer.send(message_type, payload).await;
            let acknowledgment = peer.receive_acknowledgment().await;
            assert_eq!(acknowledgment["success"], false);
        }
    }
}
