//! Handlers that do as a test tells them, and say what happens to them.

use std::sync::{Arc, Mutex};

use migration_ipc::messages::{DelayRequest, UserAction};
use migration_ipc::{
    Cancellation, ConnectionConfig, DispatcherBuilder, HandlerOptions, IpcServer,
    MessageDispatcher, State,
};

use crate::common::{Gate, WirePeer, serve, user};

/// Where handlers play: each says `begin`, waits at the gate, and says `end`.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    said: Arc<Mutex<Vec<String>>>,
    pub(crate) gate: Gate,
}

impl Stage {
    /// Handlers wait until the test admits them.
    pub(crate) fn new() -> Self {
        Self {
            said: Arc::default(),
            gate: Gate::closed(),
        }
    }

    pub(crate) fn say(&self, what: impl Into<String>) {
        self.said.lock().unwrap().push(what.into());
    }

    /// What was said since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.said.lock().unwrap())
    }

    pub(crate) fn has_said(&self, what: &str) -> bool {
        self.said.lock().unwrap().iter().any(|said| said == what)
    }

    async fn play(&self, name: &str) {
        let mut scene = Scene {
            stage: self,
            name,
            ended: false,
        };
        self.say(format!("begin {name}"));
        self.gate.pass().await;
        self.say(format!("end {name}"));
        scene.ended = true;
    }

    /// `USER_ACTION` is played one after the other, `DELAY_REQUEST` concurrently.
    pub(crate) fn builder(&self) -> DispatcherBuilder<Self> {
        MessageDispatcher::builder(self.clone())
            .handle(on_action)
            .handle_with(HandlerOptions::new().concurrent(), on_delay)
    }

    pub(crate) fn dispatcher(&self) -> MessageDispatcher {
        self.builder().build().unwrap()
    }
}

/// Says so when a handler is dropped before its end.
struct Scene<'a> {
    stage: &'a Stage,
    name: &'a str,
    ended: bool,
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.stage.say(format!("dropped {}", self.name));
        }
    }
}

/// An action named `heed` ends as soon as it is cancelled.
async fn on_action(action: UserAction, State(stage): State<Stage>, cancellation: Cancellation) {
    if action.action == "heed" {
        stage.say("begin heed");
        cancellation.cancelled().await;
        stage.say("cancelled heed");
    } else {
        stage.play(&action.action).await;
    }
}

async fn on_delay(request: DelayRequest, State(stage): State<Stage>) {
    stage.play(&format!("delay {}", request.delays_used)).await;
}

pub(crate) fn delay(number: u32) -> serde_json::Value {
    serde_json::json!({"userId": "", "reason": "other", "requestedDelay": 1, "delaysUsed": number})
}

/// The defaults with an inbox of this many messages.
pub(crate) fn inbox_of(messages: usize) -> ConnectionConfig {
    let mut config = ConnectionConfig::default();
    config.limits.inbox_messages = messages;
    config
}

/// A server whose handlers never wait, and a peer that has said nothing yet.
pub(crate) async fn served_peer() -> (IpcServer, WirePeer) {
    let stage = Stage::new();
    stage.gate.open();
    let (server, connector) = serve(stage.dispatcher()).await;
    let peer = WirePeer::connect(&connector, user("1000")).await;
    (server, peer)
}
