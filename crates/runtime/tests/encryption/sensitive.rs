//! What is sensitive goes over encrypted connections alone, where that is asked for.

use migration_ipc::messages::{ConfigurationUpdate, UserAction};
use migration_ipc::transport::memory;
use migration_ipc::{IpcMessage, MessageId, MessagePayload, SendError, Timestamp};
use serde_json::json;
use tokio::task::yield_now;

use crate::common::*;
use crate::noise::NoisePeer;
use crate::stage::*;

fn message_of(payload: &Unlock) -> IpcMessage {
    let text = serde_json::to_string(payload).unwrap();
    IpcMessage {
        id: MessageId::new("made-before").unwrap(),
        message_type: migration_ipc::MessageType::new(Unlock::TYPE),
        timestamp: "2024-01-01T12:00:00Z".parse::<Timestamp>().unwrap(),
        payload: Some(migration_ipc::RawValue::from_string(text).unwrap()),
        in_reply_to: None,
    }
}

#[tokio::test(start_paused = true)]
async fn over_a_clear_connection_it_is_refused_and_nothing_is_sent() {
    let (server, connector, heard) = service(|server| server.connection_config(guarded())).await;
    let tape = Tape::default();
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = agent(&Heard::default())
        .connection_config(guarded())
        .connect_over(tape.tap(stream))
        .await
        .unwrap();
    let refused = |outcome: Result<(), SendError>| match outcome {
        Err(SendError::NotEncrypted) => {}
        other => panic!("{other:?}"),
    };
    refused(client.send(unlock("a")).await.map(drop));
    refused(client.send_acknowledged(unlock("b")).await.map(drop));
    refused(client.connection().try_send(unlock("c")).map(drop));
    refused(client.send_message(message_of(&unlock("d"))).await);
    let connection = only_connection(&server).await;
    refused(connection.send(unlock("e")).await.map(drop));
    eventually("announced", || !server.connections().announced().is_empty()).await;
    let all = server.broadcast(&unlock("f")).unwrap();
    assert!(all.accepted.is_empty() && all.refused.len() == 1);
    assert!(matches!(all.refused[0].1, SendError::NotEncrypted));
    // Everything else goes.
    client
        .send_acknowledged(UserAction::new("", "usual"))
        .await
        .unwrap();
    assert_eq!(heard.all(), ["usual"]);
    assert!(!tape.has(SECRET));
}

#[tokio::test(start_paused = true)]
async fn without_the_policy_it_goes_as_it_is() {
    let (_server, connector, heard) = service(|server| server).await;
    let client = connect(&connector, |client| client).await.unwrap();
    client.send_acknowledged(unlock("clear")).await.unwrap();
    assert_eq!(heard.all(), ["clear"]);
}

#[tokio::test(start_paused = true)]
async fn over_an_encrypted_connection_it_goes_in_every_way() {
    let (server, connector, heard) =
        service(|server| server.encryption(offered()).connection_config(guarded())).await;
    let agent_heard = Heard::default();
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut client = agent(&agent_heard)
        .encryption(offered())
        .connection_config(guarded())
        .connect_over(stream)
        .await
        .unwrap();
    client.announced().await.unwrap();
    client.send_acknowledged(unlock("send")).await.unwrap();
    client.connection().try_send(unlock("try_send")).unwrap();
    client
        .send_message(message_of(&unlock("send_message")))
        .await
        .unwrap();
    client.send_acknowledged(unlock("ask")).await.unwrap();
    assert_eq!(heard.all(), ["send", "try_send", "send_message", "ask"]);
    let connection = only_connection(&server).await;
    eventually("confirmed", || connection.is_encrypted()).await;
    assert_eq!(
        server
            .broadcast(&unlock("broadcast"))
            .unwrap()
            .accepted
            .len(),
        1
    );
    eventually("it arrives", || agent_heard.all() == ["broadcast"]).await;
}

/// A service whose client has agreed and not confirmed: somebody may have changed what it said.
#[tokio::test(start_paused = true)]
async fn a_service_holds_it_until_the_client_has_confirmed() {
    let (server, connector, _) =
        service(|server| server.encryption(offered()).connection_config(guarded())).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::over(stream);
    let hellos = peer.agree_as_client(&keyring(), SUITES[0]).await;
    let connection = only_connection(&server).await;
    assert!(matches!(
        connection.try_send(unlock("at once")),
        Err(SendError::NotEncrypted)
    ));
    let sending = tokio::spawn({
        let connection = connection.clone();
        async move { connection.send(unlock("waits")).await }
    });
    connection
        .send(ConfigurationUpdate::new("open", json!(1)))
        .await
        .unwrap();
    let confirm = peer.receive().await;
    assert_eq!(confirm["type"], "ENCRYPTION_CONFIRM");
    assert_eq!(peer.receive().await["type"], "CONFIGURATION_UPDATE");
    settle().await;
    assert!(!sending.is_finished());
    peer.send("ENCRYPTED", json!({})).await;
    peer.seal_from_here();
    peer.send("ENCRYPTION_CONFIRM", hellos.confirm()).await;
    within(sending).await.unwrap().unwrap();
    assert_eq!(peer.receive().await["type"], "UNLOCK");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_told_when_the_connection_ends() {
    let (server, connector, _) =
        service(|server| server.encryption(offered()).connection_config(guarded())).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let mut peer = NoisePeer::over(stream);
    peer.agree_as_client(&keyring(), SUITES[0]).await;
    let connection = only_connection(&server).await;
    let sending = tokio::spawn(async move { connection.send(unlock("waits")).await });
    yield_now().await;
    drop(peer);
    match within(sending).await.unwrap() {
        Err(SendError::Closed(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// A client of a silent service: it may encrypt yet, and a word of a plain one settles it.
#[tokio::test(start_paused = true)]
async fn silence_is_no_proof_that_a_service_does_not_encrypt() {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let connecting = agent(&Heard::default())
        .encryption(offered())
        .connection_config(guarded())
        .connect_over(at_client);
    let client = within(tokio::spawn(connecting)).await.unwrap().unwrap();
    let connection = client.connection().clone();
    let sending = tokio::spawn(async move { connection.send(unlock("waits")).await });
    client.send(UserAction::new("", "goes")).await.unwrap();
    let mut peer = WirePeer::over(at_service);
    let types = [
        peer.receive().await,
        peer.receive().await,
        peer.receive().await,
    ]
    .map(|message| message["type"].clone());
    assert_eq!(types, ["HELLO", "AGENT_STARTED", "USER_ACTION"]);
    settle().await;
    assert!(!sending.is_finished());
    peer.send("CONFIGURATION_UPDATE", json!({"key": "x", "value": 1}))
        .await;
    match within(sending).await.unwrap() {
        Err(SendError::NotEncrypted) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_sensitive_reply_over_a_clear_connection_is_an_error() {
    let (_server, connector, heard) = service(|server| server.connection_config(guarded())).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 10).await;
    let payload = serde_json::to_value(unlock("ask")).unwrap();
    peer.send("UNLOCK", payload).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(answer["success"], false);
    assert_eq!(answer["code"], "not_permitted");
    assert!(!answer.to_string().contains(SECRET));
    assert_eq!(
        heard.all(),
        ["ask"],
        "what a peer sends in the clear is its own affair"
    );
}
