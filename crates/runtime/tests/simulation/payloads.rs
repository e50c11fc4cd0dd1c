//! What agents and the service say to each other.

use fastrand::Rng;
use migration_ipc::messages::UserAction;
use migration_ipc::{MessagePayload, Request, Sender, StreamingRequest};
use serde::{Deserialize, Serialize};
use serde_json::{from_value, to_value};

use crate::model::{Name, Task};

/// The message that asks for this task.
pub(crate) fn action(name: Name, task: Task) -> UserAction {
    let action = UserAction::new("", "act")
        .with_detail("name", to_value(name).unwrap())
        .with_detail("task", to_value(task).unwrap());
    match task.ballast {
        0 => action,
        bytes => action.with_detail("ballast", ballast(name, bytes)),
    }
}

/// What a message asks for.
pub(crate) fn asked(action: &UserAction) -> (Name, Task) {
    let of = |member: &str| action.details[member].clone();
    (
        from_value(of("name")).unwrap(),
        from_value(of("task")).unwrap(),
    )
}

/// Whether all that the message was made of is there.
pub(crate) fn is_whole(action: &UserAction) -> bool {
    let (name, task) = asked(action);
    let found = action.details.get("ballast").and_then(|text| text.as_str());
    match task.ballast {
        0 => found.is_none(),
        bytes => found == Some(&ballast(name, bytes)),
    }
}

/// So many bytes, others for each message. Some of them can be compressed.
fn ballast(name: Name, bytes: usize) -> String {
    let mut random = Rng::with_seed((name.agent as u64) << 32 | name.number as u64);
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        let word = format!("{:016x}", random.u64(..));
        for _ in 0..random.usize(1..=2) {
            text.push_str(&word);
        }
    }
    text.truncate(bytes);
    text
}

/// A request for this task, and for so many items before its end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) name: Name,
    pub(crate) task: Task,
    pub(crate) items: u32,
}

impl MessagePayload for Ask {
    const TYPE: &'static str = "ASK";
    const SENDER: Sender = Sender::Agent;
}

impl Request for Ask {
    type Reply = Told;
}

impl StreamingRequest for Ask {
    type Item = Item;
    type Reply = Told;
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) name: Name,
    /// How many items came before.
    pub(crate) items: u32,
}

impl MessagePayload for Told {
    const TYPE: &'static str = "TOLD";
    const SENDER: Sender = Sender::Service;
}

/// What comes before it, numbered from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) name: Name,
    pub(crate) place: u32,
}

impl MessagePayload for Item {
    const TYPE: &'static str = "ITEM";
    const SENDER: Sender = Sender::Service;
}
