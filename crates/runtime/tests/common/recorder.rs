//! A service with a store, which writes down what took effect.

use std::sync::Arc;

use migration_ipc::messages::{AgentStarted, UserAction};
use migration_ipc::storage::{Rows, Store, StoreOptions};
use migration_ipc::transport::Listener;
use migration_ipc::{
    Effects, Execution, IpcServer, MessageDispatcher, OutboxId, Refusal, StoreOwner,
};
use migration_ipc_testkit::disk::SimDisk;

/// Each [`UserAction`] that it handles becomes a row of its store, once.
pub(crate) struct Recorder {
    pub(crate) disk: SimDisk,
    pub(crate) owner: StoreOwner,
    pub(crate) server: IpcServer,
}

impl Recorder {
    pub(crate) async fn on(listener: impl Listener + 'static, disk: SimDisk) -> Self {
        let fresh = OutboxId::from_bytes([9; 16]);
        let options = StoreOptions::default();
        let (store, _) = Store::open(Arc::new(disk.clone()), "store", options, fresh).unwrap();
        let owner = StoreOwner::start(store, Execution::Inline);
        let dispatcher = MessageDispatcher::builder(())
            .handle(|_: AgentStarted| async {})
            .handle(|action: UserAction| async move {
                Effects::new().update(move |rows| append(rows, &action.action))
            })
            .build()
            .unwrap();
        let server = IpcServer::builder(dispatcher)
            .listener(listener)
            .store(owner.handle())
            .start()
            .await
            .unwrap();
        Self {
            disk,
            owner,
            server,
        }
    }

    /// The machine stops where it is; what its disk holds then.
    pub(crate) fn crash(self) -> SimDisk {
        self.disk.restart()
    }

    /// The names of what took effect, in the order of the effects.
    pub(crate) async fn log(&self) -> Vec<String> {
        let rows = self
            .owner
            .handle()
            .read(|reader| reader.scan("log", "n"))
            .await
            .unwrap();
        rows.into_iter()
            .map(|(_, name)| String::from_utf8(name).unwrap())
            .collect()
    }
}

/// Writes what was handled behind what was handled before.
fn append(rows: &mut Rows<'_>, name: &str) -> Result<(), Refusal> {
    let count = rows.get("log", "count")?.map_or(0, |bytes| {
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    });
    rows.put("log", "count", (count + 1).to_be_bytes());
    rows.put(
        "log",
        [b"n".as_slice(), &count.to_be_bytes()].concat(),
        name,
    );
    Ok(())
}
