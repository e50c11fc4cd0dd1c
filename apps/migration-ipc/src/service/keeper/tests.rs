//! The service in memory, on a disk that fails when it is told to.

use std::sync::Arc;

use migration_ipc::messages::{AgentStarted, DelayReason, DelayRequest, Seconds};
use migration_ipc::protocol::OutboxId;
use migration_ipc::storage::{Journal, Store, StoreOptions};
use migration_ipc::transport::memory::{self, MemoryConnector};
use migration_ipc::{
    AccountId, Answer, Execution, IpcClient, IpcServer, MessageDispatcher, PeerIdentity, Privilege,
    SendError, StoreOwner,
};
use migration_ipc_testkit::disk::SimDisk;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::super::agents::NamedAccount;
use super::super::entry_log::EntryLog;
use super::super::handlers::{Office, dispatcher};
use super::super::key::{UserKey, UserScope};
use super::super::policy::DelayPolicy;
use super::super::record::UserRecord;
use super::super::snapshot::About;
use super::super::state::{Migration, Rules};
use super::*;

struct Service {
    disk: SimDisk,
    store: StoreOwner,
    keeper: Keeper,
    keeping: JoinHandle<()>,
    server: IpcServer,
    connector: MemoryConnector,
}

fn identity(account: &str) -> PeerIdentity {
    PeerIdentity::new(AccountId::new(account), Privilege::Ordinary)
}

fn alice() -> NamedAccount {
    NamedAccount {
        account: AccountId::new("alice"),
        name: "alice".into(),
    }
}

impl Service {
    async fn start(disk: SimDisk) -> Self {
        let options = StoreOptions {
            journal: Journal::newest(),
        };
        let fresh = OutboxId::from_bytes([7; 16]);
        let opened = Store::open(Arc::new(disk.clone()), store::FILE, options, fresh);
        let (opened, _) = opened.unwrap();
        let stored = store::load(&opened.reader()).unwrap();
        let owner = StoreOwner::start(opened, Execution::Inline);
        let rules = Rules {
            scope: UserScope::Account,
            delays: DelayPolicy::default(),
            on_announce: None,
        };
        let now = Clock::new().now();
        let migration = Migration::new(rules, stored.users, stored.standing_request, now);
        let desk = Desk::new(migration);
        let (keeper, task) = Keeper::new(desk, owner.handle(), stored.decision);
        let office = Office {
            keeper: keeper.clone(),
            about: About {
                started: now,
                recorder: crate::telemetry::Recorder::default(),
            },
            entries: EntryLog::default(),
            store: owner.handle(),
            server: Arc::new(OnceCell::new()),
        };
        let (listener, connector) = memory::listen("service", identity("service"), 64 * 1024);
        let server = IpcServer::builder(dispatcher(office).unwrap())
            .listener(listener)
            .store(owner.handle())
            .start()
            .await
            .unwrap();
        let keeping = tokio::spawn(task.run(server.sender(), server.events()));
        Self {
            disk,
            store: owner,
            keeper,
            keeping,
            server,
            connector,
        }
    }

    async fn agent(&self) -> IpcClient {
        let stream = self.connector.connect(identity("alice")).await.unwrap();
        let mut client = IpcClient::builder(MessageDispatcher::empty())
            .announce(&AgentStarted::new("alice", "1", "s1"))
            .connect_over(stream)
            .await
            .unwrap();
        client.announced().await.unwrap();
        client
    }

    async fn alice(&self) -> Option<UserRecord> {
        let find = |desk: &mut Desk, _| {
            let key = UserKey::of_account(&alice().account);
            desk.migration.user(&key).cloned()
        };
        self.keeper.ask(find).await.unwrap()
    }

    /// Ends in good order, and starts again from what is on the disk.
    async fn restart(self) -> Self {
        self.server.stop(Duration::from_secs(1)).await;
        drop(self.keeper);
        self.keeping.await.unwrap();
        self.store.close().await.unwrap().close().unwrap();
        Self::start(self.disk).await
    }
}

async fn delay(agent: &IpcClient) -> Result<Answer, SendError> {
    let hour = Seconds(3600);
    let delay = DelayRequest::new("alice", DelayReason::UserBusy, hour, 0);
    agent.send_acknowledged(delay).await
}

#[tokio::test(start_paused = true)]
async fn what_is_not_stored_did_not_happen() {
    let service = Service::start(SimDisk::new(1)).await;
    let agent = service.agent().await;
    assert!(matches!(delay(&agent).await, Ok(Answer::Replied(_))));
    assert_eq!(service.alice().await.unwrap().delays_used, 1);

    service.disk.set_read_only(true);
    match delay(&agent).await {
        Err(SendError::Rejected(rejection)) => assert!(rejection.is_retryable(), "{rejection:?}"),
        other => panic!("{other:?}"),
    }
    service.disk.set_read_only(false);
    // Reading comes back first; until then everything is refused.
    while service.keeper.ask(|_, _| ()).await.is_err() {
        tokio::time::advance(RELOAD_INTERVAL).await;
    }
    assert_eq!(service.alice().await.unwrap().delays_used, 1);

    assert!(matches!(delay(&agent).await, Ok(Answer::Replied(_))));
    assert_eq!(service.alice().await.unwrap().delays_used, 2);
    let service = service.restart().await;
    assert_eq!(service.alice().await.unwrap().delays_used, 2);
}

#[tokio::test(start_paused = true)]
async fn decisions_on_top_of_one_that_failed_fail_too_and_can_be_made_again() {
    let service = Service::start(SimDisk::new(2)).await;
    service.disk.fail_sync(0);
    let enrol = |name: &str| {
        let known = NamedAccount {
            account: AccountId::new(name),
            name: name.into(),
        };
        service
            .keeper
            .ask(move |desk, _| desk.migration.handle_roster(&known))
    };
    let both = tokio::join!(enrol("alice"), enrol("bob"));
    let not_stored = Err(KeeperError::NotStored);
    assert_eq!(both, (not_stored, not_stored));
    while enrol("alice").await.is_err() {
        tokio::time::advance(RELOAD_INTERVAL).await;
    }
    let service = service.restart().await;
    assert_eq!(service.alice().await.unwrap().name, "alice");
}
