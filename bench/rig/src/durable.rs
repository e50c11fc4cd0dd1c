//! Mode E: durable messages, from `send` to the receipt.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::stream::{FuturesUnordered, StreamExt};
use migration_ipc::messages::AgentStarted;
use migration_ipc::storage::disk::{Disk, DiskFile, Folder};
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::{
    Endpoint, Execution, Fate, MessageDispatcher, OutboxId, ReconnectingIpcClient, StoreOwner,
    Trust,
};
use tokio::time::timeout;

use crate::message::progress;
use crate::modes::{Task, WINDOW};
use crate::report::{Meter, Report, as_f64, rounded};

/// Messages before the clock starts.
const WARM_UP: u64 = 10_000;

/// How long the last receipt may take.
const RECEIPT_LIMIT: Duration = Duration::from_secs(30);

/// Sends durable messages, [`WINDOW`] calls at once, and waits for every receipt.
pub(crate) async fn stream(task: Task) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let disk = Arc::new(CountingDisk::open(folder.path())?);
    let client = ReconnectingIpcClient::builder(MessageDispatcher::empty())
        .endpoint(Endpoint::parse(&task.endpoint)?)
        .trust(Trust::OwnAccount)
        .announce_with(|| AgentStarted::new("", env!("CARGO_PKG_VERSION"), "rig"))
        .outbox(Arc::clone(&disk) as Arc<dyn Disk>, OutboxOptions::default())
        .start()
        .await?;
    send_all(&client, WARM_UP).await?;
    let before = disk.syncs();
    let meter = Meter::start(task.server);
    send_all(&client, task.count).await?;
    let report = meter.finish(task.count);
    let syncs = as_f64(disk.syncs() - before) / as_f64(task.count);
    client.stop(Duration::from_secs(5)).await;
    Ok(Report {
        syncs: Some(rounded(syncs, 4)),
        ..report
    })
}

async fn send_all(client: &ReconnectingIpcClient, count: u64) -> Result<()> {
    let mut numbers = 0..count;
    let mut sends = FuturesUnordered::new();
    let mut receipts = Vec::new();
    for number in numbers.by_ref().take(usize::try_from(WINDOW)?) {
        sends.push(client.send_durable(progress(number)));
    }
    while let Some(accepted) = sends.next().await {
        receipts.push(accepted?);
        if let Some(number) = numbers.next() {
            sends.push(client.send_durable(progress(number)));
        }
    }
    for receipt in receipts {
        let fate = timeout(RECEIPT_LIMIT, receipt.fate())
            .await
            .context("a message was not answered")?;
        ensure!(
            matches!(fate, Fate::Handled),
            "a message was not handled: {fate}"
        );
    }
    Ok(())
}

/// The server's store, in a folder that lives as long as it.
#[derive(Debug)]
pub(crate) struct ServerStore {
    pub(crate) owner: StoreOwner,
    _folder: tempfile::TempDir,
}

impl ServerStore {
    pub(crate) fn open() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let disk = Arc::new(Folder::open(folder.path())?);
        let fresh = OutboxId::from_bytes([1; 16]);
        let (store, _) = Store::open(disk, "rig", StoreOptions::default(), fresh)?;
        Ok(Self {
            owner: StoreOwner::start(store, Execution::Blocking),
            _folder: folder,
        })
    }
}

/// A folder that counts how often data was made durable.
#[derive(Debug)]
struct CountingDisk {
    folder: Folder,
    syncs: Arc<AtomicU64>,
}

impl CountingDisk {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            folder: Folder::open(path)?,
            syncs: Arc::default(),
        })
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn counted(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(CountingFile {
            file,
            syncs: Arc::clone(&self.syncs),
        })
    }
}

impl Disk for CountingDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.folder.list()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.counted(Disk::open(&self.folder, name)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.counted(self.folder.create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.folder.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.folder.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.folder.sync()
    }
}

#[derive(Debug)]
struct CountingFile {
    file: Box<dyn DiskFile>,
    syncs: Arc<AtomicU64>,
}

impl DiskFile for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }
}
