//! `State` is that of the dispatcher.

use std::sync::Arc;

use migration_ipc::messages::BackupProgress;
use migration_ipc::{MessageDispatcher, State};

struct Store;

async fn on_progress(_progress: BackupProgress, State(_store): State<Arc<Store>>) {}

fn main() {
    let _ = MessageDispatcher::builder("another state").handle(on_progress);
}
