//! The payload is the first argument.

use migration_ipc::messages::BackupProgress;
use migration_ipc::{MessageDispatcher, Peer};

async fn on_progress(_peer: Peer, _progress: BackupProgress) {}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
