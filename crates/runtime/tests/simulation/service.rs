//! The program of the service: it writes what it handles into a log in its store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, ErrorCode, UserAction};
use migration_ipc::protocol::OutboxId;
use migration_ipc::storage::{Effects, Refusal, Rows, Store, StoreError, StoreOptions};
use migration_ipc::{
    Execution, HandlerError, IpcServer, MessageDispatcher, MessagePayload, RawValue, State,
    StoreOwner,
};
use migration_ipc_testkit::machine::SimProcess;
use serde_json::{json, value::to_raw_value};

use tokio::sync::Notify;

use crate::agent::{asked, connection_config};
use crate::model::{Ending, Name, Task};

pub(crate) const STORE: &str = "service.redb";
const LOG: &str = "log";

/// How long stopping in good order may take.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// What the service knows in one life: how often it said "busy" to whom.
#[derive(Clone, Debug, Default)]
struct Desk(Arc<Mutex<BTreeMap<Name, u8>>>);

impl Desk {
    fn is_busy(&self, name: Name, task: Task) -> bool {
        let mut said = self.0.lock().unwrap();
        let said = said.entry(name).or_default();
        *said += 1;
        *said <= task.busy
    }
}

/// Runs until it is asked to stop, in good order, or dropped.
pub(crate) async fn serve(process: SimProcess, stop: Arc<Notify>) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut fresh = [0; 16];
    fastrand::fill(&mut fresh);
    let fresh = OutboxId::from_bytes(fresh);
    let (store, _) = Store::open(process.folder(), STORE, StoreOptions::default(), fresh)
        .map_err(|error| text(&error))?;
    let store = StoreOwner::start(store, Execution::Inline);
    let dispatcher = MessageDispatcher::builder(Desk::default())
        .handle(on_started)
        .handle(on_action)
        .build()
        .map_err(|error| text(&error))?;
    let server = IpcServer::builder(dispatcher)
        .store(store.handle())
        .connection_config(connection_config())
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
    tokio::time::sleep(Duration::from_millis(task.millis)).await;
    if desk.is_busy(name, task) {
        return Err(HandlerError::new("busy").with_code(ErrorCode::Busy));
    }
    let effects = Effects::new().update(move |rows| log(rows, name));
    match task.ending {
        Ending::Handled => Ok(effects),
        Ending::Replied => {
            let reply = ConfigurationUpdate::new("reply", json!(name));
            let payload: Box<RawValue> = to_raw_value(&reply)?;
            Ok(effects.reply(ConfigurationUpdate::TYPE, payload))
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
