//! Handlers that do as their messages say, and peers that know batches.

use std::sync::{Arc, Mutex};

use migration_ipc::messages::{
    AgentStarted, BackupProgress, ConfigurationUpdate, DelayRequest, UserAction,
};
use migration_ipc::{
    ConnectionConfig, HandlerError, HandlerOptions, IpcServer, MessageDispatcher, Peer, Reply,
    State,
};
use serde_json::{Value, json};

use crate::common::*;

/// What handlers were entered, and where some of them wait.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    entered: Arc<Mutex<Vec<String>>>,
    pub(crate) gate: Gate,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            entered: Arc::default(),
            gate: Gate::closed(),
        }
    }

    pub(crate) fn note(&self, what: impl Into<String>) {
        self.entered.lock().unwrap().push(what.into());
    }

    /// The entries since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.entered.lock().unwrap())
    }

    pub(crate) fn dispatcher(&self) -> MessageDispatcher {
        MessageDispatcher::builder(self.clone())
            .handle(on_action)
            .handle_with(HandlerOptions::new().concurrent(), on_delay)
            .handle_with(HandlerOptions::new().silent(), on_progress)
            .handle(on_started)
            .build()
            .unwrap()
    }
}

/// An action fails, replies, panics or waits if it is named so.
async fn on_action(
    action: UserAction,
    State(stage): State<Stage>,
) -> Result<Option<Reply<ConfigurationUpdate>>, HandlerError> {
    let name = action.action;
    stage.note(&*name);
    match &*name {
        "fail" => Err(HandlerError::new("failed")),
        "fail at length" => Err(HandlerError::new("\u{1}".repeat(5000))),
        "reply" => Ok(Some(Reply(ConfigurationUpdate::new("answer", 1.into())))),
        "panic" => panic!("a handler of a test"),
        "wait" => {
            stage.gate.pass().await;
            stage.note("waited");
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// Waits, beside others.
async fn on_delay(request: DelayRequest, State(stage): State<Stage>) {
    stage.note(format!("delay {}", request.delays_used));
    stage.gate.pass().await;
}

async fn on_progress(_: BackupProgress, State(stage): State<Stage>) {
    stage.note("progress");
}

async fn on_started(_: AgentStarted, State(stage): State<Stage>, peer: Peer) {
    stage.note(format!("started {}", peer.account()));
}

pub(crate) fn delay(number: u32) -> Value {
    json!({"userId": "", "reason": "other", "requestedDelay": 1, "delaysUsed": number})
}

/// A server whose inbox holds this many messages, and a peer that has negotiated batches with it.
pub(crate) async fn served(stage: &Stage, inbox: usize) -> (IpcServer, WirePeer) {
    let mut config = ConnectionConfig::default();
    config.limits.inbox_messages = inbox;
    let (server, connector) = serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    let answer = peer.hello_with_batches(1000).await;
    let agreed = answer["payload"]["capabilities"].as_array().unwrap();
    assert!(agreed.contains(&json!("batch")), "{answer}");
    (server, peer)
}

/// A hello, or an answer to one, that names batches.
pub(crate) fn batching_hello(credit: u32) -> Value {
    let mut hello = hello("agent", credit);
    hello["capabilities"]
        .as_array_mut()
        .unwrap()
        .push("batch".into());
    hello
}

impl WirePeer {
    pub(crate) async fn hello_with_batches(&mut self, credit: u32) -> Value {
        self.send("HELLO", batching_hello(credit)).await;
        self.receive().await
    }

    /// Sends a batch of these messages; returns its id.
    pub(crate) async fn send_batch(&mut self, messages: &[Value]) -> String {
        self.send("BATCH", json!({"messages": messages})).await
    }

    /// The outcomes of a batch, in short; what comes before is not looked at.
    pub(crate) async fn outcomes_of(&mut self, batch: &str) -> Vec<String> {
        let answer = self.receive_type("BATCH_OUTCOMES").await;
        assert_eq!(answer["inReplyTo"], batch, "{answer}");
        in_short(&answer)
    }

    /// Answers a batch.
    pub(crate) async fn answer_batch(&mut self, batch: &Value, outcomes: Value) {
        self.reply(batch, "BATCH_OUTCOMES", json!({"outcomes": outcomes}))
            .await;
    }
}

/// Actions of these names, under the ids `a1`, `a2` and so on.
pub(crate) fn actions<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
    let numbered = (1..).zip(names);
    numbered
        .map(|(number, name)| envelope(&format!("a{number}"), "USER_ACTION", action(name)))
        .collect()
}

/// What outcomes say.
pub(crate) fn in_short(answer: &Value) -> Vec<String> {
    let outcomes = answer["payload"]["outcomes"].as_array().unwrap();
    let short = |outcome: &Value| match outcome["success"].as_bool().unwrap() {
        true if outcome["replied"] == true => "replied".to_owned(),
        true => "handled".to_owned(),
        false => outcome["code"].as_str().unwrap_or("refused").to_owned(),
    };
    outcomes.iter().map(short).collect()
}
