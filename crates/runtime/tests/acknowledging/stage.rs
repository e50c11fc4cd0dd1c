//! Both ends of a connection on which some capabilities are negotiated.

use migration_ipc::messages::{
    AgentStarted, BackupRequest, BackupStarted, DelayRequest, ErrorReport, UserAction,
};
use migration_ipc::transport::memory;
use migration_ipc::{
    ErrorCode, HandlerError, HandlerOptions, IpcClient, IpcServer, MessageDispatcher, Reply, State,
    Timestamp,
};
use serde_json::{Value, json};

use crate::common::*;

/// A hello of a peer that can do this besides the usual.
pub(crate) fn hello_with(more: &[&str]) -> Value {
    let mut hello = hello("agent", 1000);
    let capabilities = hello["capabilities"].as_array_mut().unwrap();
    capabilities.extend(more.iter().map(|name| Value::from(*name)));
    hello
}

/// `USER_ACTION` is handled, unless it is named `fail`; `DELAY_REQUEST` waits at the gate, and holds
/// up nobody; `ERROR_REPORT` is replied to; `BACKUP_STARTED` is answered by silence.
pub(crate) fn dispatcher(gate: &Gate) -> MessageDispatcher {
    async fn on_action(action: UserAction) -> Result<(), HandlerError> {
        match action.action.as_str() {
            "fail" => Err(HandlerError::new("no such thing").with_code(ErrorCode::Busy)),
            _ => Ok(()),
        }
    }
    async fn on_delay(_: DelayRequest, State(gate): State<Gate>) {
        gate.pass().await;
    }
    async fn on_report(_: ErrorReport) -> Reply<BackupRequest> {
        Reply(BackupRequest::new("", Timestamp::UNIX_EPOCH, []))
    }
    MessageDispatcher::builder(gate.clone())
        .handle(on_action)
        .handle_with(HandlerOptions::new().concurrent(), on_delay)
        .handle(on_report)
        .handle_with(HandlerOptions::new().silent(), |_: BackupStarted| async {})
        .build()
        .unwrap()
}

/// A server, and a peer of it that has said hello: its frame 1.
pub(crate) async fn serve_peer(capabilities: &[&str]) -> (IpcServer, Gate, WirePeer) {
    let gate = Gate::closed();
    let (server, connector) = serve(dispatcher(&gate)).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", hello_with(capabilities)).await;
    let answer = peer.receive().await;
    for name in capabilities {
        let agreed = answer["payload"]["capabilities"].as_array().unwrap();
        assert!(agreed.contains(&json!(name)), "{name} is negotiated");
    }
    (server, gate, peer)
}

/// A client whose service can do this and has granted `credit`. Its frame 1 was the hello, and frame 2
/// the announcement, if it made one.
pub(crate) async fn client_of(
    capabilities: &[&str],
    credit: u32,
    announcement: Option<AgentStarted>,
) -> (IpcClient, WirePeer) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let mut setup = client();
    if let Some(announcement) = &announcement {
        setup = setup.announce(announcement);
    }
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    let mut answer = hello_with(capabilities);
    answer["credit"] = credit.into();
    service.reply(&hello, "HELLO", answer).await;
    if announcement.is_some() {
        assert_eq!(service.receive().await["type"], "AGENT_STARTED");
        let handled = json!({"handled": [[2, 2]]});
        service.send("ACKNOWLEDGMENTS", handled).await;
    }
    (within(connecting).await.unwrap().unwrap(), service)
}

/// Messages in one write, as a load makes them; their ids.
pub(crate) async fn send_together(
    peer: &mut WirePeer,
    messages: impl IntoIterator<Item = (&str, Value)>,
) -> Vec<String> {
    let (mut ids, mut bytes) = (Vec::new(), Vec::new());
    for (message_type, payload) in messages {
        let (id, frame) = peer.frame(message_type, payload);
        ids.push(id);
        bytes.extend(frame);
    }
    peer.write(&bytes).await;
    ids
}

pub(crate) fn ok() -> (&'static str, Value) {
    ("USER_ACTION", action("x"))
}

pub(crate) fn fail() -> (&'static str, Value) {
    ("USER_ACTION", action("fail"))
}

pub(crate) fn slow() -> (&'static str, Value) {
    let payload = json!({"userId": "", "reason": "other", "requestedDelay": 1, "delaysUsed": 1});
    ("DELAY_REQUEST", payload)
}

pub(crate) fn report() -> (&'static str, Value) {
    let payload = json!({"userId": "", "errorCode": "x", "message": "y", "context": {}});
    ("ERROR_REPORT", payload)
}

pub(crate) fn silent() -> (&'static str, Value) {
    let payload = json!({"userId": "", "categories": [], "estimatedSize": 1});
    ("BACKUP_STARTED", payload)
}
