//! What either side asks the other one for, and the handlers that answer it.

use migration_ipc::{
    Cancellation, DispatcherBuilder, HandlerError, HandlerOptions, Items, MessagePayload, Reply,
    Request, Sender, State, StreamingRequest,
};
use serde::{Deserialize, Serialize};

use crate::talk::Scene;

/// Asks for its own name; `heed` waits for its cancellation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) name: String,
}

pub(crate) fn ask(name: &str) -> Ask {
    Ask { name: name.into() }
}

impl MessagePayload for Ask {
    const TYPE: &'static str = "ASK";
    const SENDER: Sender = Sender::Any;
}

impl Request for Ask {
    type Reply = Told;
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) name: String,
}

impl MessagePayload for Told {
    const TYPE: &'static str = "TOLD";
    const SENDER: Sender = Sender::Any;
}

/// Asks for so many items.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) to: u64,
}

impl MessagePayload for Count {
    const TYPE: &'static str = "COUNT";
    const SENDER: Sender = Sender::Any;
}

impl StreamingRequest for Count {
    type Item = Told;
    type Reply = Told;
}

async fn on_ask(ask: Ask, State(scene): State<Scene>, cancellation: Cancellation) -> Reply<Told> {
    scene.log.note(&*ask.name);
    if ask.name == "heed" {
        cancellation.cancelled().await;
        scene.log.note("heeded");
    }
    Reply(Told { name: ask.name })
}

async fn on_count(
    count: Count,
    State(scene): State<Scene>,
    mut items: Items<Told>,
) -> Result<Reply<Told>, HandlerError> {
    scene.log.note("count");
    for number in 1..=count.to {
        let name = number.to_string();
        items.send(Told { name }).await?;
    }
    Ok(Reply(Told {
        name: "counted".into(),
    }))
}

/// Adds the handlers.
pub(crate) fn answering(builder: DispatcherBuilder<Scene>) -> DispatcherBuilder<Scene> {
    let concurrent = HandlerOptions::new().concurrent();
    builder
        .handle_with(concurrent, on_ask)
        .handle_with(concurrent, on_count)
}
