//! The same at the other end: an agent that gets numbered mail from its service.

use std::sync::Arc;

use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::transport::memory;
use migration_ipc::{
    Execution, HandlerOptions, IpcClient, MessageDispatcher, State, StoreOwner,
    messages::ConfigurationUpdate,
};
use migration_ipc_protocol::OutboxId;
use migration_ipc_testkit::disk::SimDisk;
use serde_json::json;

use crate::common::*;
use crate::service::*;

/// An agent whose handler is silent, with a store or without one, and its service.
async fn connect(entered: &Entered, store: Option<&StoreOwner>) -> (IpcClient, WirePeer) {
    async fn on_update(update: ConfigurationUpdate, State(entered): State<Entered>) {
        entered.note(update.key);
    }
    let dispatcher = MessageDispatcher::builder(entered.clone())
        .handle_with(HandlerOptions::new().silent(), on_update)
        .build()
        .unwrap();
    let mut setup = IpcClient::builder(dispatcher);
    if let Some(store) = store {
        setup = setup.store(store.handle());
    }
    let (at_client, at_service) = memory::pair(user("1000"), administrator(), CAPACITY);
    let mut service = WirePeer::over(at_service);
    let connecting = tokio::spawn(setup.connect_over(at_client));
    let hello = service.receive().await;
    let offered = hello["payload"]["capabilities"].as_array().unwrap();
    assert_eq!(offered.contains(&json!("durable")), store.is_some());
    assert_eq!(
        hello["payload"].get("outbox"),
        None,
        "it sends nothing durable"
    );
    service
        .reply(&hello, "HELLO", numbering_hello(OUTBOX))
        .await;
    (within(connecting).await.unwrap().unwrap(), service)
}

fn mail() -> Vec<u8> {
    let payload = json!({"key": "a", "value": 1, "scope": "user"});
    numbered(1, None, "CONFIGURATION_UPDATE", payload)
}

#[tokio::test(start_paused = true)]
async fn an_agent_with_a_store_recognises_mail_that_comes_again() {
    let disk = Arc::new(SimDisk::new(1));
    let options = StoreOptions::default();
    let fresh = OutboxId::from_bytes([7; 16]);
    let (store, _) = Store::open(disk, "store", options, fresh).unwrap();
    let store = StoreOwner::start(store, Execution::Inline);
    let entered = Entered::default();
    for _ in 0..2 {
        let (_client, mut service) = connect(&entered, Some(&store)).await;
        for _ in 0..2 {
            service.write(&mail()).await;
            assert_eq!(told(&service.receive().await), "s1 handled");
        }
    }
    assert_eq!(entered.take(), ["a"]);
}

/// As one that numbers its own messages, and has nothing to remember those of others with.
#[tokio::test(start_paused = true)]
async fn an_agent_without_a_store_answers_all_mail_and_recognises_none() {
    let entered = Entered::default();
    let (_client, mut service) = connect(&entered, None).await;
    for _ in 0..2 {
        service.write(&mail()).await;
        assert_eq!(told(&service.receive().await), "s1 handled");
    }
    assert_eq!(entered.take(), ["a", "a"]);
}
