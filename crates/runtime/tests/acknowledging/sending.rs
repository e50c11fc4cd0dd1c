//! What a sender makes of an acknowledgment of many messages.

use std::time::Duration;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::{
    Answer, DisconnectReason, ErrorCode, IpcConnection, MessageOptions, Priority, SendError,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::common::*;
use crate::stage::*;

type Sending = JoinHandle<Result<Answer, SendError>>;

/// Sends a message whose answer is awaited, and lets it go out.
async fn ask(connection: &IpcConnection, name: &str) -> Sending {
    ask_with(connection, name, MessageOptions::new()).await
}

async fn ask_with(connection: &IpcConnection, name: &str, options: MessageOptions) -> Sending {
    let connection = connection.clone();
    let action = UserAction::new("", name);
    let sending =
        tokio::spawn(async move { connection.send_acknowledged_with(action, options).await });
    settle().await;
    sending
}

async fn tell(service: &mut WirePeer, payload: Value) {
    service.send("ACKNOWLEDGMENTS", payload).await;
    settle().await;
}

async fn is_handled(sending: Sending) -> bool {
    matches!(within(sending).await.unwrap(), Ok(Answer::Handled))
}

#[tokio::test(start_paused = true)]
async fn a_range_resolves_everything_that_waits_in_it() {
    let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
    let mut sent = Vec::new();
    for name in 2..10 {
        sent.push(ask(client.connection(), &name.to_string()).await);
    }
    tell(&mut service, json!({"handled": [[2, 4], [6, 6], [8, 8]]})).await;
    let waiting: Vec<_> = sent.iter().map(|sent| !sent.is_finished()).collect();
    let expected = [false, false, false, true, false, true, false, true];
    assert_eq!(waiting, expected);
    // Over some that are answered already.
    tell(&mut service, json!({"handled": [[1, 9]]})).await;
    for sent in sent {
        assert!(is_handled(sent).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_a_refusal_of_the_message_in_that_frame() {
    let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
    let handled = ask(client.connection(), "a").await;
    let failed = ask(client.connection(), "b").await;
    let after = ask(client.connection(), "c").await;
    // A frame that is in both was not handled.
    let failure = json!({"frame": 3, "error": "later", "code": "busy"});
    tell(
        &mut service,
        json!({"handled": [[2, 4]], "failed": [failure]}),
    )
    .await;
    match within(failed).await.unwrap() {
        Err(SendError::Rejected(rejection)) => {
            assert_eq!(rejection.error, "later");
            assert_eq!(rejection.code, Some(ErrorCode::Busy));
        }
        other => panic!("{other:?}"),
    }
    assert!(is_handled(handled).await);
    assert!(is_handled(after).await);
}

#[tokio::test(start_paused = true)]
async fn a_message_may_be_answered_by_its_id_all_the_same() {
    let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
    let first = ask(client.connection(), "a").await;
    let second = ask(client.connection(), "b").await;
    service.receive_type("USER_ACTION").await;
    let message = service.receive_type("USER_ACTION").await;
    service.acknowledge(&message).await;
    assert!(is_handled(second).await);
    tell(&mut service, json!({"handled": [[2, 3]]})).await;
    assert!(is_handled(first).await);
}

#[tokio::test(start_paused = true)]
async fn the_announcement_that_went_with_the_hello_is_the_second_frame() {
    let announcement = AgentStarted::new("", "1.0.0", "1");
    let (mut client, mut service) = client_of(&["ackRanges"], 100, Some(announcement)).await;
    within(client.announced()).await.unwrap();
    let sent = ask(client.connection(), "a").await;
    tell(&mut service, json!({"handled": [[3, 3]]})).await;
    assert!(is_handled(sent).await);
}

/// The number is that of the frame on the wire, whatever was accepted before it.
#[tokio::test(start_paused = true)]
async fn messages_of_other_priorities_get_their_numbers_when_they_leave() {
    let (client, mut service) = client_of(&["ackRanges"], 0, None).await;
    let connection = client.connection();
    let bulk = MessageOptions::new().priority(Priority::Bulk);
    let high = MessageOptions::new().priority(Priority::High);
    let slow = ask_with(connection, "bulk", bulk).await;
    let normal = ask(connection, "normal").await;
    let urgent = ask_with(connection, "high", high).await;
    service.send("CREDIT", json!({"messages": 3})).await;
    let mut order = Vec::new();
    for _ in 0..3 {
        let message = service.receive_type("USER_ACTION").await;
        order.push(message["payload"]["action"].as_str().unwrap().to_owned());
    }
    assert_eq!(order, ["high", "normal", "bulk"]);
    tell(&mut service, json!({"handled": [[4, 4]]})).await;
    assert!(is_handled(slow).await);
    assert!(!normal.is_finished() && !urgent.is_finished());
    tell(&mut service, json!({"handled": [[2, 2]]})).await;
    assert!(is_handled(urgent).await);
    assert!(!normal.is_finished());
}

/// What waits when the connection ends is lost, and what a range has said is not.
#[tokio::test(start_paused = true)]
async fn an_end_of_the_connection_leaves_what_was_told() {
    let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
    let told = ask(client.connection(), "a").await;
    let lost = ask(client.connection(), "b").await;
    service
        .send("ACKNOWLEDGMENTS", json!({"handled": [[2, 2]]}))
        .await;
    drop(service);
    assert!(is_handled(told).await);
    let lost = within(lost).await.unwrap();
    assert!(matches!(lost, Err(SendError::Lost(_))), "{lost:?}");
}

/// Each of these is something that no honest receiver says. The client has sent two frames.
#[tokio::test(start_paused = true)]
async fn what_no_receiver_can_mean_closes_the_connection() {
    let ranges = |count: usize| json!({"handled": vec![json!([1, 1]); count]});
    let failures = |count: usize| json!({"failed": vec![json!({"frame": 1}); count]});
    for hostile in [
        json!({"handled": [[1, 3]]}),
        json!({"handled": [[1, 2], [3, 3]]}),
        json!({"handled": [[1, u64::MAX]]}),
        json!({"handled": [[2, 1]]}),
        json!({"handled": [[0, 1]]}),
        json!({"handled": [[0, 0]]}),
        json!({"handled": [[-1, 1]]}),
        json!({"handled": [[1, 1.5]]}),
        json!({"handled": [[1, 18_446_744_073_709_551_616_f64]]}),
        json!({"handled": [[1]]}),
        json!({"handled": [[1, 2, 2]]}),
        json!({"handled": ["1"]}),
        json!({"handled": 1}),
        json!({"failed": [{"frame": 3}]}),
        json!({"failed": [{"frame": 0}]}),
        json!({"failed": [{"error": "x"}]}),
        json!({"failed": [{"frame": u64::MAX}]}),
        ranges(257),
        failures(257),
        Value::Null,
        json!([]),
    ] {
        let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
        let sent = ask(client.connection(), "a").await;
        let what = hostile.to_string();
        service.send("ACKNOWLEDGMENTS", hostile).await;
        let end = within(sent).await.unwrap();
        match end {
            Err(SendError::Lost(DisconnectReason::Violation(_))) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn as_much_as_one_message_may_name_is_taken() {
    let (client, mut service) = client_of(&["ackRanges"], 100, None).await;
    let sent = ask(client.connection(), "a").await;
    let ranges = vec![json!([1, 2]); 256];
    let failed = vec![json!({"frame": 1}); 256];
    tell(&mut service, json!({"handled": ranges, "failed": failed})).await;
    assert!(is_handled(sent).await);
}

/// Without the capability it is a type that nobody handles.
#[tokio::test(start_paused = true)]
async fn ranges_that_were_not_negotiated_mean_nothing() {
    let (client, mut service) = client_of(&["noAck"], 100, None).await;
    let sent = ask(client.connection(), "a").await;
    let message = service.receive_type("USER_ACTION").await;
    tell(&mut service, json!({"handled": [[1, 99]]})).await;
    assert!(!sent.is_finished());
    service.acknowledge(&message).await;
    assert!(is_handled(sent).await);
}

/// A service that answers the hello late was taken for a plain one meanwhile.
#[tokio::test(start_paused = true)]
async fn what_was_sent_to_a_service_that_answers_late_can_be_told_by_ranges() {
    let (at_client, at_service) =
        migration_ipc::transport::memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let connecting = tokio::spawn(client().connect_over(at_client));
    let hello = service.receive().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let client = within(connecting).await.unwrap().unwrap();
    let sent = ask(client.connection(), "a").await;
    service.receive_type("USER_ACTION").await;
    service
        .reply(&hello, "HELLO", hello_with(&["ackRanges"]))
        .await;
    tell(&mut service, json!({"handled": [[2, 2]]})).await;
    assert!(is_handled(sent).await);
}
