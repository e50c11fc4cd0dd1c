//! Registering handlers, what they may take and return, and the ways around them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use migration_ipc::messages::{BackupStarted, ErrorReport, Heartbeat, StatusUpdate, UserAction};
use migration_ipc::{
    Cancellation, DispatcherError, ErrorCode, FromContext, HandlerContext, HandlerError,
    HandlerOptions, IpcConnection, MessageDispatcher, MessageHandler, MessageInfo, MessagePayload,
    Peer, Policy, Reply, Role, Sender, State,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

async fn on_action(_: UserAction) {}

// --- registering ---------------------------------------------------------------------------------

#[test]
fn a_type_that_is_registered_twice_is_an_error_that_names_both_places() {
    let builder = MessageDispatcher::builder(());
    let first = line!() + 1;
    let builder = builder.handle(on_action);
    let second = line!() + 1;
    let builder = builder.handle_with(HandlerOptions::new().silent(), on_action);
    let error = builder.build().unwrap_err();
    let text = error.to_string();
    assert!(matches!(
        error,
        DispatcherError::Duplicate {
            message_type: "USER_ACTION",
            ..
        }
    ));
    for line in [first, second] {
        assert!(text.contains(&format!("{}:{line}:", file!())), "{text}");
    }
}

#[test]
fn what_the_connection_handles_itself_takes_no_handler() {
    let line = line!() + 1;
    let builder = MessageDispatcher::builder(()).handle(|_: Heartbeat| async {});
    let text = builder.build().unwrap_err().to_string();
    assert!(text.contains("HEARTBEAT"), "{text}");
    assert!(text.contains(&format!("{}:{line}:", file!())), "{text}");
}

/// The first mistake is the one that is told.
#[test]
fn later_registrations_do_not_hide_a_mistake() {
    let error = MessageDispatcher::builder(())
        .handle(on_action)
        .handle(on_action)
        .handle(|_: Heartbeat| async {})
        .handle(|_: BackupStarted| async {})
        .build()
        .unwrap_err();
    assert!(
        matches!(error, DispatcherError::Duplicate { .. }),
        "{error}"
    );
}

// --- arguments -----------------------------------------------------------------------------------

type Seen = Arc<Mutex<Vec<String>>>;

/// An argument of one's own.
struct Shouted(String);

impl<S> FromContext<S> for Shouted {
    fn from_context(context: &HandlerContext<S>) -> Self {
        Self(context.message().message_type.to_string() + "!")
    }
}

async fn takes_everything(
    action: UserAction,
    Shouted(shouted): Shouted,
    message: MessageInfo,
    peer: Peer,
    State(seen): State<Seen>,
    cancellation: Cancellation,
) {
    assert!(!cancellation.is_cancelled());
    seen.lock().unwrap().push(format!(
        "{} {shouted} {} {} {} {} {}",
        action.action,
        message.id,
        message.timestamp,
        peer.account(),
        peer.identity(),
        peer.announced_session().is_none(),
    ));
}

async fn takes_the_rest(
    _: BackupStarted,
    context: HandlerContext<Seen>,
    connection: IpcConnection,
) {
    assert_eq!(context.connection().id(), connection.id());
    assert_eq!(context.peer().connection_id(), connection.id());
    context
        .state()
        .lock()
        .unwrap()
        .push(context.message().id.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_handler_takes_its_arguments_from_the_message_and_its_surroundings() {
    let seen = Seen::default();
    let dispatcher = MessageDispatcher::builder(Arc::clone(&seen))
        .handle(takes_everything)
        .handle(takes_the_rest)
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("USER_ACTION", action("opened")).await;
    peer.send("BACKUP_STARTED", json!({})).await;
    for _ in 0..2 {
        assert_eq!(peer.receive_acknowledgment().await["success"], true);
    }
    let expected = "opened USER_ACTION! m1 2024-01-01T12:00:00Z 1000 account 1000 true";
    assert_eq!(*seen.lock().unwrap(), [expected, "m2"]);
}

// --- structs, and messages of one's own ----------------------------------------------------------

/// A message that this library knows nothing of.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct DiskSpace {
    free_bytes: u64,
}

impl MessagePayload for DiskSpace {
    const TYPE: &'static str = "DISK_SPACE";
    const SENDER: Sender = Sender::Any;
}

struct Least {
    bytes: u64,
}

impl MessageHandler for Least {
    type Payload = DiskSpace;
    type Output = Result<Option<Reply<DiskSpace>>, HandlerError>;

    async fn handle(&self, space: DiskSpace, _: HandlerContext) -> Self::Output {
        match space.free_bytes {
            0 => Err(HandlerError::new("the disk is full").with_code(ErrorCode::Busy)),
            free if free < self.bytes => Ok(Some(Reply(DiskSpace {
                free_bytes: self.bytes,
            }))),
            _ => Ok(None),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_struct_handles_messages_that_an_application_defines() {
    let dispatcher = MessageDispatcher::builder(())
        .handler(Least { bytes: 10 })
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.hello("agent", 9).await;
    peer.send("DISK_SPACE", json!({"freeBytes": 20})).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    let id = peer.send("DISK_SPACE", json!({"freeBytes": 5})).await;
    let reply = peer.receive().await;
    assert_eq!(
        (&reply["type"], &reply["inReplyTo"]),
        (&json!("DISK_SPACE"), &json!(id))
    );
    assert_eq!(reply["payload"], json!({"freeBytes": 10}));
    peer.send("DISK_SPACE", json!({"freeBytes": 0})).await;
    let refused = peer.receive_acknowledgment().await;
    assert_eq!(
        (&refused["error"], &refused["code"]),
        (&json!("the disk is full"), &json!("busy"))
    );
}

/// Reading and writing payloads is code of the application's, and may panic as handlers may.
#[derive(Debug)]
struct Explosive;

impl Serialize for Explosive {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("cannot be written")
    }
}

impl<'de> Deserialize<'de> for Explosive {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("cannot be read")
    }
}

impl MessagePayload for Explosive {
    const TYPE: &'static str = "EXPLOSIVE";
    const SENDER: Sender = Sender::Any;
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_panics_is_a_failed_message_and_nothing_more() {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: Explosive| async {})
        .handle(|_: UserAction| async { Reply(Explosive) })
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for round in 0..2 {
        for (message_type, text) in [
            ("EXPLOSIVE", "cannot be read"),
            ("USER_ACTION", "cannot be written"),
        ] {
            peer.send(message_type, action("x")).await;
            let answer = peer.receive_acknowledgment().await;
            assert_eq!(answer["success"], false);
            assert!(
                answer["error"].as_str().unwrap().contains(text),
                "{round}: {answer}"
            );
        }
    }
}

// --- around handlers -----------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_fallback_gets_what_has_no_handler_of_its_own() {
    let dispatcher = MessageDispatcher::builder(())
        .handle(on_action)
        .fallback(|message, peer| async move {
            Err::<(), _>(HandlerError::new(format!(
                "{} of {}",
                message.message_type,
                peer.account()
            )))
        })
        .build()
        .unwrap();
    let policy = Policy::migration().allow(Role::Agent, "MADE_UP");
    let (_server, connector) = serve_with(dispatcher, |server| server.policy(policy)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    peer.send("MADE_UP", json!({})).await;
    assert_eq!(
        peer.receive_acknowledgment().await["error"],
        "MADE_UP of 1000"
    );
    // Who may send a type does not depend on who handles it, and nobody may send what nobody named.
    for message_type in ["SHUTDOWN_REQUEST", "MADE_UP_TOO"] {
        peer.send(message_type, json!({})).await;
        let refused = peer.receive_acknowledgment().await;
        let expected = format!("this peer may not send {message_type}");
        assert_eq!(refused["error"], expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_channel_takes_messages_in_order_and_holds_its_peer_up_when_it_is_full() {
    let (dispatcher, mut incoming) = MessageDispatcher::into_channel(1);
    let (server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    for _ in 0..3 {
        peer.send("USER_ACTION", action("x")).await;
    }
    assert_eq!(
        peer.receive_acknowledgment().await["originalMessageId"],
        "m1"
    );
    assert!(peer.is_silent_for(std::time::Duration::from_secs(10)).await);
    for id in ["m1", "m2", "m3"] {
        let (message, sender) = incoming.recv().await.unwrap();
        assert_eq!(
            (message.id.to_string().as_str(), sender.account().as_str()),
            (id, "1000")
        );
    }
    peer.receive_acknowledgment().await;
    peer.receive_acknowledgment().await;
    // A channel that nobody takes from is a failure that its peer sees.
    drop(incoming);
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], false);
    drop(peer);
    within(server.stop(PATIENCE)).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_registration_still_tells_failures() {
    let silent = HandlerOptions::new().silent();
    let dispatcher = MessageDispatcher::builder(())
        .handle_with(silent, |report: ErrorReport| async move {
            if report.error_code == "bad" {
                return Err(HandlerError::new("as asked"));
            }
            Ok(())
        })
        .handle_with(silent, |_: UserAction| async {
            Reply(StatusUpdate::new(
                migration_ipc::messages::OverallStatus::Ready,
                vec![],
                vec![],
                0,
            ))
        })
        .build()
        .unwrap();
    let (_server, connector) = serve(dispatcher).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let report = |code: &str| json!({"errorCode": code, "message": "m", "context": {}});
    peer.send("ERROR_REPORT", report("good")).await;
    peer.send("ERROR_REPORT", report("bad")).await;
    let answer = peer.receive_acknowledgment().await;
    assert_eq!(
        (&answer["originalMessageId"], &answer["error"]),
        (&json!("m2"), &json!("as asked"))
    );
    // What a handler says is sent: only the acknowledgment of success is not.
    peer.send("USER_ACTION", action("x")).await;
    assert_eq!(peer.receive().await["type"], "STATUS_UPDATE");
}
