//! Handlers that answer as a test tells them, and the two ends that they are at.

use std::sync::{Arc, Mutex};

use migration_ipc::transport::memory;
use migration_ipc::{
    Cancellation, ConnectionConfig, Deadline, DispatcherBuilder, HandlerError, HandlerOptions,
    IpcClient, IpcConnection, IpcServer, ItemError, Items, MessageDispatcher, MessagePayload,
    Reply, Request, Sender, State, StreamingRequest, UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::common::*;

/// Asks the handlers of the [`Stage`] for something.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) what: String,
}

pub(crate) fn ask(what: &str) -> Ask {
    Ask { what: what.into() }
}

impl MessagePayload for Ask {
    const TYPE: &'static str = "ASK";
    const SENDER: Sender = Sender::Any;
}

impl Request for Ask {
    type Reply = Told;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) text: String,
}

impl MessagePayload for Told {
    const TYPE: &'static str = "TOLD";
    const SENDER: Sender = Sender::Any;
}

/// Asks for so many numbers, and then for their sum.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) to: u64,
}

impl MessagePayload for Count {
    const TYPE: &'static str = "COUNT";
    const SENDER: Sender = Sender::Any;
}

impl StreamingRequest for Count {
    type Item = Number;
    type Reply = Sum;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number {
    pub(crate) number: u64,
}

impl MessagePayload for Number {
    const TYPE: &'static str = "NUMBER";
    const SENDER: Sender = Sender::Any;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub(crate) sum: u64,
}

impl MessagePayload for Sum {
    const TYPE: &'static str = "SUM";
    const SENDER: Sender = Sender::Any;
}

/// As [`Count`], of a type that nobody handles.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct UnknownCount {
    pub(crate) to: u64,
}

impl MessagePayload for UnknownCount {
    const TYPE: &'static str = "UNKNOWN_COUNT";
    const SENDER: Sender = Sender::Any;
}

impl StreamingRequest for UnknownCount {
    type Item = Number;
    type Reply = Sum;
}

/// A reply that names an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Whose {
    pub(crate) user: UserId,
}

impl MessagePayload for Whose {
    const TYPE: &'static str = "WHOSE";
    const SENDER: Sender = Sender::Any;

    fn user_id_mut(&mut self) -> Option<&mut UserId> {
        Some(&mut self.user)
    }
}

/// Asks for [`Whose`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AskWhose {}

impl MessagePayload for AskWhose {
    const TYPE: &'static str = "ASK_WHOSE";
    const SENDER: Sender = Sender::Any;
}

impl Request for AskWhose {
    type Reply = Whose;
}

/// Where handlers play. `ASK` is played one after the other, `COUNT` concurrently.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    said: Arc<Mutex<Vec<String>>>,
    pub(crate) gate: Gate,
}

impl Stage {
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

    pub(crate) fn builder(&self) -> DispatcherBuilder<Self> {
        MessageDispatcher::builder(self.clone())
            .handle_with(HandlerOptions::new().silent(), on_ask)
            .handle_with(HandlerOptions::new().concurrent(), on_count)
    }

    pub(crate) fn dispatcher(&self) -> MessageDispatcher {
        self.builder().build().unwrap()
    }
}

/// Says `begin`, and then: `gate` waits to be admitted, `heed` for its cancellation, `fail` fails,
/// and `nothing` has nothing to say. Everything else is echoed at once.
async fn on_ask(
    ask: Ask,
    State(stage): State<Stage>,
    cancellation: Cancellation,
    deadline: Deadline,
    connection: IpcConnection,
) -> Result<Option<Reply<Told>>, HandlerError> {
    stage.say(format!("begin {}", ask.what));
    match ask.what.as_str() {
        "gate" => stage.gate.pass().await,
        "heed" => {
            cancellation.cancelled().await;
            assert!(cancellation.is_cancelled());
            stage.say("cancelled heed");
        }
        "fail" => return Err(HandlerError::new("as told")),
        "nothing" => return Ok(None),
        "left" => {
            let left = deadline.remaining();
            let text = left.map_or("for ever".into(), |left| left.as_millis().to_string());
            return Ok(Some(Reply(Told { text })));
        }
        "back" => {
            let told = connection
                .request(crate::stage::ask("left"))
                .before(deadline)
                .unless(cancellation)
                .await;
            stage.say("answered back");
            return Ok(Some(Reply(told?)));
        }
        _ => {}
    }
    stage.say(format!("end {}", ask.what));
    Ok(Some(Reply(Told { text: ask.what })))
}

async fn on_count(
    count: Count,
    State(stage): State<Stage>,
    mut items: Items<Number>,
    mut second: Items<Number>,
) -> Result<Reply<Sum>, HandlerError> {
    stage.say(format!("count to {}", count.to));
    let taken = second.send(Number { number: 0 }).await;
    assert!(matches!(taken, Err(ItemError::NotAsked)), "{taken:?}");
    let mut sum = 0;
    for number in 1..=count.to {
        if items.are_wanted() || number == 1 {
            let sent = items.send(Number { number }).await;
            if let Err(error) = &sent {
                stage.say(format!("stopped at {number}: {error}"));
            }
            sent?;
        }
        sum += number;
    }
    stage.say("counted");
    Ok(Reply(Sum { sum }))
}

/// Two ends of a connection: a server's and a client's, each with the handlers of its stage.
pub(crate) struct Ends {
    _server: IpcServer,
    pub(crate) at_server: IpcConnection,
    pub(crate) client: IpcClient,
}

pub(crate) async fn ends(server: &Stage, client: &Stage) -> Ends {
    ends_with(server, client, ConnectionConfig::default()).await
}

pub(crate) async fn ends_with(server: &Stage, client: &Stage, config: ConnectionConfig) -> Ends {
    let (running, connector) = serve_with(server.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await;
    let client = IpcClient::builder(client.dispatcher())
        .connection_config(config)
        .connect_over(connector.connect(user("1000")).await.unwrap())
        .await
        .unwrap();
    let at_server = only_connection(&running).await;
    Ends {
        _server: running,
        at_server,
        client,
    }
}

/// A hello that has requests, and credit unless it is `None`.
pub(crate) fn asking_hello(credit: u32) -> Value {
    let mut hello = hello("agent", credit);
    hello["capabilities"] = json!(["inReplyTo", "errorCodes", "credit", "goodbye", "requests"]);
    hello
}

/// A server with the handlers of a stage, and a peer that has said hello.
pub(crate) async fn served_peer(stage: &Stage) -> (IpcServer, WirePeer) {
    let (server, connector) = serve(stage.dispatcher()).await;
    let mut peer = WirePeer::connect(&connector, user("1000")).await;
    peer.send("HELLO", asking_hello(1024)).await;
    let answer = peer.receive().await;
    assert!(
        answer["payload"]["capabilities"]
            .as_array()
            .unwrap()
            .contains(&json!("requests"))
    );
    (server, peer)
}

/// A client with the handlers of a stage, and its service, which grants this much credit.
pub(crate) async fn client_of_peer(stage: &Stage, credit: u32) -> (IpcClient, WirePeer) {
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let setup = IpcClient::builder(stage.dispatcher());
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    service.reply(&hello, "HELLO", asking_hello(credit)).await;
    (within(connecting).await.unwrap().unwrap(), service)
}

/// How a peer may write the same message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// As deployed peers and this library do, which is read in a shorter way.
    Usual,
    /// With white space, and the payload first.
    Other,
}

pub(crate) const FORMS: [Form; 2] = [Form::Usual, Form::Other];

/// A frame with these further members of the envelope, each with its comma in front.
pub(crate) fn written(
    form: Form,
    id: &str,
    message_type: &str,
    members: &str,
    payload: &Value,
    in_reply_to: Option<&Value>,
) -> Vec<u8> {
    let answers = in_reply_to.map_or(String::new(), |id| format!(",\"inReplyTo\":{id}"));
    let head = format!(
        "\"id\":\"{id}\",\"type\":\"{message_type}\",\"timestamp\":\"2024-01-01T12:00:00Z\"{members}"
    );
    frame(&match form {
        Form::Usual => format!("{{{head},\"payload\":{payload}{answers}}}"),
        Form::Other => format!("{{ \"payload\" : {payload}, {head}{answers} }}"),
    })
}
