//! A server with handlers, and what is sent to them.

use std::sync::{Arc, Mutex};

use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    Compression, ConnectionConfig, IpcServer, MessageDispatcher, MessagePayload, Reply, Sender,
    State,
};
use serde::{Deserialize, Serialize};

use crate::common::{Gate, serve_with};

pub(crate) const THRESHOLD: usize = 1000;

/// What takes much room and has a pattern: a list of files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) files: Vec<String>,
}

impl MessagePayload for Manifest {
    const TYPE: &'static str = "MANIFEST";
    const SENDER: Sender = Sender::Any;
}

pub(crate) fn manifest(files: usize) -> Manifest {
    let files = (0..files).map(|file| format!(r"C:\Users\jdoe\Documents\Quarterly\{file}.docx"));
    Manifest {
        files: files.collect(),
    }
}

/// Nothing in it comes twice.
pub(crate) fn noise(length: usize) -> Manifest {
    let mut random = fastrand::Rng::with_seed(7);
    let noise = std::iter::repeat_with(|| random.alphanumeric());
    Manifest {
        files: vec![noise.take(length).collect()],
    }
}

/// What a handler got, and where it waits.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) got: Arc<Mutex<Vec<Manifest>>>,
    pub(crate) gate: Gate,
}

impl Stage {
    pub(crate) fn open() -> Self {
        let stage = Self::closed();
        stage.gate.open();
        stage
    }

    pub(crate) fn closed() -> Self {
        Self {
            got: Arc::default(),
            gate: Gate::closed(),
        }
    }

    pub(crate) fn got(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    pub(crate) fn dispatcher(&self) -> MessageDispatcher {
        MessageDispatcher::builder(self.clone())
            .handle(on_manifest)
            .handle(on_ask)
            .build()
            .unwrap()
    }
}

async fn on_manifest(manifest: Manifest, State(stage): State<Stage>) {
    stage.gate.pass().await;
    stage.got.lock().unwrap().push(manifest);
}

/// Asks for a manifest of this many files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) files: usize,
}

impl MessagePayload for Ask {
    const TYPE: &'static str = "ASK";
    const SENDER: Sender = Sender::Any;
}

async fn on_ask(ask: Ask) -> Reply<Manifest> {
    Reply(manifest(ask.files))
}

pub(crate) fn compressing() -> ConnectionConfig {
    ConnectionConfig {
        compression: Compression::From(THRESHOLD),
        ..ConnectionConfig::default()
    }
}

pub(crate) async fn serving(
    stage: &Stage,
    config: ConnectionConfig,
) -> (IpcServer, MemoryConnector) {
    serve_with(stage.dispatcher(), |server| {
        server.connection_config(config)
    })
    .await
}
