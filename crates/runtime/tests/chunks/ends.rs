//! Two ends of our own.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ErrorReport, UserAction};
use migration_ipc::{
    Answer, ConnectionConfig, IpcClient, MessageDispatcher, SendError, State, limits,
};

use super::stage::*;
use crate::common::*;

#[tokio::test(start_paused = true)]
async fn a_report_of_five_mebibytes_reaches_its_handler_and_is_answered() {
    let (_server, connector, seen) = service(|server| server).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    let sending = client.send_large(report(5 * MIB)).unwrap();
    let mut progress = sending.progress();
    assert_eq!(progress.sent(), 0);
    assert!(progress.total() > 5 * MIB as u64);
    let (answer, steps) = tokio::join!(within(sending), async {
        let mut steps = 0;
        while progress.changed().await {
            steps += 1;
        }
        steps
    });
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    assert!(steps > 10, "{steps}");
    assert_eq!(progress.sent(), progress.total());
    assert!(seen.take() == [long_text(5 * MIB)], "as it was sent");
}

#[tokio::test(start_paused = true)]
async fn a_service_sends_five_mebibytes_to_an_agent() {
    let (server, connector, _) = service(|server| server).await;
    let seen = Seen::default();
    let stream = connector.connect(user("1000")).await.unwrap();
    let _client = IpcClient::builder(agent_dispatcher(&seen))
        .announce(&AgentStarted::new("", "1.0.0", "1"))
        .connect_over(stream)
        .await
        .unwrap();
    let connection = only_connection(&server).await;
    let answer = within(connection.send_large(setting(5 * MIB)).unwrap()).await;
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    assert!(seen.take() == [long_text(5 * MIB)], "as it was sent");
}

#[tokio::test(start_paused = true)]
async fn many_large_messages_at_once_arrive_between_many_small_ones() {
    let (_server, connector, seen) = service(|server| server).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    let connection = client.connection();
    let large = futures_util::future::join_all(
        (1..=12).map(|number| connection.send_large(report(number * MIB / 2)).unwrap()),
    );
    let small = async {
        for _ in 0..1000 {
            let answer = connection.send_acknowledged(UserAction::new("", "x")).await;
            assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
        }
    };
    let (answers, ()) = within(async { tokio::join!(large, small) }).await;
    for answer in answers {
        assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    }
    let mut lengths: Vec<_> = seen.take().iter().map(String::len).collect();
    lengths.sort_unstable();
    let sent: Vec<_> = (1..=12).map(|number| number * MIB / 2).collect();
    assert_eq!(lengths, sent);
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_a_long_message_may_wait_for_an_answer_over_its_own_connection() {
    async fn on_report(_: ErrorReport, State(()): State<()>, peer: migration_ipc::Peer) {
        let answer = peer.connection().send_acknowledged(setting(10)).await;
        assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    }
    let dispatcher = MessageDispatcher::builder(())
        .handle(on_report)
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = IpcClient::builder(agent_dispatcher(&Seen::default()))
        .connect_over(stream)
        .await
        .unwrap();
    // Longer than twice what an inbox holds.
    let sending = client.send_large(report(12 * MIB)).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), sending).await;
    assert!(matches!(answer, Ok(Ok(Answer::Handled))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_plain_peer_gets_what_fits_a_frame_and_nothing_longer() {
    let (server, connector, seen) = service(|server| server).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let plain = client().without_hello().connect_over(stream).await.unwrap();
    let answer = within(plain.send_large(report(900 * 1024)).unwrap()).await;
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    assert_eq!(seen.len(), 1);
    let error = plain.send_large(report(2 * MIB)).unwrap_err();
    let SendError::NoChunks { size, limit } = error else {
        panic!("{error}");
    };
    assert!(size > 2 * MIB);
    assert_eq!(limit, limits::MAX_BODY);
    assert!(error.to_string().contains(&size.to_string()), "{error}");
    assert!(error.to_string().contains("1048576"), "{error}");
    assert!(error.is_certainly_unhandled());
    // And in the other direction.
    let connection = only_connection(&server).await;
    let error = connection.send_large(setting(2 * MIB)).unwrap_err();
    assert!(matches!(error, SendError::NoChunks { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn each_side_says_how_much_it_takes_and_more_is_not_sent() {
    let mut little = ConnectionConfig::default();
    little.limits.chunked_bytes = 2 * MIB;
    let (server, connector, seen) = service(|server| server.connection_config(little)).await;
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    let error = client.send_large(report(3 * MIB)).unwrap_err();
    let SendError::TooLarge { size, limit } = error else {
        panic!("{error}");
    };
    assert!(size > 3 * MIB);
    assert_eq!(limit, 2 * MIB);
    let answer = within(client.send_large(report(2 * MIB - 1000)).unwrap()).await;
    assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
    assert_eq!(seen.len(), 1);
    // The client takes the usual 16 MiB.
    let connection = only_connection(&server).await;
    assert!(connection.send_large(setting(15 * MIB)).is_ok());
    assert!(connection.send_large(setting(16 * MIB)).is_err());
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_nothing_in_chunks_does_not_offer_it() {
    let mut none = ConnectionConfig::default();
    none.limits.chunked_bytes = 0;
    let (_server, connector, _) = service(|server| server.connection_config(none)).await;
    let (_, answer) = peer_of(&connector, "1000").await;
    let capabilities = answer["payload"]["capabilities"].as_array().unwrap();
    assert!(!capabilities.contains(&"chunks".into()), "{answer}");
    assert!(answer["payload"].get("limits").is_none(), "{answer}");
    let stream = connector.connect(user("1000")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    let error = client.send_large(report(2 * MIB)).unwrap_err();
    assert!(matches!(error, SendError::NoChunks { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_long_message_may_hold_as_many_values_for_each_mebibyte_as_a_short_one() {
    use migration_ipc::messages::BackupCompleted;
    async fn on_completed(_: BackupCompleted) {}
    let dispatcher = MessageDispatcher::builder(())
        .handle(on_completed)
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let (mut peer, _) = peer_of(&connector, "1000").await;
    // 60,000 categories of one value each, in a little more than 1 MiB; with their objects' brackets
    // they are 120,000 values.
    let body = |categories: usize| {
        let mut payload = serde_json::json!({"userId": "", "success": true});
        payload["categories"] = (0..categories)
            .map(|number| (format!("{number:09}"), serde_json::json!({"success": true})))
            .collect::<serde_json::Map<_, _>>()
            .into();
        envelope("many", "BACKUP_COMPLETED", payload).to_string()
    };
    let fits = body(60_000);
    assert_eq!(fits.len().div_ceil(MIB), 2);
    peer.send_chunked(1, fits.as_bytes()).await;
    let answer = peer.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(answer["payload"]["success"], true, "{answer}");
    // Without white space at its end it would have three mebibytes for the same.
    let too_many = body(66_000);
    assert_eq!(too_many.len().div_ceil(MIB), 2);
    peer.send_chunked(2, too_many.as_bytes()).await;
    let answer = peer.receive_type("ACKNOWLEDGMENT").await;
    assert_eq!(answer["payload"]["code"], "malformed", "{answer}");
}
