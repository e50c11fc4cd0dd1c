//! A machine on a simulated network, with a simulated disk: what dies together in a crash.
//!
//! [`SimMachine`] is what lasts: the disk, the identity, the place on the network. [`SimProcess`] is
//! one life of the program on it. When its disk stops in the middle of a sync, its connections end
//! in that moment as well, so nothing that it does afterwards can reach anybody: as far as the
//! others can see, the process is gone, even while its tasks still wind up.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use migration_ipc_store::disk::{Disk, DiskFile};
use migration_ipc_transport::PeerIdentity;

use crate::disk::SimDisk;
use crate::faults::{SimHost, SimNetwork};

/// A machine, with one disk for one program of one account.
#[derive(Debug)]
pub struct SimMachine {
    network: SimNetwork,
    identity: PeerIdentity,
    present: Mutex<Present>,
}

/// The disk as it is now, and the program that runs, if one was started.
#[derive(Debug)]
struct Present {
    disk: SimDisk,
    host: Option<SimHost>,
}

impl SimMachine {
    /// A machine with this disk, on which nothing runs yet.
    pub fn new(network: SimNetwork, identity: PeerIdentity, disk: SimDisk) -> Self {
        Self {
            network,
            identity,
            present: Mutex::new(Present { disk, host: None }),
        }
    }

    /// Starts the program. One that still runs crashes first; what it had not synced is lost, kept
    /// or torn, as the disk's seed says.
    pub fn start(&self) -> SimProcess {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = present.host.take() {
            host.crash();
        }
        let host = self.network.host(self.identity.clone());
        present.disk = present.disk.restart();
        present.host = Some(host.clone());
        SimProcess {
            host,
            disk: present.disk.clone(),
        }
    }
}

/// One life of a program. Clones are the same one.
#[derive(Clone, Debug)]
pub struct SimProcess {
    host: SimHost,
    disk: SimDisk,
}

impl SimProcess {
    /// Its place on the network.
    pub fn host(&self) -> &SimHost {
        &self.host
    }

    /// The simulated disk, to plan faults on. It notices a crash too late; stores are opened on
    /// [`folder`](Self::folder).
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// The disk for the program's stores.
    pub fn folder(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// The machine stops now.
    pub fn crash(&self) {
        self.disk.crash();
        self.host.crash();
    }

    /// The program has ended in good order.
    pub fn end(&self) {
        self.host.end();
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.host.is_running()
    }

    /// Waits until it has ended, by a crash or otherwise. Cancel safe.
    pub async fn ended(&self) {
        self.host.ended().await;
    }

    /// Passes on how an operation on the disk went; if the machine stopped in it, all of it did.
    fn after<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if outcome.is_err() && !self.disk.is_running() {
            self.host.crash();
        }
        outcome
    }

    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let process = self.clone();
        Box::new(ProcessFile { process, file })
    }
}

impl Disk for SimProcess {
    fn list(&self) -> io::Result<Vec<String>> {
        self.after(self.disk.list())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.after(self.disk.open(name)).map(|file| self.file(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let created = self.after(self.disk.create(name));
        created.map(|file| self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.after(self.disk.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.after(self.disk.remove(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.after(Disk::sync(&self.disk))
    }
}

/// A file that a [`SimProcess`] has open.
#[derive(Debug)]
struct ProcessFile {
    process: SimProcess,
    file: Box<dyn DiskFile>,
}

impl DiskFile for ProcessFile {
    fn len(&self) -> io::Result<u64> {
        self.process.after(self.file.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.process.after(self.file.read_at(offset, buffer))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.process.after(self.file.write_at(offset, bytes))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.process.after(self.file.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.process.after(self.file.sync())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use migration_ipc_transport::{AccountId, Listener, Privilege};
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::faults::{FaultKind, FaultPlan, Seed};

    fn machine(network: &SimNetwork, account: &str) -> SimMachine {
        let identity = PeerIdentity::new(AccountId::new(account), Privilege::Ordinary);
        SimMachine::new(network.clone(), identity, SimDisk::new(1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_in_a_sync_ends_the_connections_in_that_moment() {
        let network = SimNetwork::new(Seed::new(1), FaultPlan::calm());
        let machine_of_service = machine(&network, "service");
        let service = machine_of_service.start();
        let agent = machine(&network, "agent").start();
        let mut listener = service.host().listen();
        let mut at_agent = agent.host().connect(Duration::MAX).await.unwrap();
        let _at_service = listener.accept().await.unwrap();

        let file = service.folder().create("store").unwrap();
        file.sync().unwrap();
        service.folder().sync().unwrap();
        service.disk().crash_at_sync(0);
        file.write_at(0, b"unsynced").unwrap();
        assert!(service.is_running());
        file.sync().unwrap_err();
        assert!(!service.is_running());
        service.ended().await;
        assert_eq!(at_agent.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(network.counts().of(FaultKind::Crash), 1);

        let next = machine_of_service.start();
        assert!(next.is_running() && !service.is_running());
        assert_eq!(next.folder().list().unwrap(), ["store"]);
        service.folder().list().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_ends_the_life_before() {
        let network = SimNetwork::new(Seed::new(2), FaultPlan::calm());
        let machine = machine(&network, "agent");
        let (first, second) = (machine.start(), machine.start());
        assert!(!first.is_running());
        first.folder().list().unwrap_err();
        second.folder().list().unwrap();
        second.crash();
        assert!(!second.is_running());
        second.folder().create("file").unwrap_err();
    }
}
