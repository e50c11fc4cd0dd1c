//! What one account may take of a server, and that it is nobody else's loss. In virtual time, with
//! identities of the test's choice; `hostile` of the reference service's tests shows the same with
//! real accounts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod json;
mod log_lines;
mod memory;
mod rates;
mod storm;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use migration_ipc::messages::UserAction;
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{AccountLimits, Answer, IpcServer, MessageDispatcher, ServerLimits, State};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::common::*;

/// How often the handler of a server ran for messages of mallory.
#[derive(Debug, Clone, Default)]
struct Handled(Arc<AtomicUsize>);

impl Handled {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

async fn on_action(action: UserAction, State(handled): State<Handled>) {
    if action.action != "work" {
        handled.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A server whose accounts have these limits.
async fn serving(account: AccountLimits) -> (IpcServer, MemoryConnector, Handled) {
    let handled = Handled::default();
    let dispatcher = MessageDispatcher::builder(handled.clone())
        .handle(on_action)
        .build()
        .unwrap();
    let limits = ServerLimits {
        account,
        ..ServerLimits::default()
    };
    let (server, connector) = serve_with(dispatcher, |server| server.limits(limits)).await;
    (server, connector, handled)
}

/// Somebody of another account, who is never held up. It spreads its round trips over this time.
async fn bystander(connector: &MemoryConnector, time: Duration) -> JoinHandle<()> {
    const ROUND_TRIPS: u32 = 100;
    let stream = connector.connect(user("bystander")).await.unwrap();
    let client = client().connect_over(stream).await.unwrap();
    tokio::spawn(async move {
        for _ in 0..ROUND_TRIPS {
            let asked = Instant::now();
            let answer = client.send_acknowledged(UserAction::new("", "work")).await;
            assert!(matches!(answer, Ok(Answer::Handled)), "{answer:?}");
            assert!(
                asked.elapsed() < Duration::from_millis(100),
                "it was held up"
            );
            tokio::time::sleep(time / ROUND_TRIPS).await;
        }
        client.disconnect().await;
    })
}

/// Sends what is handled and what is not, as fast as it is taken, until the connection ends or the
/// task is aborted. Answers are read, so only the limits of the account hold it.
fn flood(connector: &MemoryConnector, account: &str) -> JoinHandle<()> {
    let connecting = WirePeer::connect_owned(connector.clone(), user(account));
    tokio::spawn(async move {
        let (mut reader, mut writer, message) = connecting.await.split_for_flood();
        let reading = async { while reader.take_some().await {} };
        // Far more than any limit lets through. Time, which is virtual, would stand still for ever
        // if a limit let through everything.
        let writing = async {
            for _ in 0..200_000 {
                if !writer.put(&message).await {
                    break;
                }
            }
        };
        tokio::join!(reading, writing);
    })
}
