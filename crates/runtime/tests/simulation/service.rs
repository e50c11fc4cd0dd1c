//! The program of the service: it writes what it handles into a log in its store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, ErrorCode, UserAction};
use migration_ipc::protocol::OutboxId;
use migration_ipc::storage::{Effects, Refusal, Rows, Store, StoreError, StoreOptions};
use migration_ipc::{
    Execution, HandlerError, HandlerOptions, IpcServer, Items, MessageDispatcher, MessagePayload,
    RawValue, State, StoreOwner,
};
use migration_ipc_testkit::machine::SimProcess;
use serde_json::{json, value::to_raw_value};

use tokio::sync::Notify;

use crate::era::Era;
use crate::model::{Ending, Model, Name, Task};
use crate::payloads::{Ask, Item, Told, asked, is_whole};

pub(crate) const STORE: &str = "service.redb";
const LOG: &str = "log";

/// How long stopping in good order may take.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// What the service knows in one life.
#[derive(Clone, Debug)]
struct Desk {
    /// How often it said "busy" to whom.
    said: Arc<Mutex<BTreeMap<Name, u8>>>,
    model: Arc<Mutex<Model>>,
}

impl Desk {
    fn is_busy(&self, name: Name, task: Task) -> bool {
        let mut said = self.said.lock().unwrap();
        let said = said.entry(name).or_default();
        *said += 1;
        *said <= task.busy
    }
}

/// Runs until it is asked to stop, in good order, or dropped.
pub(crate) async fn serve(
    process: SimProcess,
    model: Arc<Mutex<Model>>,
    era: Era,
    stop: Arc<Notify>,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut fresh = [0; 16];
    fastrand::fill(&mut fresh);
    let fresh = OutboxId::from_bytes(fresh);
    let (store, _) = Store::open(process.folder(), STORE, StoreOptions::default(), fresh)
        .map_err(|error| text(&error))?;
    let store = StoreOwner::start(store, Execution::Inline);
    let desk = Desk {
        said: Arc::default(),
        model,
    };
    let dispatcher = MessageDispatcher::builder(desk)
        .handle(on_started)
        .handle(on_action)
        .handle_with(HandlerOptions::new().concurrent(), on_ask)
        .build()
        .map_err(|error| text(&error))?;
    let abilities = era.abilities();
    let server = IpcServer::builder(dispatcher);
    let server = match abilities.encryption {
        Some(encryption) => server.encryption(encryption),
        None => server,
    };
    let server = server
        .store(store.handle())
        .connection_config(abilities.config)
        .listener(process.host().listen())
        .start()
        .await
        .map_err(|error| text(&error))?;
    stop.notified().await;
    server.stop(GRACE).await;
    store.close().await;
    Ok(())
}

async fn on_started(_: AgentStarted) {}

async fn on_action(action: UserAction, State(desk): State<Desk>) -> Result<Effects, HandlerError> {
    let (name, task) = asked(&action);
    if !is_whole(&action) {
        desk.model
            .lock()
            .unwrap()
            .object(format!("{name} is not whole"));
    }
    let effects = desk.begin(name, task).await?;
    end(
        effects,
        task,
        &ConfigurationUpdate::new("reply", json!(name)),
    )
}

async fn on_ask(
    ask: Ask,
    State(desk): State<Desk>,
    mut items: Items<Item>,
) -> Result<Effects, HandlerError> {
    let Ask { name, task, .. } = ask;
    let effects = desk.begin(name, task).await?;
    for place in 1..=ask.items {
        items.send(Item { name, place }).await?;
    }
    let items = ask.items;
    end(effects, task, &Told { name, items })
}

impl Desk {
    /// Works for as long as the task takes; the effects that it has.
    async fn begin(&self, name: Name, task: Task) -> Result<Effects, HandlerError> {
        tokio::time::sleep(Duration::from_millis(task.millis)).await;
        if self.is_busy(name, task) {
            return Err(HandlerError::new("busy").with_code(ErrorCode::Busy));
        }
        Ok(Effects::new().update(move |rows| log(rows, name)))
    }
}

/// Ends as the task says, with this reply if with any.
fn end<P: MessagePayload>(
    effects: Effects,
    task: Task,
    reply: &P,
) -> Result<Effects, HandlerError> {
    match task.ending {
        Ending::Handled => Ok(effects),
        Ending::Replied => {
            let payload: Box<RawValue> = to_raw_value(reply)?;
            Ok(effects.reply(P::TYPE, payload))
        }
        Ending::Rejected => Err(HandlerError::new("as asked")),
        Ending::Refused => Ok(effects.update(|_| Err(Refusal::new("as asked")))),
    }
}

/// Writes a message behind everything that is in the log.
fn log(rows: &mut Rows<'_>, name: Name) -> Result<(), Refusal> {
    let length = match rows.get("length", [])? {
        Some(bytes) => u64::from_be_bytes(bytes.try_into().unwrap()),
        None => 0,
    };
    rows.put(
        LOG,
        length.to_be_bytes(),
        serde_json::to_vec(&name).unwrap(),
    );
    rows.put("length", [], (length + 1).to_be_bytes());
    Ok(())
}

/// What the store holds: the log in its order, and the dead letters.
pub(crate) fn read_store(process: &SimProcess) -> Result<(Vec<Name>, Vec<Name>), StoreError> {
    let fresh = OutboxId::from_bytes([0; 16]);
    let (store, _) = Store::open(process.folder(), STORE, StoreOptions::default(), fresh)?;
    let reader = store.reader();
    let log = reader.scan(LOG, [])?;
    let log = log
        .iter()
        .map(|(_, name)| serde_json::from_slice(name).unwrap());
    let dead = reader.dead_letters(0, usize::MAX)?;
    let dead = dead.iter().map(|dead| {
        let action = dead.letter.message.payload::<UserAction>().unwrap();
        asked(&action).0
    });
    Ok((log.collect(), dead.collect()))
}
